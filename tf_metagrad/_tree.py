"""Arithmetic on flat lists of tensors, read as one long vector."""

import tensorflow as tf

from tf_metagrad._types import Params


def subtract(a: Params, b: Params) -> list[tf.Tensor]:
    """Return a - b."""
    return [x - y for x, y in zip(a, b, strict=True)]


def add(a: Params, b: Params) -> list[tf.Tensor]:
    """Return a + b."""
    return [x + y for x, y in zip(a, b, strict=True)]


def multiply(a: Params, b: Params) -> list[tf.Tensor]:
    """Return the elementwise product of a and b; either side may broadcast."""
    return [x * y for x, y in zip(a, b, strict=True)]


def dot(a: Params, b: Params) -> tf.Tensor:
    """Return the inner product of a and b, a scalar."""
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])


def zeros_like(a: Params) -> list[tf.Tensor]:
    """Return zeros in the shape of a."""
    return [tf.zeros_like(x) for x in a]


def at(stacked: Params, index: int | tf.Tensor) -> list[tf.Tensor]:
    """Return entry `index` of every stacked tensor `[n, ...]`."""
    return [x[index] for x in stacked]


def ravel(a: Params) -> tf.Tensor:
    """Return the list as one vector."""
    return tf.concat([tf.reshape(x, [-1]) for x in a], axis=0)


def unravel(vector: tf.Tensor, shapes: list[tuple[int, ...]]) -> list[tf.Tensor]:
    """Return the vector cut into tensors of the given static shapes; the inverse of `ravel`."""
    sizes = [tf.TensorShape(shape).num_elements() for shape in shapes]
    return [tf.reshape(part, shape) for part, shape in zip(tf.split(vector, sizes), shapes, strict=True)]
