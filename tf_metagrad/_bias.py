"""The gradient of a bias by a kernel of its own.

On a CPU TensorFlow fuses the gradients of a convolution's filter and bias where both read the same tensor, into a
kernel that takes up to three times as long as the two of them (first layer of a net on 84x84 images: 25 ms against 8
and 2). Here the bias reads a reshaped tensor, and the kernels stay apart.
"""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import gen_nn_ops

from tf_metagrad._second_order import substituted


def _bias_add(original, value, bias, data_format=None, name=None):
    """`BiasAdd` with that gradient."""
    value, bias = tf.convert_to_tensor(value), tf.convert_to_tensor(bias)
    if data_format not in (None, "NHWC") or (value.shape.rank or 0) < 3 or value.shape[-1] is None:
        return original(value, bias, data_format=data_format, name=name)
    with record.stop_recording():
        y = original(value, bias, name=name)

    def backward(dy):
        return [dy, tf.raw_ops.BiasAddGrad(out_backprop=tf.reshape(dy, [-1, value.shape[-1]]))]

    def forward(value_t, bias_t):
        return [original(value_t, bias_t)]

    record.record_operation("BiasAddApart", [y], [value, bias], backward, forward)
    return y


@contextlib.contextmanager
def separate_bias_gradients() -> Iterator[None]:
    """Trace a model in this scope and the gradients of its biases are not fused with those of its filters."""
    with substituted(gen_nn_ops, "bias_add", _bias_add):
        yield
