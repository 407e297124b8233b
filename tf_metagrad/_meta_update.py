"""One meta-update: the mean gradient of a batch, the tasks that are kept out of it, the optimizer, the metrics."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad import _diagnostics, _execution, _tree
from tf_metagrad._distribution import Replicas
from tf_metagrad._masks import attached
from tf_metagrad._shared_update import Attempt, SharedUpdate, judged
from tf_metagrad._types import Task, first_line
from tf_metagrad.estimators import Estimator

ON_NONFINITE = ("raise", "skip")


class Updated(NamedTuple):
    """What a meta-update gave; where tasks were skipped, of the others only.

    Attributes:
        losses: `[tasks]`, the query losses.
        metrics: running values of the compiled metrics.
        diagnostics: see `MetaGradient`.
        skipped: a sentence for each task that was kept out, by its number in the batch.
        gradients: what the optimizer was given; empty unless asked for.
        predictions: `[tasks, query, ...]` after adaptation, `Masked` where Keras masks them; None unless asked for.
    """

    losses: tf.Tensor
    metrics: dict[str, tf.Tensor]
    diagnostics: dict[str, tf.Tensor]
    skipped: dict[int, str]
    gradients: Sequence[tf.Tensor] = ()
    predictions: Any = None


class MetaUpdate:
    """Computes the meta-gradient of a learner and applies it; an update that is not finite changes nothing."""

    def __init__(self, learner: Any):
        """Store the learner."""
        self.learner, self.has_metrics, self._built_metrics = learner, False, False
        self._updates: dict[tuple[Callable, bool], Callable] = {}
        self._metrics_of = tf.function(learner.metrics_of, autograph=False)
        self._example = None

    # The gradient ------------------------------------------------------------------------------------------------

    def function(self, estimator: Estimator, replicas: int = 1) -> _execution.Compiled:
        """Return the compiled `(tasks, seed, shard, snapshot[, shares]) -> (estimate, whether its gradient is finite)`.

        The estimate is what `MetaLearner.estimate` returns; shard is the number of the replica whose tasks these are.
        """

        def gradient(tasks, seed, shard, snapshot, *shares):
            options = {"snapshot": snapshot, "shard": (shard, replicas), "shares": shares[0] if shares else None}
            estimate = self.learner.estimate(tasks, seed, estimator, **options)
            return estimate, _tree.all_finite(estimate[0], joined=self.learner.execution.jit_compile)

        return self.learner.compiled_function("gradient", (estimator, self.learner.inner, replicas), gradient)

    def checked(self, tasks: Task, seed: tf.Tensor, where: str):
        """Return what `MetaLearner.estimate` does; raise `FloatingPointError` for a task that diverged."""
        estimator, snapshot = self.learner.estimator, self.learner.snapshot()
        estimate, finite = self.function(estimator)(tasks, seed, tf.constant(0), snapshot)
        _, losses, _, diagnostics, _ = estimate
        failed = diagnostics["inner_failed_step"]
        _diagnostics.check_finite_path(losses, failed, self.learner.inner, where, estimator)
        if not finite:
            self._raise(self._gradient_faults(tasks, seed, range(losses.shape[0]), where), where)
        return estimate

    def prepare(self, tasks: Task, seed: tf.Tensor, estimators: list[Estimator]) -> None:
        """Trace the gradient of each estimator, so that what the model cannot do shows before the first step."""
        for estimator in estimators:
            self._traced(estimator, tasks, seed)

    # The update --------------------------------------------------------------------------------------------------

    def run(
        self, tasks: Task, seed: tf.Tensor, on_nonfinite: str = "raise", where: str = "", full: bool = False
    ) -> Updated:
        """Apply one compiled meta-update, to the tasks that are finite or not at all.

        Args:
            tasks: a batch, as tensors.
            seed: the seed of the step.
            on_nonfinite: `"raise"` a `FloatingPointError` that names a task whose loss, weights or gradient is not
                finite, or `"skip"` such tasks: the mean is that of the others, and nothing changes where none is left.
            where: words for the message.
            full: whether gradients and predictions are wanted, too.
        """
        done = self._attempt(full, tasks, seed)
        if done.sound:
            return Updated(done.losses, done.metrics, done.diagnostics, {}, done.gradients, done.predictions)
        tasks_in_all, failed = range(done.losses.shape[0]), done.diagnostics["inner_failed_step"]
        faults = _diagnostics.faults(done.losses, failed, self.learner.inner, where, self.learner.estimator)
        if on_nonfinite == "raise":
            self._raise(faults or self._gradient_faults(tasks, seed, tasks_in_all, where), where)
        return self._skip(done, faults, tasks, seed, where, full)

    def _skip(
        self, done: Attempt, faults: dict[int, str], tasks: Task, seed: tf.Tensor, where: str, full: bool
    ) -> Updated:
        """Apply the update without the tasks of `faults`, and without those whose gradient only is at fault."""
        numbers, searched = range(done.losses.shape[0]), False
        while len(faults) < len(numbers):
            if faults and (done := self._attempt(full, *_without(tasks, seed, faults))).sound:
                break
            if searched:
                self._raise({}, where)
            searched = True
            faults |= self._gradient_faults(tasks, seed, [task for task in numbers if task not in faults], where)
        kept = np.array([task not in faults for task in numbers])
        by_task = (done.losses, done.diagnostics, done.predictions)
        losses, found, predictions = tf.nest.map_structure(
            lambda t: None if t is None else tf.boolean_mask(t, kept), by_task
        )
        return Updated(losses, done.metrics, found, dict(sorted(faults.items())), done.gradients, predictions)

    def _gradient_faults(self, tasks: Task, seed: tf.Tensor, among: Any, where: str) -> dict[int, str]:
        """Return a sentence for each of these tasks whose own gradient is not finite: one pass for each."""
        function, count = self.function(self.learner.estimator), tf.nest.flatten(tasks)[0].shape[0]
        found = {}
        for task in among:
            alone, _, shares = _without(tasks, seed, [other for other in range(count) if other != task])
            _, finite = function(alone, seed, tf.constant(0), self.learner.snapshot(), shares)
            if not finite:
                found[task] = _diagnostics.gradient_fault(task, self.learner.inner, where)
        return found

    def _raise(self, faults: dict[int, str], where: str) -> None:
        _diagnostics.raise_or_log(faults, "raise")
        raise FloatingPointError(
            f"The mean meta-gradient is not finite{where}, though that of each task is: their sum overflows. Lower the "
            "inner `learning_rate` or the meta-optimizer's."
        )

    def _traced(self, estimator: Estimator, tasks: Task, seed: tf.Tensor, *shares: tf.Tensor) -> Callable:
        """Return the gradient, compiled for the tasks of one replica."""
        replicas = Replicas(self.learner.distribute_strategy)
        (part, *share), _ = replicas.split((tasks, *shares))
        specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), self._snapshot())
        function = self.function(estimator, replicas.count)
        gradient, (estimate, _) = function.trace(part, seed, tf.constant(0), specs, *share)
        self._build_metrics(part, estimate[2])
        return gradient

    def _snapshot(self):
        """Return a snapshot whose values may be old, for its shapes."""
        if self._example is None:
            self._example = self.learner.snapshot()
        return self._example

    def _attempt(self, full: bool, tasks: Task, seed: tf.Tensor, *shares: tf.Tensor) -> Attempt:
        gradient = self._traced(self.learner.estimator, tasks, seed, *shares)
        several = Replicas(self.learner.distribute_strategy).count > 1
        if (gradient, full) not in self._updates:
            plain = functools.partial(self._apply, gradient, full)
            function = SharedUpdate(self, gradient) if several else tf.function(plain, autograph=False)
            self._updates[gradient, full] = function
        return self._updates[gradient, full](tasks, seed, *shares)

    def _apply(self, gradient: Callable, full: bool, tasks: Task, seed: tf.Tensor, *shares: tf.Tensor) -> Attempt:
        estimate, finite = gradient(tasks, seed, tf.constant(0), self.learner.snapshot(), *shares)
        gradients, losses, predictions, diagnostics, statistics = estimate
        good = tf.math.is_finite(losses) & (diagnostics["inner_failed_step"] < 0)
        sound = finite & tf.reduce_all(good)
        if shares:
            statistics = _tree.scale(shares[0], statistics)

        def commit():
            self.commit(gradients, [tf.reduce_mean(values, axis=0) for values in statistics])
            self.count_metrics(*judged(tasks.query_y, predictions, *shares))
            return True

        tf.cond(sound, commit, lambda: False)
        return Attempt(losses, self.metrics(), diagnostics, sound, *((gradients, predictions) if full else ()))

    def commit(self, gradients: Sequence[tf.Tensor], statistics: Sequence[tf.Tensor]) -> None:
        """Apply the optimizer, and store the averages of each step."""
        with tf.name_scope("meta_optimizer"):
            self.learner.optimizer.apply(gradients, self.learner.meta_variables)
        for variable, value in zip(self.learner.step_statistics, statistics, strict=True):
            variable.assign(value)

    # Metrics -----------------------------------------------------------------------------------------------------

    def count_metrics(self, y_true: Any, y_pred: Any) -> None:
        """Take targets and predictions `[tasks, query, ...]` into the compiled metrics, all tasks together."""
        if self.has_metrics:
            y_true, y_pred = (tf.nest.map_structure(_joined, v) for v in (y_true, y_pred))
            self.learner.compute_metrics(None, y_true, attached(y_pred))

    def metrics(self) -> dict[str, tf.Tensor]:
        """Return the running values of the compiled metrics."""
        if not self.has_metrics:
            return {}
        return {name: value for name, value in self.learner.get_metrics_result().items() if name != "loss"}

    def metrics_alone(self, y_true: Any, y_pred: Any) -> dict[str, tf.Tensor]:
        """Return the compiled metrics of these targets and predictions; the running values stay as they are."""
        with keras.StatelessScope():
            self.learner.reset_metrics()
            self.count_metrics(y_true, y_pred)
            return self.metrics()

    def compiled_metrics(self, tasks: Task, predictions: Any) -> Callable:
        """Return `MetaLearner.metrics_of` as one compiled function, for predictions like these."""
        self._build_metrics(tasks, predictions)
        return self._metrics_of

    def _build_metrics(self, tasks: Task, predictions: Any) -> None:
        """Let Keras make its metric variables, which it does at the first call, outside of the compiled step."""
        if self.has_metrics and not self._built_metrics:
            self._built_metrics = True
            zeros = tf.nest.map_structure(lambda t: tf.zeros(t.shape, t.dtype), predictions)
            try:
                self.count_metrics(tasks.query_y, zeros)
            except (ValueError, TypeError, AttributeError, tf.errors.OpError) as error:
                shapes = [tuple(t.shape[1:]) for t in tf.nest.flatten([tasks.query_y, attached(predictions)])]
                raise ValueError(
                    "`metrics` must fit targets and predictions of a task. Received: one that for the shapes "
                    f"{shapes} gave: {first_line(error)}"
                ) from error
            self.learner.reset_metrics()


def _joined(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, [-1, *values.shape[2:]])


def _without(tasks: Task, seed: tf.Tensor, out: Any) -> tuple[Task, tf.Tensor, tf.Tensor]:
    """Return tasks, seed and shares of an update without some tasks.

    The shape stays, so that nothing is compiled anew for every number of tasks: the data of those that are out is
    replaced by that of another task, and counts nothing. So not even a zero times their NaN gets into a sum.
    """
    count = tf.nest.flatten(tasks)[0].shape[0]
    kept = [task for task in range(count) if task not in out]
    source = [task if task in kept else kept[0] for task in range(count)]
    share = [count / len(kept) if task in kept else 0.0 for task in range(count)]
    return tf.nest.map_structure(lambda t: tf.gather(t, source), tasks), seed, tf.constant(share, tf.float64)
