"""Matrix products and bias gradients of nets that run without XLA: the same numbers as TensorFlow's."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from references import relative_error

from tf_metagrad._bias import separate_bias_gradients
from tf_metagrad._hvp import forward_over_reverse, reverse_over_reverse
from tf_metagrad._products import fast_products

RNG = np.random.default_rng(0)
CASES = {
    "attention scores": (lambda a, b: tf.einsum("BTNH,BSNH->BNTS", a, b), (2, 5, 3, 4), (2, 6, 3, 4)),
    "attention values": (lambda a, b: tf.einsum("BNTS,BSNH->BTNH", a, b), (2, 3, 5, 6), (2, 6, 3, 4)),
    "projection": (lambda a, b: tf.einsum("abc,cde->abde", a, b), (2, 3, 4), (4, 5, 6)),
    "outer": (lambda a, b: tf.einsum("a,b->ba", a, b), (3,), (4,)),
    "summed alone": (lambda a, b: tf.einsum("abc,bd->ad", a, b), (2, 3, 4), (3, 5)),
    "three": (lambda a, b: tf.einsum("ab,bc,cd->ad", a, b, tf.transpose(b)), (2, 3), (3, 4)),
    "broadcast": (lambda a, b: tf.einsum("...ab,bc->...ac", a, b), (2, 3, 4), (4, 5)),
    "matrix": (lambda a, b: tf.matmul(a, b), (2, 3, 4, 5), (5, 6)),
    "transposed matrix": (lambda a, b: tf.matmul(a, b, transpose_b=True), (2, 4, 5), (6, 5)),
    "adjoint batch": (lambda a, b: tf.matmul(a, b, transpose_a=True), (2, 5, 4), (5, 6)),
    "bias": (lambda a, b: tf.nn.bias_add(a, b), (2, 3, 4, 5), (5,)),
    "bias of a matrix": (lambda a, b: tf.nn.bias_add(a, b), (2, 5), (5,)),
}


@pytest.mark.parametrize("mode", [forward_over_reverse, reverse_over_reverse])
@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_hvp_are_those_of_tensorflow(name, mode):
    function, *shapes = CASES[name]
    weights, vector = ([tf.constant(RNG.normal(size=s)) for s in shapes] for _ in range(2))

    def loss(w):
        y = function(*w)
        return tf.reduce_sum(tf.sin(y)), y

    @contextlib.contextmanager
    def fast():
        with fast_products(), separate_bias_gradients():
            yield

    results = []
    for scope in (fast, contextlib.nullcontext):
        with scope():
            traced = tf.function(lambda: mode(loss, weights, [0, 1], vector), autograph=False)
            results.append(traced())
    for found, expected in zip(*(tf.nest.flatten(r) for r in results), strict=True):
        assert relative_error([found], [expected]) < 1e-12


@pytest.mark.parametrize("transposed", ["transpose_b", "adjoint_b"])
def test_complex_matrices_are_conjugated_where_tensorflow_does(transposed):
    a, b = (tf.complex(*RNG.normal(size=(2, *s))) for s in ((2, 3, 4), (5, 4)))
    with fast_products():
        found = tf.matmul(a, b, **{transposed: True})
    np.testing.assert_allclose(found, tf.matmul(a, b, **{transposed: True}), rtol=1e-12)


def test_edges_are_those_of_tensorflow():
    a, matrix = tf.ones([2, 3]), np.arange(12.0).reshape(3, 4)  # float64, beside float32
    with fast_products(), separate_bias_gradients():
        assert tf.matmul(tf.ones([2, 0, 4]), tf.ones([4, 5])).shape == (2, 0, 5)
        np.testing.assert_allclose(tf.einsum("ij,jk->ki", a, matrix), tf.matmul(matrix.T, np.ones([3, 2])))
        with pytest.raises(tf.errors.InvalidArgumentError):
            tf.einsum("ijk,ijl->kl", tf.ones([2, 3, 4]), tf.ones([3, 2, 5]))
        unknown = tf.function(tf.nn.bias_add, input_signature=[tf.TensorSpec(None), tf.TensorSpec([4])])
        assert unknown(tf.ones([2, 4]), tf.ones([4])).shape == (2, 4)


def test_the_gradients_of_filter_and_bias_stay_apart():
    """Their fused kernel is slower than the two; fusing needs the bias gradient to read what the filter's reads."""
    x, w, b = (tf.constant(RNG.normal(size=s), tf.float32) for s in ((2, 6, 6, 3), (3, 3, 3, 4), (4,)))

    def gradients():
        with separate_bias_gradients(), tf.GradientTape() as tape:
            tape.watch([w, b])
            y = tf.nn.bias_add(tf.nn.conv2d(x, w, 1, "SAME"), b)
        return tape.gradient(y, [w, b], tf.tanh(y))

    operations = tf.function(gradients).get_concrete_function().graph.get_operations()
    sources = {op.type: op.inputs[-1].op for op in operations if op.type in ("BiasAddGrad", "Conv2DBackpropFilter")}
    assert sources["BiasAddGrad"].type == "Reshape"
