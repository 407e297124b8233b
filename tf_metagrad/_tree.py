"""Arithmetic on flat lists of tensors, read as one long vector."""

import keras
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from tf_metagrad._types import Params

_JOINED = 2**14  # numbers


def read(variable: keras.Variable) -> tf.Tensor:
    """Return the present value; where no tape looks, in a third of the time that a conversion takes."""
    value = variable.value
    if type(value) is ResourceVariable and tf.executing_eagerly() and not record.could_possibly_record():
        return tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype)
    return tf.convert_to_tensor(variable)


def subtract(a: Params, b: Params) -> list[tf.Tensor]:
    """Return a - b."""
    return [x - y for x, y in zip(a, b, strict=True)]


def add(a: Params, b: Params) -> list[tf.Tensor]:
    """Return a + b."""
    return [x + y for x, y in zip(a, b, strict=True)]


def multiply(a: Params, b: Params) -> list[tf.Tensor]:
    """Return the elementwise product of a and b; either side may broadcast."""
    return [x * y for x, y in zip(a, b, strict=True)]


def dot(a: Params, b: Params, stacked: bool = False) -> tf.Tensor:
    """Return the inner product of a and b, a scalar; where stacked, one for each entry of the first axis."""
    first = 1 if stacked else 0
    return tf.add_n([tf.reduce_sum(x * y, axis=list(range(first, x.shape.rank))) for x, y in zip(a, b, strict=True)])


def scale(factor: float | tf.Tensor, a: Params) -> list[tf.Tensor]:
    """Return factor times a; a factor `[n]` multiplies tensors `[n, ...]` entry by entry."""
    if not tf.is_tensor(factor):  # `tf.cast` would round a number to float32 first
        return [factor * x for x in a]
    return [_column(tf.cast(factor, x.dtype), x) * x for x in a]


def select(condition: tf.Tensor, a: Params, b: Params) -> list[tf.Tensor]:
    """Return a where the condition holds, else b; a condition `[n]` chooses entry by entry of tensors `[n, ...]`."""
    return [tf.where(_column(condition, x), x, y) for x, y in zip(a, b, strict=True)]


def _column(factor: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return factor if factor.shape.rank == 0 else tf.reshape(factor, [-1] + [1] * (like.shape.rank - 1))


def after(others: Params, a: Params) -> list[tf.Tensor]:
    """Return a as new tensors that wait for `others`.

    XLA drops control dependencies, so a zero is added that it cannot know before it has `others`.
    """
    total = tf.add_n([tf.cast(tf.reduce_sum(x), a[0].dtype) for x in others])
    zero = tf.where(tf.math.is_finite(total), 0 * total, 0)
    return [x + tf.cast(zero, x.dtype) for x in a]


def zeros_like(a: Params) -> list[tf.Tensor]:
    """Return zeros in the shape of a."""
    return [tf.zeros_like(x) for x in a]


def at(stacked: Params, index: int | tf.Tensor) -> list[tf.Tensor]:
    """Return entry `index` of every stacked tensor `[n, ...]`."""
    return [x[index] for x in stacked]


def append(stacked: Params, a: Params) -> list[tf.Tensor]:
    """Return every stacked tensor `[n, ...]` with one entry more, that of a."""
    return [tf.concat([x, y[None]], axis=0) for x, y in zip(stacked, a, strict=True)]


def all_finite(a: Params, stacked: bool = False, joined: bool = False) -> tf.Tensor:
    """Return whether all numbers are finite, a scalar; where stacked, one for each entry of the first axis.

    Joined it is one product of a matrix and a vector, for XLA, to which each operation is a kernel to compile: a sum is
    finite where its terms are, if each is made so small before that it cannot overflow. Many numbers are not joined:
    the matrix and the vector would be two more sets of weights in memory.
    """
    rows = [tf.reshape(x, [x.shape[0] if stacked else 1, -1]) for x in a]
    if joined and sum(x.shape[1] for x in rows) <= _JOINED:
        dtype, tiny = (tf.float64, 1e-300) if any(x.dtype == tf.float64 for x in a) else (tf.float32, 1e-37)
        flat = tf.concat([tf.cast(x, dtype) for x in rows], axis=1)
        finite = tf.math.is_finite(tf.linalg.matvec(flat, tf.fill([flat.shape[1]], tf.constant(tiny, dtype))))
    else:
        finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(x), axis=1) for x in rows]), axis=0)
    return finite if stacked else finite[0]


def ravel(a: Params) -> tf.Tensor:
    """Return the list as one vector."""
    return tf.concat([tf.reshape(x, [-1]) for x in a], axis=0)


def unravel(vector: tf.Tensor, shapes: list[tuple[int, ...]]) -> list[tf.Tensor]:
    """Return the vector cut into tensors of the given static shapes; the inverse of `ravel`."""
    sizes = [tf.TensorShape(shape).num_elements() for shape in shapes]
    return [tf.reshape(part, shape) for part, shape in zip(tf.split(vector, sizes), shapes, strict=True)]
