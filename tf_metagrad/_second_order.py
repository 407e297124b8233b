"""Right second derivatives for any user's model: functions substituted while the library traces, and only then.

Two functions of TensorFlow have right first derivatives and wrong second ones:

* `tf.nn.moments` puts `stop_gradient` on the mean inside the variance. The dropped term is zero in the gradient and
  not zero in the Hessian. Keras' BatchNormalization and GroupNormalization call it.
* `ResizeBilinear`, behind `UpSampling2D(interpolation="bilinear")`, loses most of its second-order terms.

Both autodiff modes read the same rules and agree on the wrong number; central differences of the gradient show it.
Inside `correct_second_derivatives()` the calling thread sees these functions written in plain operations instead.
Outside of it, and in every other thread, TensorFlow is untouched.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import gen_image_ops, nn_impl

_lock = threading.RLock()


@contextlib.contextmanager
def substituted(owner: Any, name: str, replacement: Callable) -> Iterator[None]:
    """Let this thread, and no other, see `replacement` under `owner.name` for the length of the scope.

    Scopes nest. They are entered while a function is traced, so holding the lock costs nothing in a compiled step.

    Args:
        owner: the module or class that holds the function.
        name: the attribute to substitute.
        replacement: called as `replacement(original, *args, **kwargs)`.
    """
    thread = threading.get_ident()
    with _lock:
        original = getattr(owner, name)

        def dispatch(*args, **kwargs):
            if threading.get_ident() == thread:
                return replacement(original, *args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, dispatch)
        try:
            yield
        finally:
            setattr(owner, name, original)


def _moments(original, x, axes, shift=None, name=None, keep_dims=None, keepdims=None):
    """`nn_impl.moments` with a mean that is differentiated through: var = mean((x - mean(x))^2)."""
    del original, shift
    keep = bool(keepdims or keep_dims)
    x = tf.convert_to_tensor(x)
    with tf.name_scope(name or "moments"):
        y = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
        mean = tf.reduce_mean(y, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(y, mean), axes, keepdims=keep)
        mean = mean if keep else tf.squeeze(mean, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def _interpolation(size: int, outputs: int, align_corners: bool, half_pixel_centers: bool) -> np.ndarray:
    """Return the `[outputs, size]` matrix of linear interpolation along one axis, by the kernel's conventions."""
    if align_corners and outputs > 1:
        position = np.arange(outputs) * (size - 1) / (outputs - 1)
    else:
        shift = 0.5 if half_pixel_centers else 0.0
        position = (np.arange(outputs) + shift) * size / outputs - shift
    lower = np.floor(position)
    weight = position - lower
    matrix = np.zeros([outputs, size])
    for index, share in ((lower, 1 - weight), (lower + 1, weight)):
        np.add.at(matrix, (np.arange(outputs), np.clip(index, 0, size - 1).astype(int)), share)
    return matrix


def _resize_bilinear(original, images, size, align_corners=False, half_pixel_centers=False, name=None):
    """`ResizeBilinear` as two products, in the images' own precision; the kernel computes in float32."""
    images, outputs = tf.convert_to_tensor(images), tf.get_static_value(size)
    if outputs is None or not images.shape[1:3].is_fully_defined() or not images.dtype.is_floating:
        return original(images, size, align_corners=align_corners, half_pixel_centers=half_pixel_centers, name=name)
    rows, columns = (
        tf.constant(_interpolation(n, int(m), align_corners, half_pixel_centers), images.dtype)
        for n, m in zip(images.shape[1:3], outputs, strict=True)
    )
    return tf.einsum("ih,bhwc,jw->bijc", rows, images, columns)


@contextlib.contextmanager
def correct_second_derivatives() -> Iterator[None]:
    """Trace a model in this scope and its Hessian-vector products are right."""
    with (
        substituted(nn_impl, "moments", _moments),
        substituted(gen_image_ops, "resize_bilinear", _resize_bilinear),
    ):
        yield
