"""Tasks sharded over the replicas of a `tf.distribute` strategy.

Each replica runs its own equal part of a batch: the result is that of one device, up to the rounding of the mean over
the replicas.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad._types import Task

STRATEGIES = ("none", "mirrored")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Return the strategy of that name; a learner made and compiled in its `scope()` uses it.

    Make one for a process, for several would mix up their messages.

    Args:
        name: `"none"`: one device. `"mirrored"`: all GPUs of this machine, or its logical CPUs.

    Raises:
        ValueError: another name.

    Example:
        >>> make_strategy("none").num_replicas_in_sync
        1
    """
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])
    raise ValueError(f"`name` must be one of {STRATEGIES}. Received: {name!r}.")


class Replicas:
    """What `MetaLearner.update` needs of a strategy; with one replica it adds nothing."""

    def __init__(self, strategy: tf.distribute.Strategy):
        """Store the strategy."""
        self.strategy, self.count = strategy, strategy.num_replicas_in_sync

    def split(self, tasks: Any) -> tuple[Any, Any]:
        """Return the first part of what has an axis of tasks, and for each replica `(part, number)`.

        Raises:
            ValueError: the tasks do not divide evenly.
        """
        if self.count == 1:
            return tasks, (tasks, tf.constant(0))
        total = tf.nest.flatten(tasks)[0].shape[0]
        if total % self.count:
            raise ValueError(
                f"A batch of tasks must divide evenly over the replicas. Received: {total} tasks for {self.count} "
                f"replicas. Use a `meta_batch` that {self.count} divides."
            )
        size = total // self.count

        def part(index: int) -> Task:
            return tf.nest.map_structure(lambda t: t[index * size : (index + 1) * size], tasks)

        parts = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.nest.map_structure(tf.identity, part(context.replica_id_in_sync_group))
        )
        shards = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(context.replica_id_in_sync_group)
        )
        return part(0), (parts, shards)

    def join(self, outputs: Any) -> Any:
        """Return what the replicas put out, joined along the axis of tasks."""
        local = self.strategy.experimental_local_results
        return tf.nest.map_structure(lambda parts: tf.concat(local(parts), axis=0), outputs)

    def mean(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the mean over the replicas; to be called by a replica."""
        if self.count == 1 or not tensors:
            return list(tensors)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, list(tensors))


def reduce_before_clipping(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Keep Keras from adding up the gradients of the replicas, which come to it as their mean.

    Keras would add them after it clipped them; the clipped sum is not what one device computes.
    """
    if strategy.num_replicas_in_sync > 1:
        for part in (optimizer, getattr(optimizer, "inner_optimizer", None)):
            if part is not None:
                part._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
