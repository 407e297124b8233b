"""Convolutions that run in parallel over tasks.

`tf.vectorized_map` has no rule for a convolution whose filter differs by task; it falls back to a loop, and
XLA cannot compile some of those loops. Inside `vectorizable_convolutions()` a convolution is written as patches and
one matrix product, which vectorise over tasks and over parallel HVPs and compile: the same number, summed in another
order.
Only plain channels-last convolutions are substituted; depthwise and transposed ones, for example, still fall back.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow.python.ops import nn_ops

from tf_metagrad._second_order import substituted


def _paddings(size: int, kernel: int, stride: int, dilation: int, padding: str) -> tuple[int, int, int]:
    """Return (before, after, outputs) along one axis, by TensorFlow's rules for "SAME" and "VALID"."""
    reach = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return 0, 0, (size - reach) // stride + 1
    outputs = math.ceil(size / stride)
    total = max((outputs - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2, outputs


def _patches(x: tf.Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], padding: str):
    """Return `[batch, *outputs, prod(kernel) * channels]`, the inputs that each output of a convolution sees."""
    axes = [
        _paddings(size, *rest, padding) for size, *rest in zip(x.shape[1:-1], kernel, strides, dilations, strict=True)
    ]
    if any(before or after for before, after, _ in axes):
        x = tf.pad(x, [(0, 0), *((before, after) for before, after, _ in axes), (0, 0)])
    shifted = []
    for offset in itertools.product(*map(range, kernel)):
        windows = [
            slice(o * dilation, o * dilation + (outputs - 1) * stride + 1, stride)
            for o, dilation, stride, (_, _, outputs) in zip(offset, dilations, strides, axes, strict=True)
        ]
        shifted.append(x[(slice(None), *windows, slice(None))])
    return tf.concat(shifted, axis=-1)


def _convolution(original, input, filters, strides=None, padding="VALID", data_format=None, dilations=None, **kwargs):
    """`nn_ops.convolution_internal` as patches and a matrix product."""
    x, filters = tf.convert_to_tensor(input), tf.convert_to_tensor(filters)
    rank = filters.shape.rank - 2
    plain = (
        isinstance(padding, str)
        and (data_format is None or data_format.endswith("C"))
        and x.shape.rank == rank + 2
        and x.shape[1:].is_fully_defined()
        and filters.shape.is_fully_defined()
    )
    if not plain:
        return original(input, filters, strides, padding, data_format, dilations, **kwargs)
    groups = x.shape[-1] // filters.shape[-2]
    if groups > 1:
        pairs = zip(tf.split(x, groups, axis=-1), tf.split(filters, groups, axis=-1), strict=True)
        parts = [_convolution(original, a, b, strides, padding, data_format, dilations, **kwargs) for a, b in pairs]
        return tf.concat(parts, axis=-1)
    strides = nn_ops._get_sequence(strides, rank, rank + 1, "strides")[1:-1]
    dilations = nn_ops._get_sequence(dilations, rank, rank + 1, "dilations")[1:-1]
    *kernel, _, outputs = filters.shape
    patches = _patches(x, kernel, strides, dilations, padding.upper())
    flat = tf.reshape(patches, [-1, patches.shape[-1]])
    product = tf.matmul(flat, tf.reshape(filters, [-1, outputs]))
    return tf.reshape(product, [-1, *patches.shape[1:-1], outputs])


@contextlib.contextmanager
def vectorizable_convolutions() -> Iterator[None]:
    """Trace a model in this scope and its convolutions run in parallel over tasks."""
    with substituted(nn_ops, "convolution_internal", _convolution):
        yield
