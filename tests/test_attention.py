"""Attention with derivatives of its own: the same numbers as TensorFlow's, in fewer passes over its maps."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tf_metagrad as mg
from tf_metagrad._attention import attention, fast_attention
from tf_metagrad._hvp import forward_over_reverse, reverse_over_reverse

RNG = np.random.default_rng(0)
SHAPES = {
    "self": [(2, 3, 5, 4)] * 3,
    "other lengths": [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)],
    "one source": [(1, 2, 3, 4), (1, 2, 1, 4), (1, 2, 1, 4)],
}


def compare(loss, weights, wrt, mode, scope):
    """Compare loss, gradient and HVP in the scope with those outside of it."""
    vector = [tf.constant(RNG.normal(size=weights[i].shape)) for i in wrt]
    results = []
    for own in (scope, contextlib.nullcontext):
        with own():
            results.append(tf.function(lambda: mode(loss, weights, wrt, vector), autograph=False)())
    for found, expected in zip(*(tf.nest.flatten(r) for r in results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)  # some are zero


@pytest.mark.parametrize("wrt", [[0, 1, 2], [0], [1], [2]])
@pytest.mark.parametrize("mode", [forward_over_reverse, reverse_over_reverse])
@pytest.mark.parametrize("name", SHAPES)
def test_gradient_and_hvp_are_those_of_tensorflow(name, mode, wrt):
    weights = [tf.constant(RNG.normal(size=shape)) for shape in SHAPES[name]]
    using = []

    def loss(w):
        o = attention(*w) if using else tf.matmul(tf.nn.softmax(tf.matmul(w[0], w[1], transpose_b=True)), w[2])
        return tf.reduce_sum(tf.sin(3 * o)), o

    @contextlib.contextmanager
    def own():
        using.append(True)
        yield
        using.pop()

    compare(loss, weights, wrt, mode, own)


@pytest.mark.parametrize("mode", [forward_over_reverse, reverse_over_reverse])
@pytest.mark.parametrize("options", [{}, {"use_causal_mask": True}, {"mask": True}], ids=str)
@pytest.mark.parametrize(
    "layer",
    [lambda: layers.MultiHeadAttention(2, 3, dtype="float64"),
     lambda: layers.GroupQueryAttention(3, 4, 2, dtype="float64")],
    ids=["multi-head", "grouped"],
)  # fmt: skip
def test_layers_of_keras(layer, options, mode):
    options = dict(options)
    if options.pop("mask", None):
        options["attention_mask"] = np.array([[[1, 0, 1, 1]] * 4] * 2, bool)
    net, x = layer(), tf.constant(RNG.normal(size=(2, 4, 5)))
    net(x, x)
    weights = [tf.convert_to_tensor(v) for v in net.trainable_variables]

    def loss(w):
        y, _ = net.stateless_call(w, net.non_trainable_variables, x, x, **options)
        return tf.reduce_sum(tf.sin(y)), y

    compare(loss, weights, list(range(len(weights))), mode, fast_attention)


def test_what_it_does_not_know_is_left_to_keras():
    q, k = tf.ones([2, 4, 2, 3], tf.float16), tf.ones([2, 4, 2, 3], tf.float16)
    with fast_attention():
        assert ops.dot_product_attention(q, k, k).dtype == "float16"
        with pytest.raises(ValueError, match="4D"):
            ops.dot_product_attention(q[0], k[0], k[0])


def test_its_maps_are_passed_over_a_few_times():
    """Operations with an output of the maps' shape: four products, a softmax, and five passes."""
    q, k, v = (tf.TensorSpec([2, 3, 50, 4], tf.float64) for _ in range(3))

    def hvp(*weights):
        return forward_over_reverse(lambda w: (tf.reduce_sum(attention(*w) ** 2), 0), weights, [0, 1, 2], weights)

    operations = tf.function(hvp).get_concrete_function(q, k, v).graph.get_operations()
    maps = [op.type for op in operations if op.outputs and op.outputs[0].shape[-2:] == (50, 50)]
    assert sorted(maps) == ["AddV2"] + ["BatchMatMulV2"] * 4 + ["Mul"] * 4 + ["Softmax"]


def test_a_learner_uses_them_forward_over_reverse():
    """HVPs that cannot be had so are taken by reverse over reverse in silence: it must not come to that."""
    x = start = keras.Input((4, 4))
    model = keras.Model(start, layers.Dense(3)(layers.Flatten()(x + layers.MultiHeadAttention(2, 3)(x, x))))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(2, 0.1))
    data, labels = RNG.normal(size=(2, 3, 4, 4)), np.tile([0, 1, 2], (2, 1))
    learner.meta_gradient(mg.Task(data, labels, data, labels))
    (functions,) = learner._runner._functions.values()
    assert functions.model.fused and functions.hvp.mode is forward_over_reverse
