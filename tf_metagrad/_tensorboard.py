"""What a training run shows in TensorBoard: Keras' scalars of each epoch, a profile, scalars of single meta-updates.

docs/profiling.md says what each of them means.
"""

import contextlib
import numbers
import os
import time
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _memory
from tf_metagrad._checkpoints import writing
from tf_metagrad._meta_update import Updated
from tf_metagrad._types import Params, Task
from tf_metagrad.estimators import Estimator
from tf_metagrad.learner import MetaLearner


def check_shown(learner: MetaLearner, directory: Any, profile_steps: Any, log_steps: Any, reference: Any) -> None:
    """Raise `ValueError` for arguments of `mg.train` that do not say what is to be shown."""
    window = profile_steps if isinstance(profile_steps, tuple | list) and len(profile_steps) == 2 else (0, 0)
    whole = all(isinstance(step, numbers.Integral) for step in window)
    if profile_steps is not None and (directory is None or not whole or not 0 < window[0] <= window[1]):
        raise ValueError(
            "`profile_steps` must be (first, last) with 0 < first <= last, and needs a `directory`. "
            f"Received: profile_steps={profile_steps!r}, directory={directory!r}."
        )
    whole = isinstance(log_steps, numbers.Integral) and not isinstance(log_steps, bool) and log_steps >= 1
    if log_steps is not None and not (whole and directory is not None):
        raise ValueError(
            "`log_steps` must be a whole number of at least 1, and needs a `directory`. "
            f"Received: log_steps={log_steps!r}, directory={directory!r}."
        )
    if reference is not None:
        if log_steps is None:
            raise ValueError(
                "`reference_estimator` is compared on the steps that `log_steps` chooses. Received: "
                f"reference_estimator={reference!r} without `log_steps`. Give both, or neither."
            )
        learner.check_estimator(reference)


def _writing(folder: str) -> contextlib.AbstractContextManager:
    return writing(f"The TensorBoard scalars in {folder!r}", "Make room; the last checkpoint is intact.")


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' callback; a file that cannot be written ends the run in a sentence."""

    def __init__(self, directory: Any, profile_steps: tuple[int, int] | None):
        """Write to the folder `logs` of the directory."""
        super().__init__(os.path.join(directory, "logs"), write_graph=False, profile_batch=profile_steps or 0)

    def on_train_begin(self, logs=None):
        """See `keras.callbacks.Callback`."""
        with _writing(self.log_dir):
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        """See `keras.callbacks.Callback`."""
        with _writing(self.log_dir):
            super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        """See `keras.callbacks.Callback`."""
        with _writing(self.log_dir):
            super().on_train_end(logs)


class StepScalars:
    """Writes scalars of every n-th meta-update to `logs/steps`.

    What is not known from the update is computed after it, from a snapshot taken before it and by functions of their
    own, so that the run is the same with and without.

    Args:
        learner: the learner.
        directory: the run's folder.
        every: n; the numbers of meta-updates that it divides are written, counted from 1.
        reference: the estimator to compare with, or None.
        writes: False for a worker that computes along and writes nothing.
    """

    def __init__(
        self, learner: MetaLearner, directory: Any, every: int, reference: Estimator | None, writes: bool = True
    ):
        """Open the file; see the class."""
        self.learner, self.every, self.reference = learner, every, reference
        self.folder = os.path.join(directory, "logs", "steps")
        self._seconds: list[float] = []
        with _writing(self.folder):
            self._writer = tf.summary.create_file_writer(self.folder) if writes else tf.summary.create_noop_writer()

    def start(self, step: int) -> None:
        """Begin a step, before its batch is drawn."""
        self._number = step + 1
        self._before = None if self._number % self.every else self.learner.snapshot()
        self._began = time.perf_counter()

    def finish(self, tasks: Task, seed: tf.Tensor, updated: Updated) -> None:
        """End the step; write, if it is one of the n-th. The time that this takes is not counted."""
        self._seconds.append(time.perf_counter() - self._began)
        if self._before is None:
            return
        values = self._run_values(tasks) | (self._task_values(tasks, seed, updated) if len(updated.losses) else {})
        with _writing(self.folder), self._writer.as_default(self._number):
            for name, value in values.items():
                tf.summary.scalar(name, value)
            self._writer.flush()
        self._before, self._seconds = None, []

    def _run_values(self, tasks: Task) -> dict[str, float]:
        seconds = sum(self._seconds) / len(self._seconds)
        return {
            "step/milliseconds": 1000 * seconds,
            "step/tasks_per_second": tf.nest.flatten(tasks)[0].shape[0] / seconds,
            "memory/peak_mib": _memory.peak_so_far_mib(),
        }

    def _task_values(self, tasks: Task, seed: tf.Tensor, updated: Updated) -> dict[str, tf.Tensor]:
        """Return what the tasks gave that were not skipped."""
        learner, gradients = self.learner, updated.gradients
        kept = [task not in updated.skipped for task in range(tf.nest.flatten(tasks)[0].shape[0])]
        query_y, before = tf.nest.map_structure(
            lambda t: tf.boolean_mask(t, kept), (tasks.query_y, self._initial(tasks, seed))
        )
        values = {"meta_gradient/norm": tf.sqrt(_dot(gradients, gradients))}
        for moment, (losses, predictions) in (("before", before), ("after", (updated.losses, updated.predictions))):
            found = {"loss": tf.reduce_mean(losses), **learner.metrics_alone(query_y, predictions)}
            values |= {f"query_{name}/{moment}": value for name, value in found.items()}
        if self.reference and all(kept):
            other = self._reference_gradient(tasks, seed)
            cosine = _dot(gradients, other) / tf.sqrt(_dot(gradients, gradients) * _dot(other, other))
            values[f"meta_gradient/cosine_to_{self.reference}"] = cosine
        return values

    def _initial(self, tasks: Task, seed: tf.Tensor) -> Any:
        """Return query losses and predictions of the weights before adaptation, and before the update."""

        def body(problem):
            query = problem.query_loss(problem.initial(), problem.state)
            return [], (query.loss, query.predictions)

        def run(tasks, seed, snapshot):
            return self.learner.run_tasks(body, tasks, seed, snapshot)[1]

        return self.learner.compiled_function("initial", self.learner.inner, run)(tasks, seed, self._before)

    def _reference_gradient(self, tasks: Task, seed: tf.Tensor) -> Params:
        def run(tasks, seed, snapshot):
            return self.learner.estimate(tasks, seed, self.reference, snapshot=snapshot)[0]

        key = (self.reference, self.learner.inner)
        return self.learner.compiled_function("reference", key, run)(tasks, seed, self._before)


def _dot(a: Params, b: Params) -> tf.Tensor:
    """Return the inner product in float64, in which neither long sums nor squares of small numbers are lost."""
    pairs = zip(a, b, strict=True)
    return tf.add_n([tf.reduce_sum(tf.cast(x, tf.float64) * tf.cast(y, tf.float64)) for x, y in pairs])
