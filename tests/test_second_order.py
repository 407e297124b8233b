"""HVPs through every kind of Keras layer equal central differences of the gradient, in float64 and graph mode."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import ravel
from tensorflow.python.ops import gen_image_ops

from tf_metagrad._hvp import forward_over_reverse, reverse_over_reverse
from tf_metagrad._model import FunctionalModel
from tf_metagrad._second_order import correct_second_derivatives
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._vectorize import vectorizable_convolutions


def stack(shape, *body):
    return keras.Sequential([keras.Input(shape), *body, layers.Flatten(), layers.Dense(3)])


def attention():
    x = start = keras.Input((5, 4))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(start, layers.Dense(3)(layers.Flatten()(x)))


def branch(x):
    return tf.cond(tf.reduce_sum(x * x) > 0, lambda: tf.sin(x), lambda: x * x)


class FusedBatchNorm(layers.Layer):
    """A user's layer around TensorFlow's fused kernel, which computes in float32 only."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", dtype="float32")

    def call(self, x):
        zeros = tf.zeros_like(self.scale)
        y, *_ = tf.compat.v1.nn.fused_batch_norm(tf.cast(x, tf.float32), tf.convert_to_tensor(self.scale), zeros)
        return tf.cast(y, x.dtype)


IMAGE, SEQUENCE, VECTOR = (6, 6, 2), (5, 3), (6,)
FORWARD = {
    "Dense": lambda: stack(VECTOR, layers.Dense(5, "tanh")),
    "Conv1D": lambda: stack((8, 2), layers.Conv1D(3, 3, activation="tanh")),
    "Conv2D": lambda: stack(IMAGE, layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh")),
    "Conv3D": lambda: stack((4, 4, 4, 2), layers.Conv3D(3, 2, activation="tanh")),
    "DepthwiseConv2D": lambda: stack(IMAGE, layers.DepthwiseConv2D(3, activation="tanh")),
    "SeparableConv2D": lambda: stack(IMAGE, layers.SeparableConv2D(4, 3, activation="tanh")),
    "Conv2DTranspose": lambda: stack((4, 4, 2), layers.Conv2DTranspose(3, 3, strides=2, activation="tanh")),
    "BatchNormalization": lambda: stack(IMAGE, layers.Conv2D(3, 3), layers.BatchNormalization(), layers.ReLU()),
    "LayerNormalization": lambda: stack(VECTOR, layers.Dense(5), layers.LayerNormalization()),
    "GroupNormalization": lambda: stack(IMAGE, layers.Conv2D(4, 3), layers.GroupNormalization(2)),
    "RMSNormalization": lambda: stack(VECTOR, layers.Dense(5), layers.RMSNormalization()),
    "UnitNormalization": lambda: stack(VECTOR, layers.Dense(5), layers.UnitNormalization()),
    "MaxPooling2D": lambda: stack(IMAGE, layers.Conv2D(3, 3, activation="tanh"), layers.MaxPooling2D(2)),
    "AveragePooling2D": lambda: stack(IMAGE, layers.Conv2D(3, 3, activation="tanh"), layers.AveragePooling2D(2)),
    "MultiHeadAttention": attention,
    "bilinear UpSampling2D": lambda: stack(
        (4, 4, 2), layers.Conv2D(2, 3, activation="tanh"), layers.UpSampling2D(interpolation="bilinear")
    ),
    "Embedding": lambda: stack((5,), layers.Embedding(7, 4), layers.Dense(3, "tanh")),
    "Dropout": lambda: stack(VECTOR, layers.Dense(8, "tanh"), layers.Dropout(0.4, seed=3)),
    "Regularizer": lambda: stack(VECTOR, layers.Dense(5, "tanh", kernel_regularizer=keras.regularizers.L2(0.3))),
}
REVERSE = {
    "LSTM": lambda: stack(SEQUENCE, layers.LSTM(4)),
    "GRU": lambda: stack(SEQUENCE, layers.GRU(4)),
    "tf.cond": lambda: stack(VECTOR, layers.Dense(5), layers.Lambda(branch)),
    "Bidirectional": lambda: stack(SEQUENCE, layers.Bidirectional(layers.SimpleRNN(4))),
}


def problem(model, embedding=False, examples=4):
    rng = np.random.default_rng(0)
    shape = (examples, *model.input_shape[1:])
    x = rng.integers(0, 7, shape) if embedding else rng.normal(size=shape)
    y = rng.integers(0, 3, examples)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    functions = TaskFunctions(FunctionalModel(model, loss, "batch"), list(range(len(model.trainable_variables))))
    weights = [tf.constant(v.numpy() + 0.1 * rng.normal(size=v.shape), v.dtype) for v in model.trainable_variables]
    direction = [tf.constant(rng.normal(size=w.shape), w.dtype) for w in weights]
    state = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]
    return functions, weights, state, x, y, direction


def difference(functions, weights, state, x, y, direction, step=1e-5):
    """Return the central difference of the gradient along `direction`."""

    def gradient(t):
        moved = [w + t * d for w, d in zip(weights, direction, strict=True)]
        return ravel(functions.support_gradient(moved, state, x, y, tuple(range(len(weights))))[3])

    return (gradient(step) - gradient(-step)) / (2 * step)


@pytest.mark.parametrize("name", [*FORWARD, *REVERSE])
def test_hvp_equals_central_differences(float64, name):
    parts = problem((FORWARD | REVERSE)[name](), embedding=name == "Embedding")
    gradient, hvp, *_ = parts[0].curvature(*parts[1:])
    reference = difference(*parts)
    assert np.linalg.norm(ravel(hvp) - reference) < 1e-6 * np.linalg.norm(reference)
    assert parts[0].hvp.mode is (forward_over_reverse if name in FORWARD else reverse_over_reverse)
    assert np.allclose(
        ravel(gradient), ravel(parts[0].support_gradient(*parts[1:5], tuple(range(len(gradient))))[3]), atol=1e-12
    )
    found = cut_in_two(*parts)
    assert np.allclose(ravel(found[0]), ravel(gradient), rtol=0, atol=1e-12)
    for factor, product in zip((1.0, -2.0), found[1:], strict=True):
        assert np.linalg.norm(ravel(product) - factor * reference) < 1e-6 * np.linalg.norm(factor * reference)


def cut_in_two(functions, weights, state, x, y, direction):
    """Return the gradient, and two HVPs along the direction and -2 times it that share its activations."""
    moving, fixed = (weights, state), ([], tf.convert_to_tensor(x), tf.convert_to_tensor(y))
    parts = functions.linearization(moving, fixed, asked=True)
    (gradient, *_), activations = parts.once(moving, fixed)
    vectors = [[factor * d for d in direction] for factor in (1.0, -2.0)]
    return gradient, *(parts.product(activations, moving, fixed, vector) for vector in vectors)


@pytest.mark.parametrize("name", ["BatchNormalization", "LayerNormalization", "GroupNormalization"])
def test_the_correction_is_needed_here(float64, name):
    """Without the scope TensorFlow's second derivatives are off: if this fails, TensorFlow was mended."""
    parts = problem(FORWARD[name]())
    model, weights = parts[0].model.model, parts[1]

    def loss_fn(w):
        y, _ = model.stateless_call(w, parts[2], parts[3], training=True)
        return parts[0].model.loss_fn(parts[4], y), None

    _, hvp, _ = tf.function(lambda: reverse_over_reverse(loss_fn, weights, range(len(weights)), parts[5]))()
    reference = difference(*parts)
    wrong = np.linalg.norm(ravel(hvp) - reference) / np.linalg.norm(reference)
    assert wrong > 1e-3


def test_fused_batch_norm_of_a_user():
    """The kernel is float32 only, and so are its differences."""
    model = stack((2, 2, 2), layers.Conv2D(3, 1), FusedBatchNorm(), layers.Activation("tanh"))
    parts = problem(model, examples=2)  # few: what is lost would be in proportion to 1 / (n - 1)
    _, hvp, *_ = parts[0].curvature(*parts[1:])
    reference = difference(*parts, step=1e-2)
    assert np.linalg.norm(ravel(hvp) - reference) < 5e-3 * np.linalg.norm(reference)


def test_corrected_functions_keep_their_values(float64):
    x = tf.random.stateless_normal([5, 3, 4], seed=[0, 1], dtype=tf.float64)
    for axes, keepdims in (([0], False), ([0, 1], True), ([-1], False)):
        plain = tf.nn.moments(x, axes, keepdims=keepdims)
        with correct_second_derivatives():
            ours = tf.nn.moments(x, axes, keepdims=keepdims)
        assert all(np.allclose(a, b, atol=1e-14) and a.shape == b.shape for a, b in zip(plain, ours, strict=True))


@pytest.mark.parametrize("options", [{}, {"half_pixel_centers": True}, {"align_corners": True}], ids=str)
def test_bilinear_resize_keeps_its_values(options):
    images = tf.random.stateless_normal([2, 5, 4, 3], seed=[0, 3])
    for size in ([10, 8], [3, 7], [1, 1]):
        plain = tf.raw_ops.ResizeBilinear(images=images, size=size, **options)
        with correct_second_derivatives():
            ours = gen_image_ops.resize_bilinear(images, size, **options)
        assert np.allclose(ours, plain, atol=1e-5)


def test_tensorflow_and_keras_are_left_as_they_were():
    from tensorflow.python.ops import nn_impl

    def functions():
        return nn_impl.moments, gen_image_ops.resize_bilinear, layers.BatchNormalization.call

    before, seen = functions(), {}
    x = tf.constant([[1.0], [3.0]])

    def elsewhere():
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                variance = tf.nn.moments(x, [0])[1]
            gradient = inner.gradient(variance, x)
        seen["jacobian"] = outer.jacobian(gradient, x)

    with correct_second_derivatives():
        assert nn_impl.moments is not before[0]
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert functions() == before
    assert np.allclose(np.reshape(seen["jacobian"], (2, 2)), np.eye(2))  # TensorFlow's own, wrong rule: I, not I - 1/n
    with pytest.raises(RuntimeError), correct_second_derivatives():
        raise RuntimeError
    assert functions() == before


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolution_as_patches(rank, padding):
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(2, *(9, 8, 7)[:rank], 3))
    kernel = (3, 2, 3)[:rank]
    for strides, dilations, groups in ((1, 1, 1), (2, 1, 1), (3, 1, 1), (1, 2, 1), (2, 1, 3)):
        if groups > 1 and rank == 3:
            continue  # TensorFlow has no grouped 3D convolution to compare with
        filters = rng.normal(size=(*kernel, 3 // groups, 6))
        plain = tf.nn.convolution(x, filters, strides, padding.upper(), dilations=dilations)
        with vectorizable_convolutions():
            ours = tf.nn.convolution(x, filters, strides, padding.upper(), dilations=dilations)
        assert ours.shape == plain.shape and np.allclose(ours, plain, atol=1e-12)
