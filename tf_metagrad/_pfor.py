"""Operations that `tf.vectorized_map` gets wrong, without an error.

* Padding with a constant pads with zeros, whatever the constant; task by task, the constant has no gradient.
* `tf.roll` along an axis counted from the end takes the one before it, and for that before the first, the tasks.

Inside `correct_vectorization()` the calling thread sees them written in operations whose rules hold, as
`_second_order` has it for second derivatives.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import tensor_util
from tensorflow.python.ops import gen_array_ops, gen_manip_ops

from tf_metagrad._second_order import substituted


def _pad(original, input, paddings, constant_values, name=None):
    """`gen_array_ops.pad_v2` as a selection between the inputs, padded with zeros, and the constant."""
    del original
    x = tf.convert_to_tensor(input)
    ones = tf.ones(x.shape, tf.bool) if x.shape.is_fully_defined() else tf.ones_like(x, tf.bool)
    return tf.where(
        tf.pad(ones, paddings), tf.pad(x, paddings), tf.convert_to_tensor(constant_values, x.dtype), name=name
    )


def _roll(original, input, shift, axis, name=None):
    """`gen_manip_ops.roll` with axes counted from the first."""
    x, known = tf.convert_to_tensor(input), tensor_util.constant_value(tf.convert_to_tensor(axis))
    if known is None or x.shape.rank is None:
        return original(x, shift, tf.where(axis < 0, axis + tf.rank(x), axis), name=name)
    return original(x, shift, np.where(known < 0, known + x.shape.rank, known), name=name)


@contextlib.contextmanager
def correct_vectorization() -> Iterator[None]:
    """Trace a function in this scope, and `tf.vectorized_map` pads with constants and rolls as it should."""
    with substituted(gen_array_ops, "pad_v2", _pad), substituted(gen_manip_ops, "roll", _roll):
        yield
