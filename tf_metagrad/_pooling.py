"""Max-pooling as maxima of slices, for XLA.

XLA has no kernel for the gradient of `MaxPool`: it finds the windows' winners by their indices, and holds them as four
integers for each input, a scatter beside them. For a 2x2 pool behind the first convolution that is most of a step's
memory. The same windows as slices need an elementwise comparison, which XLA fuses; the numbers are the same, the first
of equal inputs included.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import gen_nn_ops

from tf_metagrad._second_order import substituted

_LARGEST = 4  # side of a window


def _max_pool(original: Any, input: Any, ksize: Any, strides: Any, padding: Any, *args: Any, **kwargs: Any):
    """`gen_nn_ops.max_pool`; windows that overlap, are padded or are large go to the original."""
    x, sides = tf.convert_to_tensor(input), list(ksize)
    known = x.shape.rank == 4 and None not in x.shape[1:3] and x.dtype.is_floating
    if (
        not known
        or args
        or kwargs.get("data_format", "NHWC") != "NHWC"
        or list(strides) != sides
        or max(sides) > _LARGEST
        or any(size < side for size, side in zip(x.shape[1:3], sides[1:3], strict=True))
        or padding != "VALID"
        and any(size % side for size, side in zip(x.shape[1:3], sides[1:3], strict=True))
    ):
        return original(input, ksize, strides, padding, *args, **kwargs)
    for axis in (2, 1):  # columns first: of equal inputs the first in reading order wins, as in the kernel
        side, size = sides[axis], x.shape[axis] // sides[axis] * sides[axis]
        slices = [x[(slice(None),) * axis + (slice(i, size, side),)] for i in range(side)]
        x = functools.reduce(tf.maximum, slices)
    return x


@contextlib.contextmanager
def sliced_max_pooling() -> Iterator[None]:
    """Trace a model in this scope for XLA."""
    with substituted(gen_nn_ops, "max_pool", _max_pool):
        yield
