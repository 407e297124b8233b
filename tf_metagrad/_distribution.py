"""Tasks sharded over the replicas of a `tf.distribute` strategy.

Each replica runs its own equal part of a batch: the result is that of one device, up to the rounding of the mean over
the replicas.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _cluster
from tf_metagrad._types import Task

STRATEGIES = ("none", "mirrored", "multi_worker")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Return the strategy of that name; a learner made and compiled in its `scope()` uses it.

    Make one for a process, for several would mix up their messages.

    Args:
        name: `"none"`: one device. `"mirrored"`: all GPUs of this machine, or its logical CPUs. `"multi_worker"`: those
            of all the processes, on any number of hosts, that the environment variable `TF_CONFIG` names; to be made
            before TensorFlow computes anything, and waits for the others. See docs/distribution.md.

    Raises:
        ValueError: another name, or `TF_CONFIG` is missing or wrong.
        RuntimeError: TensorFlow has computed before, or the port of this worker is not free.
        ConnectionError: another worker was lost.

    Example:
        >>> make_strategy("none").num_replicas_in_sync
        1
    """
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])
    if name == "multi_worker":
        return _cluster.join()
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

    def join(self, outputs: Any, shard: tf.Tensor) -> Any:
        """Return what the replicas put out, joined along the axis of tasks; to be called by a replica.

        It is one sum, of zeros but for the replica's own part, so that each has the same whole in one message. Integers
        below 2^53 are exact in it.
        """
        sizes = [t.shape[0] for t in tf.nest.flatten(outputs)]

        def placed(t: tf.Tensor) -> tf.Tensor:
            before, after = shard * t.shape[0], (self.count - 1 - shard) * t.shape[0]
            return tf.pad(tf.cast(t, tf.float64), [[before, after]] + [[0, 0]] * (t.shape.rank - 1))

        flat = [placed(t) for t in tf.nest.flatten(outputs)]
        whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)
        shaped = [tf.ensure_shape(t, [n * self.count, *t.shape[1:]]) for t, n in zip(whole, sizes, strict=True)]
        return tf.nest.map_structure(
            lambda old, new: tf.cast(new, old.dtype), outputs, tf.nest.pack_sequence_as(outputs, shaped)
        )

    def first(self, outputs: Any) -> Any:
        """Return the outputs of the first replica of this process."""
        return tf.nest.map_structure(lambda v: self.strategy.experimental_local_results(v)[0], outputs)

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
