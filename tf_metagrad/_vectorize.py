"""Convolutions that run in parallel over tasks.

`tf.vectorized_map` has no rule for a convolution whose filter differs by task; it falls back to a loop, and
XLA cannot compile some of those loops. Inside `vectorizable_convolutions()` a convolution is written as patches and
one matrix product, which vectorise over tasks and over parallel HVPs and compile: the same number, summed in another
order. Transposed convolutions are that product's transpose; depthwise ones vectorise by themselves.

Patches take the memory of prod(kernel) copies of the inputs where XLA does not fuse them into the product. The
alternative, one convolution with a group for each task (what JAX's `vmap` makes), saves it, but TensorFlow's kernels
have no derivatives of grouped convolutions on a CPU, and vectorised steps must run without XLA too.
Only channels-last convolutions padded "same" or "valid" are substituted; others still fall back. So do random numbers,
as Dropout's: they are drawn task after task, and used in parallel.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow.python.framework import tensor_util
from tensorflow.python.ops import gen_nn_ops, nn_ops

from tf_metagrad._second_order import substituted


def _paddings(size: int, kernel: int, stride: int, dilation: int, padding: str) -> tuple[int, int, int]:
    """Return (before, after, outputs) along one axis, by TensorFlow's rules for "SAME" and "VALID"."""
    reach = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return 0, 0, (size - reach) // stride + 1
    outputs = math.ceil(size / stride)
    total = max((outputs - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2, outputs


def _windows(axes: Sequence, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]):
    """Return the slices of the padded inputs that meet each entry of the kernel; `axes` is of `_paddings`."""
    return [
        [
            slice(o * dilation, o * dilation + (outputs - 1) * stride + 1, stride)
            for o, dilation, stride, (_, _, outputs) in zip(offset, dilations, strides, axes, strict=True)
        ]
        for offset in itertools.product(*map(range, kernel))
    ]


def _axes(sizes: Sequence[int], *rest: Sequence[int], padding: str) -> list[tuple[int, int, int]]:
    return [_paddings(*axis, padding) for axis in zip(sizes, *rest, strict=True)]


def _patches(x: tf.Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], padding: str):
    """Return `[batch, *outputs, prod(kernel) * channels]`, the inputs that each output of a convolution sees."""
    axes = _axes(x.shape[1:-1], kernel, strides, dilations, padding=padding)
    if any(before or after for before, after, _ in axes):
        x = tf.pad(x, [(0, 0), *((before, after) for before, after, _ in axes), (0, 0)])
    windows = _windows(axes, kernel, strides, dilations)
    return tf.concat([x[(slice(None), *window, slice(None))] for window in windows], axis=-1)


def _add_patches(patches: Sequence[tf.Tensor], sizes: Sequence[int], axes: Sequence, windows: Sequence) -> tf.Tensor:
    """Return inputs `[batch, *sizes, channels]`, the sums of what falls on each: the transpose of `_patches`."""
    batch, channels = patches[0].shape[0] or tf.shape(patches[0])[0], patches[0].shape[-1]
    padded = [batch, *(size + before + after for size, (before, after, _) in zip(sizes, axes, strict=True)), channels]
    spread = [
        tf.raw_ops.StridedSliceGrad(
            shape=padded, begin=[0, *(w.start for w in window), 0], end=[batch, *(w.stop for w in window), channels],
            strides=[1, *(w.step for w in window), 1], dy=patch,
        )
        for window, patch in zip(windows, patches, strict=True)
    ]  # fmt: skip
    inside = [slice(before, before + size) for size, (before, _, _) in zip(sizes, axes, strict=True)]
    return tf.add_n(spread)[(slice(None), *inside, slice(None))]


def _plain(x: tf.Tensor, filters: tf.Tensor, padding, data_format) -> bool:
    return (
        isinstance(padding, str)
        and padding.upper() in ("SAME", "VALID")
        and (data_format is None or data_format.endswith("C"))
        and x.shape.rank == filters.shape.rank
        and x.shape[1:].is_fully_defined()
        and filters.shape.is_fully_defined()
    )


def _convolution(original, input, filters, strides=None, padding="VALID", data_format=None, dilations=None, **kwargs):
    """`nn_ops.convolution_internal` as patches and a matrix product."""
    x, filters = tf.convert_to_tensor(input), tf.convert_to_tensor(filters)
    rank = filters.shape.rank - 2
    if not _plain(x, filters, padding, data_format):
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


def _convolution_2d(original, input, filter, strides, padding, data_format="NHWC", dilations=None, **kwargs):
    """`gen_nn_ops.conv2d`, which `tf.nn.conv2d` and separable convolutions call."""

    def plain(input, filters, strides, padding, data_format, dilations):
        dilations = {} if dilations is None else {"dilations": dilations}
        return original(input, filters, strides, padding, data_format=data_format, **dilations, **kwargs)

    return _convolution(plain, input, filter, strides, padding, data_format, dilations)


def _transposed(
    original, input_sizes, filter, out_backprop, strides, padding, data_format=None, dilations=None, **kwargs
):
    """`gen_nn_ops.conv2d_backprop_input` and its kin, which transposed convolutions call."""
    y, filters = tf.convert_to_tensor(out_backprop), tf.convert_to_tensor(filter)
    rank = filters.shape.rank - 2
    sizes = tensor_util.constant_value_as_shape(tf.convert_to_tensor(input_sizes))[1:-1]
    if not (_plain(y, filters, padding, data_format) and sizes.is_fully_defined()):
        dilations = {} if dilations is None else {"dilations": dilations}
        return original(input_sizes, filter, y, strides, padding, data_format=data_format, **dilations, **kwargs)
    strides = nn_ops._get_sequence(strides, rank, rank + 1, "strides")[1:-1]
    dilations = nn_ops._get_sequence(dilations, rank, rank + 1, "dilations")[1:-1]
    *kernel, outputs, inputs = filters.shape
    axes = _axes(sizes, kernel, strides, dilations, padding=padding.upper())
    product = tf.matmul(tf.reshape(y, [-1, inputs]), tf.reshape(filters, [-1, inputs]), transpose_b=True)
    patches = tf.split(tf.reshape(product, [-1, *y.shape[1:-1], math.prod(kernel) * outputs]), math.prod(kernel), -1)
    return _add_patches(patches, sizes, axes, _windows(axes, kernel, strides, dilations))


@contextlib.contextmanager
def vectorizable_convolutions() -> Iterator[None]:
    """Trace a model in this scope and its convolutions run in parallel over tasks."""
    with (
        substituted(nn_ops, "convolution_internal", _convolution),
        substituted(gen_nn_ops, "conv2d", _convolution_2d),
        substituted(gen_nn_ops, "conv2d_backprop_input", _transposed),
        substituted(gen_nn_ops, "conv3d_backprop_input_v2", _transposed),
    ):
        yield
