"""Max-pooling with second derivatives that XLA gets right.

XLA's program for `MaxPoolGradGrad`, which Hessian-vector products need, packs an input and its tangent into one number
and so compares the inputs by their first 16 bits only: where the two largest of a window agree in these, it may take
the wrong tangent. On a small convolutional net exact MAML was off by 0.6 %; it has no such program for float64.
Inside `plain_max_pooling()` a window's maximum is written as that of shifted inputs: the same values, the first of
equal inputs has the gradient, as in TensorFlow's kernel, and derivatives of every order are selections.
"""

import contextlib
import functools
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.ops import gen_nn_ops

from tf_metagrad._second_order import substituted
from tf_metagrad._vectorize import _axes, _windows


def _max_pool(original, input, ksize, strides, padding, data_format="NHWC", **kwargs):
    """`gen_nn_ops.max_pool` and its kin for three axes."""
    x = tf.convert_to_tensor(input)
    known = padding in ("SAME", "VALID") and data_format.endswith("C") and x.shape[1:].is_fully_defined()
    if not known or ksize[0] != 1 or ksize[-1] != 1:
        return original(input, ksize, strides, padding, data_format=data_format, **kwargs)
    kernel, strides, ones = ksize[1:-1], strides[1:-1], [1] * (len(ksize) - 2)
    axes = _axes(x.shape[1:-1], kernel, strides, ones, padding=padding)
    if any(before or after for before, after, _ in axes):
        margins = [(0, 0), *((before, after) for before, after, _ in axes), (0, 0)]
        x = tf.pad(x, margins, constant_values=x.dtype.min)
    windows = _windows(axes, kernel, strides, ones)
    return functools.reduce(tf.maximum, [x[(slice(None), *window, slice(None))] for window in windows])


@contextlib.contextmanager
def plain_max_pooling() -> Iterator[None]:
    """Trace a model in this scope, and XLA can differentiate its max-pooling twice."""
    with substituted(gen_nn_ops, "max_pool", _max_pool), substituted(gen_nn_ops, "max_pool3d", _max_pool):
        yield
