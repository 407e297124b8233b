"""Operations that TensorFlow vectorises wrongly: as they are task by task, with their derivatives and in a learner."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import relative_error
from test_exactness import check_against_differences

import tf_metagrad as mg
from tf_metagrad._pfor import correct_vectorization

OPERATIONS = {
    "pad": lambda t: tf.pad(t, [[1, 0], [0, 2]], constant_values=-9.0),
    "keras pad": lambda t: keras.ops.pad(t, [[1, 0], [2, 1]], constant_values=2.0),
    "pad with an input": lambda t: tf.pad(t, [[1, 0], [0, 2]], constant_values=t[0, 0]),
    "pad whole numbers": lambda t: tf.cast(tf.pad(tf.cast(9 * t, tf.int32), [[1, 0], [0, 2]], "CONSTANT", 3), t.dtype),
    "roll": lambda t: tf.roll(t, 1, axis=-1),
    "roll two axes": lambda t: tf.roll(t, [1, 2], axis=[-1, 0]),
    "roll by an axis that is computed": lambda t: tf.roll(t, 1, axis=-tf.size(tf.where(tf.range(3) > 1))),
    "keras roll": lambda t: keras.ops.roll(t, 2, axis=-2),
}  # fmt: skip


def tangent(operation):
    """Return what computes the HVP of a sum of sines of the operation's outputs."""

    def product(t):
        v = tf.reshape(tf.cos(tf.range(20, dtype=t.dtype)), [4, 5])
        with tf.autodiff.ForwardAccumulator(t, v) as accumulator:
            with tf.GradientTape() as tape:
                tape.watch(t)
                y = operation(t)
                loss = tf.reduce_sum(
                    tf.sin(y) * tf.reshape(tf.cos(tf.range(y.shape.num_elements(), dtype=y.dtype)), y.shape)
                )
            gradient = tape.gradient(loss, t, unconnected_gradients="zero")
        return gradient, accumulator.jvp(gradient, unconnected_gradients="zero")

    return product


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_each_task(name):
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 4, 5)))

    @tf.function
    def vectorised(function):
        with correct_vectorization():
            return tf.vectorized_map(function, x)

    np.testing.assert_array_equal(vectorised(OPERATIONS[name]), [OPERATIONS[name](t) for t in x])
    product = tangent(OPERATIONS[name])
    if name == "pad with an input":  # TensorFlow's own gradient leaves the constant out
        with correct_vectorization():
            plain = [product(t) for t in x]
    else:
        plain = [product(t) for t in x]
    for ours, others in zip(vectorised(product), zip(*plain, strict=True), strict=True):
        np.testing.assert_allclose(ours, others, atol=1e-14)


def test_axes_that_do_not_exist_are_refused():
    with correct_vectorization(), pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        tf.roll(tf.ones([2, 3]), 1, axis=5)


NETS = {
    "roll": lambda: [layers.Lambda(lambda t: tf.roll(t, 1, axis=-1) * t)],
    "pad": lambda: [layers.Lambda(lambda t: tf.pad(t, [[0, 0], [1, 0], [0, 1]], constant_values=2) ** 2)],
    "max-pooling": lambda: [layers.Lambda(lambda t: t - 1), layers.MaxPooling1D(3, 2, padding="same")],
}


def rolled_loss(y, predictions):
    return tf.reduce_mean((predictions - y) ** 2 * (2 + tf.roll(predictions, 1, axis=-1)), axis=-1)


@pytest.mark.parametrize(
    "kind, loss, jit", [("roll", rolled_loss, True), ("pad", "mse", True), ("max-pooling", "mse", False)]
)
def test_vectorised_tasks_equal_looped_ones_and_central_differences(kind, loss, jit, float64):
    net = [layers.Dense(6, "tanh"), *NETS[kind](), layers.Flatten(), layers.Dense(2)]
    model, rng = keras.Sequential([keras.Input((5, 3)), *net]), np.random.default_rng(1)
    tasks = mg.Task(*(rng.normal(size=(2, 4, *shape)) for shape in ((5, 3), (2,)) * 2))
    results = []
    for execution, compiled in (("loop", False), ("vectorize", jit)):
        inner = mg.inner.GradientDescent(2, 0.02)
        learner = mg.MetaLearner(model, loss, inner, execution=execution, jit_compile=compiled)
        found = learner.meta_gradient(tasks)
        results.append(np.concatenate([[found.loss], *(np.ravel(g) for g in found.gradients)]))
    assert relative_error(*results[::-1]) < 1e-12
    check_against_differences(learner, tasks, 1e-7, 1e-6)  # max-pooling has kinks
