"""Regression onto sine curves, the smallest benchmark of meta-learning."""

import math

import tensorflow as tf

from tf_metagrad._types import Task
from tf_metagrad.data import _episodes

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
INPUT = (-5.0, 5.0)


def sinusoid(
    *, shots: int = 10, queries: int = 10, meta_batch: int = 25, seed: int = 0, start: int = 0
) -> tf.data.Dataset:
    """Regression tasks, each one sine curve seen at a few points.

    y = amplitude * sin(x - phase), with amplitude ~ U[0.1, 5] and phase ~ U[0, pi] drawn once per task, and every x ~
    U[-5, 5]. Support and query points lie on the same curve. Task number i depends on `shots`, `queries`, `seed` and
    i alone: its x are the same on every machine, and y as far as the machines agree on the sine (some 1e-7).

    Args:
        shots: support points.
        queries: query points.
        meta_batch: tasks in a batch.
        seed: names the stream.
        start: number of the first batch, for resuming.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, all float32: support_x and support_y [meta_batch, shots, 1], query_x
        and query_y [meta_batch, queries, 1].

    Raises:
        ValueError: a size is out of range; the message says which.

    Example:
        >>> import tf_metagrad as mg
        >>> task = next(iter(mg.data.sinusoid(shots=5, meta_batch=4)))
        >>> print(task.support_x.shape, task.query_y.shape, task.query_y.dtype.name)
        (4, 5, 1) (4, 10, 1) float32

    References:
        Finn et al., 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, section 5.1,
        https://arxiv.org/abs/1703.03400
    """
    _episodes.check_sizes(shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)

    def draw(key: tf.Tensor) -> tf.Tensor:
        return _episodes.random_uniform(2 + shots + queries, key)

    def assemble(uniform: tf.Tensor) -> Task:
        amplitude, phase, x = tf.split(uniform[..., tf.newaxis], [1, 1, shots + queries], axis=1)
        x = _scale(x, INPUT)
        y = _scale(amplitude, AMPLITUDE) * tf.sin(x - _scale(phase, PHASE))
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    return _episodes.stream(draw, assemble, meta_batch=meta_batch, seed=seed, start=start)


def _scale(uniform: tf.Tensor, interval: tuple[float, float]) -> tf.Tensor:
    low, high = interval
    return low + (high - low) * uniform
