"""What benchmarks/precision.py shows as TF32 where no GPU computes in it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from references import relative_error

_spec = importlib.util.spec_from_file_location("tf32", Path(__file__).resolve().parents[1] / "benchmarks" / "tf32.py")
tf32 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tf32)


def rounded(x):
    """Return the number of 11 significant bits that is nearest to x."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.round(mantissa * 2**11), exponent - 11)


def product_of(inner):
    """Return a concrete function of a product and a convolution, their gradients, and calls of functions in a loop."""

    def function(x, w, filters):
        with tf.GradientTape() as tape:
            tape.watch([x, w, filters])
            y = tf.nn.conv2d(x[None, :, :, None], filters, 1, "VALID")
            loss = tf.reduce_sum(inner(x, w) ** 2) + tf.reduce_sum(y**2)
        _, looped = tf.while_loop(lambda i, a: i < 2, lambda i, a: (i + 1, inner(a, w)), (0, x))
        return [y, looped, *tape.gradient(loss, [x, w, filters])]

    shapes = (6, 6), (6, 6), (3, 3, 1, 1)
    return tf.function(function, autograph=False).get_concrete_function(*[tf.TensorSpec(s) for s in shapes])


def by_hand(x, w, filters):
    """Return the results in float64, rounded where TF32 rounds."""
    x, w, f = (np.asarray(a, np.float32) for a in (x, w, filters[:, :, 0, 0]))
    windows = np.lib.stride_tricks.sliding_window_view(rounded(x), (3, 3))
    y, product = np.einsum("abij,ij->ab", windows, rounded(f)), rounded(x) @ rounded(w)
    dy, d = rounded(2 * y), rounded(2 * product)
    dx = d @ rounded(w).T
    for i in range(3):
        for j in range(3):
            dx[i : i + 4, j : j + 4] += dy * rounded(f)[i, j]
    df = np.einsum("abij,ab->ij", windows, dy)
    return [y, rounded(product) @ rounded(w), dx, rounded(x).T @ d, df]


@pytest.mark.parametrize("inside", [False, True])
def test_products_and_their_gradients_are_rounded(inside):
    def inner(x, w):
        return x @ w

    if inside:
        inner = tf.function(inner, autograph=False, experimental_attributes={"_noinline": True})
    rng = np.random.default_rng(0)
    x, w, filters = (rng.normal(size=s).astype("float32") for s in ((6, 6), (6, 6), (3, 3, 1, 1)))
    concrete = product_of(inner)
    arguments = [tf.constant(a) for a in (x, w, filters)]
    found, plain = tf32.in_tf32(concrete, arguments), concrete(*arguments)
    for value, exact, expected in zip(found, plain, by_hand(x, w, filters), strict=True):
        value = np.reshape(value, expected.shape)
        assert relative_error([value], [expected]) < 3e-7
        assert relative_error([np.reshape(exact, expected.shape)], [expected]) > 1e-5


def test_large_operands_stay_what_they_are():
    x = np.array([1e38, -3.4e38, np.inf, 1.5e-38], np.float32)
    concrete = tf.function(lambda x: x[:, None] @ tf.ones([1, 1])).get_concrete_function(tf.TensorSpec([4]))
    (found,) = tf32.in_tf32(concrete, [tf.constant(x)])
    np.testing.assert_allclose(found[:, 0], x, rtol=2.0**-11)


def test_an_einsum_of_one_operand_is_no_product():
    x = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    concrete = tf.function(lambda x: tf.raw_ops.Einsum(inputs=[x], equation="ij->ji"))
    (found,) = tf32.in_tf32(concrete.get_concrete_function(tf.TensorSpec([3, 2])), [tf.constant(x)])
    assert np.array_equal(found, x.T)


@pytest.mark.parametrize("kind", ["captures", "compiled", "calls compiled"])
def test_what_cannot_be_rounded_is_refused(kind):
    variable, compiled = tf.Variable(1.0), tf.function(lambda x: 2 * x, jit_compile=True)
    function = {"captures": lambda x: x * variable, "compiled": compiled, "calls compiled": lambda x: compiled(x)}[kind]
    function = function if kind == "compiled" else tf.function(function)
    with pytest.raises(ValueError, match="without captures"):
        tf32.in_tf32(function.get_concrete_function(tf.TensorSpec(())), [tf.constant(1.0)])
