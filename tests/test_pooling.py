"""Max-pooling by slices has the values and derivatives of TensorFlow's kernel, the first of equal inputs included."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tf_metagrad._hvp import forward_over_reverse
from tf_metagrad._pooling import sliced_max_pooling


def derivatives(model, x, vector, scope):
    """Return the types of operations of a gradient and a product with the Hessian, and both."""
    weights = [tf.convert_to_tensor(v) for v in model.trainable_variables]

    @tf.function(autograph=False)
    def function():
        def loss(w):
            with scope():
                return tf.reduce_mean(model.stateless_call(w, [], x, training=True)[0] ** 4), None

        return forward_over_reverse(loss, weights, range(len(weights)), vector)[:2]

    found = [t.numpy() for t in tf.nest.flatten(function())]
    return {op.type for op in function.get_concrete_function().graph.get_operations()}, found


@pytest.mark.parametrize(
    ("shape", "pool", "sliced"),
    [
        ((7, 6, 2), layers.MaxPooling2D(2), True),
        ((6, 4, 2), layers.MaxPooling2D(2, padding="same"), True),
        ((9, 2), layers.MaxPooling1D(3), True),
        ((7, 7, 2), layers.MaxPooling2D(2, padding="same"), False),
        ((6, 6, 2), layers.MaxPooling2D(3, strides=1), False),
        ((6, 6, 2), layers.MaxPooling2D(6), False),
    ],
)
def test_slices_pool_as_the_kernel_does(shape, pool, sliced):
    rng = np.random.default_rng(0)
    convolution = (layers.Conv1D if len(shape) == 2 else layers.Conv2D)(3, 1, use_bias=False)
    model = keras.Sequential(
        [keras.Input(shape), convolution, layers.ReLU(), pool, layers.Activation("tanh"), layers.Flatten()]
    )
    model.layers[0].set_weights([rng.integers(-1, 2, model.layers[0].kernel.shape)])  # whole numbers: many are equal
    x = tf.constant(rng.integers(-1, 2, (4, *shape)), tf.float32)
    vector = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in model.trainable_variables]
    _, expected = derivatives(model, x, vector, contextlib.nullcontext)
    kinds, found = derivatives(model, x, vector, sliced_max_pooling)
    assert ("MaxPool" not in kinds) == sliced
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[0]).max() > 0
