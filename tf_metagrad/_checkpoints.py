"""What a training run keeps on disk: the learner, the optimizer, the step, and the running metrics of its epoch."""

import base64
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad._cluster import Workers
from tf_metagrad._types import first_line
from tf_metagrad.learner import MetaLearner


class Progress(tf.train.experimental.PythonState):
    """The epoch that a run is in, bit for bit.

    Attributes:
        start: its first step.
        open: whether it has begun and `on_epoch_end` has not been called.
        total: the sum of the losses of its updates.
        updates: the number of these, fewer than steps where whole batches were skipped.
        skipped: the number of tasks that were skipped.
        metrics: the variables of the compiled metrics.
        settings: inner optimiser, seed and the like, with which alone a run goes on; None where a checkpoint
            has none.
    """

    def __init__(self, settings: dict[str, Any] | None):
        """Begin at the first epoch."""
        self.settings = json.loads(json.dumps(settings, default=str))
        self.begin(0, is_open=False)

    def begin(self, start: int, is_open: bool = True) -> None:
        """Begin an epoch, or close the one before it."""
        self.start, self.open = start, is_open
        self.total, self.updates, self.skipped = 0.0, 0, 0
        self.metrics: list[np.ndarray] = []

    def serialize(self) -> str:
        """Return the state as text."""
        metrics = [[v.dtype.str, v.shape, base64.b64encode(v.tobytes()).decode()] for v in self.metrics]
        numbers = {name: getattr(self, name) for name in ("start", "open", "updates", "skipped", "settings")}
        return json.dumps(numbers | {"total": float(self.total).hex(), "metrics": metrics})

    def deserialize(self, string_value: str) -> None:
        """Take the state from text."""
        state = {"settings": None} | json.loads(string_value)
        state["total"] = float.fromhex(state["total"])
        state["metrics"] = [
            np.frombuffer(base64.b64decode(data), dtype).reshape(shape) for dtype, shape, data in state["metrics"]
        ]
        vars(self).update(state)


class Checkpoints:
    """Restores a learner from a folder's last checkpoint, and writes the next ones.

    A checkpoint is whole before the file `checkpoint` names it, and none that is named is ever written again. Of
    several workers all restore what the chief wrote.

    Args:
        learner: the learner.
        directory: the run's folder; None keeps nothing.
        keep: number of checkpoints kept.
        seed: the run's seed.

    Raises:
        ValueError: the folder has the checkpoint of another learner or of other settings, or not the same one for every
            worker.
        OSError: the folder cannot be written.
        ConnectionError: another worker was lost.
    """

    def __init__(self, learner: MetaLearner, directory: Any, keep: int, seed: int):
        """Restore the last checkpoint, if any; `step` and `progress` say where it is."""
        self.progress, self.step, self._saved, self._manager = Progress(_settings(learner, seed)), 0, None, None
        self._learner, self._directory, workers = learner, directory, Workers(learner.distribute_strategy)
        if directory is None:
            return
        self.folder = os.path.join(directory, "checkpoints")
        self._checkpoint = tf.train.Checkpoint(
            model=learner.model,
            hyperparameters=[variable.value for variable in [*learner.hyperparameters, *learner.step_statistics]],
            optimizer=learner.optimizer,
            step=tf.Variable(0, dtype=tf.int64),
            progress=self.progress,
        )
        self._checkpoint.save_counter.assign(0)  # it makes the variable, at the same moment on every worker
        if workers.is_chief:
            self._open(keep)
        self._restore_last()
        workers.agree(
            self.step,
            f"Every worker must find the same checkpoint in `directory`. Received: {os.fspath(directory)!r}, where the "
            "workers found those of the steps {}. Give one on storage that all share.",
        )

    def _open(self, keep: int) -> None:
        """Make the folder, or clean it up."""
        with writing(f"The folder {self.folder!r}", "Choose another `directory`, or make room."):
            tf.io.gfile.makedirs(self.folder)
            self._remove_partial()
            probe = os.path.join(self.folder, f".probe-{os.getpid()}")
            tf.io.gfile.GFile(probe, "w").write(" " * 4096)
            tf.io.gfile.remove(probe)
            self._name_again()
        self._manager = tf.train.CheckpointManager(self._checkpoint, self.folder, max_to_keep=keep)

    def _restore_last(self) -> None:
        """Restore the last checkpoint that can be read, if any."""
        paths, said = _named(self.folder) or [], ""
        for path in reversed(paths):
            try:
                self._restore(path)
                return
            except (IndexError, tf.errors.OpError) as error:
                said = first_line(error)
                logging.warning("The checkpoint %r cannot be read: %s. The one before it is tried.", path, said)
        if paths:
            raise OSError(
                f"None of the checkpoints in {self.folder!r} can be read: {said}. Choose another `directory`, or "
                "bring the files back from a copy."
            )

    def _name_again(self) -> None:
        """Write the list of checkpoints anew where it is lost; one that has an index is whole."""
        found = tf.io.gfile.glob(os.path.join(self.folder, "ckpt-*.index"))
        numbers = {path: path.removesuffix(".index").rpartition("-")[2] for path in found}
        paths = sorted((p for p in found if numbers[p].isdecimal()), key=lambda p: int(numbers[p]))
        if paths and _named(self.folder) is None:
            logging.warning("The list of checkpoints in %r is lost; it is made anew of those there.", self.folder)
            paths = [path.removesuffix(".index") for path in paths]
            tf.compat.v1.train.update_checkpoint_state(self.folder, paths[-1], paths)

    def _restore(self, path: str) -> None:
        self._check_settings(path)
        rate = _learning_rate(self._learner)
        settings, status = self.progress.settings, None
        try:
            status = self._checkpoint.restore(path)
            status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:  # the last: of other types
            raise ValueError(
                "`directory` must be new or hold checkpoints of this learner. Received: "
                f"{os.fspath(self._directory)!r}, with those of another model, inner optimiser or meta-optimizer. "
                "Choose another `directory`."
            ) from error
        finally:
            if status is not None:
                status.expect_partial()  # or what is refused is complained of again, variable by variable
        self.progress.settings = settings
        self.step = self._saved = int(self._checkpoint.step)
        if (now := _learning_rate(self._learner)) != rate:
            logging.warning(
                "The meta-optimizer goes on with the checkpoint's learning rate, %g, not with %g. A callback, such as "
                "keras.callbacks.LearningRateScheduler, can change it.", now, rate,
            )  # fmt: skip

    def _check_settings(self, path: str) -> None:
        """Raise `ValueError` where the checkpoint is of a run with other settings; nothing else is read."""
        found, own = Progress(None), self.progress.settings
        tf.train.Checkpoint(progress=found).restore(path).expect_partial()
        former = found.settings or own
        changed = [name for name in own if own[name] != former.get(name)]
        if changed:
            raise ValueError(
                "`directory` must be new or hold checkpoints of a run with the same settings. Received: "
                f"{os.fspath(self._directory)!r}, where "
                + ", ".join(f"{name} was {former.get(name)!r} and is {own[name]!r}" for name in changed)
                + ". Choose another `directory`, or the former settings."
            )

    def save(self, step: int) -> None:
        """Write the checkpoint of a step; one that is there has the same content, and stays.

        Raises:
            OSError: it could not be written; the one before it is intact.
        """
        if self._directory is None or step == self._saved:
            return
        self._checkpoint.step.assign(step)
        if self._manager is None:  # every worker reads all variables, for there are kinds that only all can read
            with tempfile.TemporaryDirectory() as aside:
                self._checkpoint.write(os.path.join(aside, "checkpoint"))
        else:
            self._write(step)
        self._saved = step

    def _write(self, step: int) -> None:
        last = self._manager.latest_checkpoint
        intact = f"{os.path.basename(last)!r}, the last one before, is intact" if last else "There is none before it"
        advice = f"{intact}; make room, then the same call goes on from there."
        with writing(f"The checkpoint of step {step} in {self.folder!r}", advice):
            try:
                self._manager.save(checkpoint_number=step)
            except BaseException:
                self._remove_partial()
                raise

    def _remove_partial(self) -> None:
        """Remove what a run was about to write when it was killed, or the disk was full."""
        for path in tf.io.gfile.glob(os.path.join(self.folder, "*_temp*")):
            tf.io.gfile.rmtree(path)


def _settings(learner: MetaLearner, seed: int) -> dict[str, Any]:
    inner, runner, loss = learner.inner, learner._runner, learner.task_loss
    return {
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "inner": {"name": type(inner).__name__, **inner.get_config()},
        "adapting weights": list(runner.adapting),
        "normalization": runner.normalization,
        "seed": seed,
    }


def _named(folder: str) -> list[str] | None:
    """Return the checkpoints that the file `checkpoint` names, the last one last; None where it cannot be read."""
    try:
        state = tf.train.get_checkpoint_state(folder)
    except ValueError:  # it is empty
        state = None
    return list(state.all_model_checkpoint_paths) if state else None


def _learning_rate(learner: MetaLearner) -> float | None:
    """Return the meta-optimizer's learning rate; None where a schedule gives it, which the step decides."""
    optimizer = learner.optimizer
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    scheduled = isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
    return None if scheduled else float(tf.convert_to_tensor(optimizer.learning_rate))


@contextlib.contextmanager
def writing(what: str, advice: str) -> Iterator[None]:
    """Turn what the operating system or TensorFlow raises while files are written into one sentence.

    Raises:
        OSError: `what` could not be written.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        reason = re.sub(r" \[Op:\w+\]$", "", reason.strip().splitlines()[0]).rpartition("; ")[2].removesuffix(".")
        raise OSError(f"{what} could not be written: {reason}. {advice}") from error
