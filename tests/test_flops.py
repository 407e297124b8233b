"""What benchmarks/efficiency.py counts: products in loops, calls and gradients, and none that nothing reads."""

import importlib.util
from pathlib import Path

import pytest
import tensorflow as tf

_spec = importlib.util.spec_from_file_location("flops", Path(__file__).resolve().parents[1] / "benchmarks" / "flops.py")
flops = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(flops)


def concrete(function):
    return tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([3, 3]))


def test_products_are_counted_as_often_as_they_run():
    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def both(x):
        return x @ x, tf.sin(x) @ x

    def function(x):
        tf.cos(x) @ x
        loops = [tf.while_loop(lambda x: True, lambda x: (both(x)[0],), (x,), maximum_iterations=n)[0] for n in (2, 5)]
        image = tf.reshape(x, [1, 3, 3, 1])
        return *loops, tf.nn.conv2d(image, tf.ones([2, 2, 1, 4]), 1, "VALID")

    found = flops.count(concrete(function))
    assert {p.kind: (n, p.flops) for p, n in found.items()} == {
        "MatMul": (2 + 5, 2 * 3 * 3 * 3),
        "Conv2D": (1, 2 * 2 * 2 * 4 * 2 * 2),
    }


def test_a_loop_without_a_number_is_refused():
    def function(x):
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 9, lambda x: (x @ x,), (x,))[0]

    with pytest.raises(ValueError, match="must have a constant largest number of trips"):
        flops.count(concrete(function))
