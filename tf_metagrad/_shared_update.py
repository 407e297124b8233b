"""A meta-update whose tasks are shared out over the replicas of a strategy."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _cluster, _tree
from tf_metagrad._distribution import Replicas
from tf_metagrad._types import Task


class Attempt(NamedTuple):
    """A compiled update; `sound` says whether it was applied. The last two may be left out, see `Updated`."""

    losses: tf.Tensor
    metrics: dict[str, tf.Tensor]
    diagnostics: dict[str, tf.Tensor]
    sound: tf.Tensor
    gradients: Sequence[tf.Tensor] = ()
    predictions: Any = None


class SharedUpdate:
    """A compiled update whose tasks are shared out over the replicas: first the gradients, then, if sound, the step."""

    def __init__(self, update: Any, gradient: Callable):
        """Store the parts."""
        self.update, self.gradient, self.replicas = update, gradient, Replicas(update.learner.distribute_strategy)
        self._look = tf.function(self._estimate, autograph=False)
        self._commit = tf.function(self._step, autograph=False)

    def __call__(self, tasks: Task, seed: tf.Tensor, *shares: tf.Tensor) -> Attempt:
        """Run it on the whole batch; every worker has the whole, and takes its part.

        Raises:
            ConnectionError: another worker was lost.
        """
        with _cluster.lost_worker():
            return self._attempt(tasks, seed, *shares)

    def _attempt(self, tasks: Task, seed: tf.Tensor, *shares: tf.Tensor) -> Attempt:
        means, outputs = self._look(self.replicas.split((tasks, *shares))[1], seed)
        losses, predictions, diagnostics = self.replicas.first(outputs)
        good = tf.math.is_finite(losses) & (diagnostics["inner_failed_step"] < 0)
        first = self.replicas.first(means)
        finite = [tf.reduce_all(tf.math.is_finite(g)) for g in first]
        sound = tf.reduce_all(good) & tf.reduce_all(tf.stack(finite))
        if sound:
            self._commit(means)
            self.update.count_metrics(*judged(tasks.query_y, predictions, *shares))
        gradients = first[: len(self.update.learner.meta_variables)]
        return Attempt(losses, self.update.metrics(), diagnostics, sound, gradients, predictions)

    def _estimate(self, parts: Any, seed: tf.Tensor):
        def replica(part, shard):
            tasks, *shares = part
            snapshot = self.update.learner.snapshot()
            (gradients, losses, predictions, diagnostics, statistics), _ = self.gradient(
                tasks, seed, shard, snapshot, *shares
            )
            if shares:
                statistics = _tree.scale(shares[0], statistics)
            averages = [tf.reduce_mean(values, axis=0) for values in statistics]
            means = self.replicas.mean([*gradients, *averages])
            return means, self.replicas.join((losses, predictions, diagnostics), shard)

        return self.replicas.strategy.run(replica, args=parts)

    def _step(self, means: Any) -> None:
        count = len(self.update.learner.meta_variables)
        self.replicas.strategy.run(lambda m: self.update.commit(m[:count], m[count:]), args=(means,))


def judged(query_y: Any, predictions: Any, *shares: tf.Tensor) -> tuple[Any, Any]:
    """Return the targets and predictions that count."""
    pair = (query_y, predictions)
    return tf.nest.map_structure(lambda t: tf.boolean_mask(t, shares[0] > 0), pair) if shares else pair
