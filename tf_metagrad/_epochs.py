"""The epochs of a training run: steps, validation, callbacks, checkpoints, in the one order that can be resumed."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tf_metagrad import _diagnostics
from tf_metagrad._checkpoints import Checkpoints
from tf_metagrad._tensorboard import StepScalars
from tf_metagrad._types import Task
from tf_metagrad.evaluation import Evaluation
from tf_metagrad.learner import MetaLearner


class Preempted(Exception):  # noqa: N818  not an error
    """Training stopped because it was asked to; its state is saved, and the same call goes on from there."""


@dataclasses.dataclass
class Epochs:
    """A training run; see `mg.train` for the parts that are its arguments."""

    learner: MetaLearner
    checkpoints: Checkpoints
    stream: Iterator[Task]
    swap: Callable[[int], None]
    callbacks: keras.callbacks.CallbackList
    steps: int
    epoch_steps: int
    checkpoint_steps: int | None
    validation: Iterable[Task] | None
    validation_count: int
    on_nonfinite: str
    preempted: Callable[[], bool]
    seed: int
    scalars: StepScalars | None = None

    def run(self) -> dict[str, float]:
        """Run all epochs that are left; return the logs of the last."""
        self.done, self.progress, logs = self.checkpoints.step, self.checkpoints.progress, {}
        first = self.progress.start
        if self.progress.open and not (first < self.done and first == self._start(self.done - 1)):
            self.progress.begin(first, is_open=False)  # it was left by a run with other `epoch_steps`
        while (self.progress.open or self.done < self.steps) and not self.learner.stop_training:
            logs = self._epoch()
        return logs

    def _start(self, step: int) -> int:
        return step // self.epoch_steps * self.epoch_steps

    def _epoch(self) -> dict[str, float]:
        learner, progress = self.learner, self.progress
        learner.reset_metrics()
        if progress.open:
            for variable, value in zip(learner.metrics_variables, progress.metrics, strict=True):
                variable.assign(value)
        else:
            progress.begin(self._start(self.done))
        epoch, stop = progress.start // self.epoch_steps, min(self.steps, progress.start + self.epoch_steps)
        self.callbacks.set_params(self.callbacks.params | {"steps": stop - progress.start})  # the last may be shorter
        self.callbacks.on_epoch_begin(epoch)
        logs = self._run_steps(stop)
        self._check_weights()
        if self.validation is not None:
            result = self._validated()
            logs |= {f"val_{name}": value for name, value in result.mean.items()}
            if self.on_nonfinite == "skip":
                logs["val_skipped_tasks"] = result.skipped
        self.callbacks.on_epoch_end(epoch, logs)
        progress.begin(self.done, is_open=False)
        self.checkpoints.save(self.done)  # after the callbacks, which may have changed the learning rate
        return logs

    def _validated(self) -> Evaluation:
        """Judge the validation's tasks; where they fail, what was learned up to here is kept."""
        try:
            return self.learner.evaluate_tasks(
                self._watched(), self.validation_count, seed=self.seed, on_nonfinite=self.on_nonfinite
            )
        except (ValueError, FloatingPointError):
            self.checkpoints.save(self.done)
            raise

    def _run_steps(self, stop: int) -> dict[str, float]:
        """Run the steps before `stop`, or fewer where a callback stops; return the epoch's logs."""
        progress, warned = self.progress, False
        logs = self._logs(self.learner.running_metrics()) if progress.updates else {}
        while self.done < stop and not self.learner.stop_training:
            step = self.done
            self.swap(step)
            self.callbacks.on_train_batch_begin(step - progress.start)
            if self.scalars:
                self.scalars.start(step)
            where = f" at step {step} with {self.learner.estimator}, seed {self.seed + step}"
            batch, seed = (
                next_batch(self.stream, step, self.learner.check_tasks),
                tf.constant(self.seed + step, tf.int64),
            )
            with tf.profiler.experimental.Trace("meta_update", step_num=step + 1, _r=1):  # a profile's mark of a step
                updated = self.learner.update(batch, seed, self.on_nonfinite, where, full=self.scalars is not None)
            if self.scalars:
                self.scalars.finish(batch, seed, updated)
            self.done += 1
            _diagnostics.raise_or_log(updated.skipped, self.on_nonfinite)
            warned = warned or self._warn(updated.diagnostics, step)
            progress.skipped += len(updated.skipped)
            if updated.losses.shape[0]:
                progress.total += float(tf.reduce_mean(updated.losses))
                progress.updates += 1
            logs = self._logs(updated.metrics)
            self.callbacks.on_train_batch_end(step - progress.start, logs)
            if self.preempted():
                self._stop()
            if self.checkpoint_steps and self.done % self.checkpoint_steps == 0 and self.done < stop:
                self._save_open()
        if not progress.updates:
            raise FloatingPointError(
                f"No task was finite from step {progress.start} to {self.done - 1} with {self.learner.estimator}. "
                f"Lower the inner learning rate ({self.learner.inner.learning_rate}) or the meta-optimizer's."
            )
        progress.metrics = self._metric_values()
        return logs

    def _logs(self, metrics: dict[str, Any]) -> dict[str, float]:
        progress = self.progress
        loss = progress.total / progress.updates if progress.updates else math.nan
        logs = {"loss": loss, **{name: float(value) for name, value in metrics.items()}}
        return logs | ({"skipped_tasks": progress.skipped} if self.on_nonfinite == "skip" else {})

    def _warn(self, diagnostics: dict[str, Any], step: int) -> bool:
        short = _diagnostics.shortfalls(diagnostics, self.learner.inner, self.learner.estimator)
        if short:
            logging.warning("Step %d: %s (Said once an epoch.)", step, " ".join(short))
        return bool(short)

    def _watched(self) -> Iterator[Task]:
        """Yield the validation's batches, unless the run is to stop; the metrics of the epoch are put by."""
        for batch in self.validation:
            if self.preempted():
                self.checkpoints.save(self.done)
                raise Preempted(f"stopped after step {self.done}")
            yield batch

    def _stop(self) -> None:
        self._save_open()
        raise Preempted(f"stopped after step {self.done}")

    def _save_open(self) -> None:
        self._check_weights()
        self.progress.metrics = self._metric_values()
        self.checkpoints.save(self.done)

    def _metric_values(self) -> list[Any]:
        return [tf.convert_to_tensor(v).numpy() for v in self.learner.metrics_variables]

    def _check_weights(self) -> None:
        size = sum(float(tf.reduce_sum(tf.abs(v))) for v in self.learner.meta_variables)
        if not math.isfinite(size):
            raise FloatingPointError(
                f"The sum of the weights is {size} at step {self.done - 1} with {self.learner.estimator}. Lower the "
                f"inner learning rate ({self.learner.inner.learning_rate}) or the meta-optimizer's; checkpoints of "
                "earlier steps are intact."
            )
        _diagnostics.check_learned_weight(self.learner.inner, self.learner.hyperparameters)


def next_batch(stream: Iterator[Task], step: int, check: Callable[[Task], Task]) -> Task:
    """Return the batch of a step, checked.

    Raises:
        ValueError: there is none, or it is not fit to learn from.
    """
    batch = next(stream, None)
    if batch is None:
        raise ValueError(
            f"`tasks` must hold a batch for every step. Received: a stream that ended at step {step}. "
            "Use `.repeat()`, or fewer `steps`."
        )
    return check(batch)
