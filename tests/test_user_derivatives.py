"""Layers that differentiate, or vectorise, attention, batch normalisation and biases themselves lose no terms."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tf_metagrad as mg
from tf_metagrad import _model
from tf_metagrad._hvp import forward_over_reverse
from tf_metagrad._user_derivatives import differentiates, user_derivatives

RNG = np.random.default_rng(0)


def attention(q, k, v):
    return ops.dot_product_attention(q, k, v)


def batch_norm(dtype):
    net = layers.BatchNormalization(dtype=dtype)
    net.build((None, 2, 2, 4))
    state = [tf.convert_to_tensor(v) for v in net.non_trainable_variables]
    return lambda x, scale, offset: net.stateless_call([scale, offset], state, x, training=True)[0]


def convolution(dtype):
    net = layers.Conv2D(4, 2, dtype=dtype)
    net.build((None, 3, 3, 4))
    return lambda x, kernel, bias: net.stateless_call([kernel, bias], [], x)[0]


def jacobian(function, x, *rest):
    with tf.GradientTape() as tape:
        tape.watch(x)
        few = tf.reshape(tf.sin(function(x, *rest)), [x.shape[0], -1])[:, :3]
    return tape.batch_jacobian(few, x)


def jvp(function, x, *rest):
    with tf.autodiff.ForwardAccumulator(x, tf.cos(x)) as accumulator:
        y = tf.sin(function(x, *rest))
    return accumulator.jvp(y)


def force(function, x, *rest):
    with tf.GradientTape() as tape:
        tape.watch(x)
        energy = tf.reduce_sum(tf.sin(function(x, *rest)) ** 2)
    return tape.gradient(energy, x)


def mapped(function, q, k, v):
    return tf.vectorized_map(lambda one: function(q[:1], k[:1], one[None]), v)


CASES = {
    "attention": (lambda dtype: attention, [(2, 5, 2, 3)] * 3, "float64", (jacobian, jvp, force, mapped)),
    "batch norm": (batch_norm, [(5, 2, 2, 4), (4,), (4,)], "float32", (jacobian, jvp, force)),
    "convolution": (convolution, [(2, 3, 3, 4), (2, 2, 4, 4), (4,)], "float64", (jacobian, jvp, force)),
}


@pytest.mark.parametrize("name, use", [(name, use) for name, case in CASES.items() for use in case[3]])
def test_gradient_and_hvp_are_those_without_own_kernels(name, use):
    make, shapes, dtype, _ = CASES[name]
    numbers, moves = ([RNG.normal(size=shape) for shape in shapes] for _ in range(2))
    results = []
    for scope, kind in ((_model.fast_kernels, dtype), (contextlib.nullcontext, "float64")):
        function = make(kind)
        weights, vector = ([tf.constant(x, kind) for x in part] for part in (numbers, moves))

        def loss(w):
            with _model.correct_second_derivatives(), scope():  # noqa: B023
                return tf.reduce_sum(tf.sin(3 * use(function, *w))), 0  # noqa: B023

        @functools.partial(tf.function, autograph=False)
        def hvp(*w):
            return forward_over_reverse(loss, w, [0, 1, 2], vector)[:2]  # noqa: B023

        results.append(hvp(*weights))
        if kind == "float64":
            step = 1e-5
            ahead, behind = (hvp(*(w + s * v for w, v in zip(weights, vector, strict=True)))[0] for s in (step, -step))
            for a, b, product in zip(ahead, behind, results[-1][1], strict=True):
                np.testing.assert_allclose(product, (a - b) / (2 * step), atol=1e-6 * np.abs(product).max() + 1e-9)
    tolerance = {"float64": 1e-11, "float32": 2e-4}[dtype]
    for found, expected in zip(*(tf.nest.flatten(r) for r in results), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max() + 1e-12)


def test_own_kernels_come_back_after_a_tape_and_in_other_threads_tapes_do_not_count():
    x = tf.constant([1.0])
    with tf.GradientTape() as around, user_derivatives():
        around.watch(x)
        assert not differentiates()
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            assert differentiates()
            with tape.stop_recording():
                assert not differentiates()
            with user_derivatives():
                assert not differentiates()
            assert differentiates()
        assert not differentiates()
        with pytest.raises(ZeroDivisionError), tf.autodiff.ForwardAccumulator(x, x):
            assert differentiates()
            raise ZeroDivisionError
        assert not differentiates()
        tf.vectorized_map(lambda e: e if differentiates() else 1 / 0, tf.ones([2, 1]))
        assert not differentiates()


@keras.saving.register_keras_serializable(package="test_user_derivatives")
class Temperature(layers.Layer):
    """Attention with a learned scale for each head."""

    def build(self, shape):
        self.t = self.add_weight(shape=(2, 1, 1), initializer=keras.initializers.RandomUniform(0.5, 2.0, seed=1))

    def call(self, x):
        q, k, v = (ops.reshape(x[..., i::3], (-1, x.shape[1], 2, 2)) for i in range(3))
        return ops.dot_product_attention(q, k, v, scale=self.t)


@pytest.mark.parametrize("length", [2, 5])
def test_a_scale_for_each_head_is_that_of_keras(float64, length):
    x = start = keras.Input((length, 12))
    model = keras.Model(start, layers.Dense(3)(layers.Flatten()(Temperature()(x))))
    loss, inner = keras.losses.SparseCategoricalCrossentropy(from_logits=True), mg.inner.GradientDescent(2, 0.1)
    data, labels = RNG.normal(size=(2, 3, length, 12)), np.tile([0, 1, 2], (2, 1))
    found = []
    for way in ("loop", "vectorize"):
        learner = mg.MetaLearner(model, loss, inner, mg.estimators.MAML(), execution=way, jit_compile=False)
        found.append(learner.meta_gradient(mg.Task(data, labels, data, labels))[:2])
    for a, b in zip(*(tf.nest.flatten(f) for f in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_keys_of_another_batch_are_refused_as_by_keras():
    q, k = tf.ones([1, 4, 2, 3]), tf.ones([2, 4, 2, 3])
    with _model.fast_kernels(), pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        ops.dot_product_attention(q, k, k)
