"""Weight gradients as sums of outer products, and what else makes small nets fast: the same numbers."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import relative_error

import tf_metagrad as mg
from tf_metagrad import _tree
from tf_metagrad._hvp import forward_over_reverse, reverse_over_reverse
from tf_metagrad._short_products import short_products

RNG = np.random.default_rng(0)
SHAPES = {
    "few examples": ((3, 4, 6), (3, 6, 5)),
    "sixteen": ((2, 16, 5), (2, 5, 7)),
    "too many": ((2, 17, 5), (2, 5, 7)),
    "narrow": ((2, 3, 4), (2, 4, 1)),
    "weights shared by the tasks": ((2, 3, 6), (1, 6, 5)),
}


@pytest.mark.parametrize("moving", [[0, 1], [1], [0]])
@pytest.mark.parametrize("mode", [forward_over_reverse, reverse_over_reverse])
@pytest.mark.parametrize("shapes", SHAPES)
def test_gradient_and_hvp_are_those_of_tensorflow(shapes, mode, moving):
    weights = [tf.constant(RNG.normal(size=s)) for s in SHAPES[shapes]]
    vector = [tf.constant(RNG.normal(size=weights[i].shape)) for i in moving]

    def loss(w):
        y = tf.tanh(tf.matmul(*w))
        return tf.reduce_sum(tf.sin(tf.matmul(y, y, transpose_a=True))), y

    results = []
    for scope in (short_products, contextlib.nullcontext):
        with scope():
            traced = tf.function(lambda: mode(loss, weights, moving, vector), autograph=False)
            results.append(traced())
    for found, expected in zip(*(tf.nest.flatten(r) for r in results), strict=True):
        assert relative_error([found], [expected]) < 1e-12


@pytest.mark.parametrize(("examples", "products"), [(16, 0), (17, 1)])
def test_only_sums_of_few_terms_are_rewritten(examples, products):
    def gradient(x, w):
        with short_products():
            with tf.GradientTape() as tape:
                tape.watch(w)
                y = tf.reduce_sum(tf.sin(tf.matmul(x, w)))
            return tape.gradient(y, w)

    specs = [tf.TensorSpec(s) for s in ([3, examples, 6], [3, 6, 5])]
    operations = tf.function(gradient).get_concrete_function(*specs).graph.get_operations()
    transposed = [op for op in operations if op.type == "BatchMatMulV2" and op.get_attr("adj_x")]
    assert len(transposed) == products


def sinusoid_learner(**options) -> mg.MetaLearner:
    keras.utils.set_random_seed(0)
    model = mg.models.mlp(hidden=[12, 12])
    return mg.MetaLearner(model, "mse", mg.inner.GradientDescent(3, 0.05), mg.estimators.MAML(), **options)


def test_small_nets_run_so_under_xla():
    """The meta-gradient is that of the tasks one by one, and no product that sums over the examples is left."""
    tasks = next(iter(mg.data.sinusoid(shots=5, queries=7, meta_batch=6)))
    fast, plain = (sinusoid_learner(**o) for o in ({}, {"execution": "loop", "jit_compile": False}))
    assert relative_error(fast.meta_gradient(tasks)[0], plain.meta_gradient(tasks)[0]) < 1e-5
    program = fast._meta_update.function(fast.estimator).program(
        fast.check_tasks(tasks), tf.constant(0, tf.int64), tf.constant(0), fast.snapshot()
    )
    dots = [line for line in program(stage="optimized_hlo").splitlines() if " dot(" in line]
    assert dots
    assert not [line for line in dots if "[6,12,12]" in line.split(" dot(")[0]]


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.float16, tf.bfloat16])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_finite_is_told_of_the_largest_numbers(dtype, jit_compile):
    largest = tf.fill([2, 3000], dtype.max)
    function = functools.partial(_tree.all_finite, joined=jit_compile)
    finite = tf.function(function, jit_compile=jit_compile)
    assert finite([largest, tf.zeros([2, 1], dtype)])
    assert finite([largest, -largest], True).numpy().tolist() == [True, True]
    for bad in (np.nan, np.inf, -np.inf):
        wrong = tf.tensor_scatter_nd_update(largest, [[1, 7]], [tf.cast(bad, dtype)])
        assert not finite([largest, wrong])
        assert finite([largest, wrong], True).numpy().tolist() == [True, False]


def test_infinities_of_both_signs_are_found():
    assert not _tree.all_finite([tf.constant([np.inf, -np.inf])], joined=True)


def test_a_variable_is_read_as_it_is_now():
    variable = keras.Variable([1.0, 2.0])
    variable.assign([3.0, 4.0])
    assert _tree.read(variable).numpy().tolist() == [3.0, 4.0]
    assert tf.function(lambda: _tree.read(variable))().numpy().tolist() == [3.0, 4.0]
    with keras.StatelessScope([(variable, tf.constant([5.0, 6.0]))]):
        assert _tree.read(variable).numpy().tolist() == [5.0, 6.0]


def test_a_tape_of_the_user_sees_the_weights():
    learner = sinusoid_learner(execution="loop", jit_compile=False)
    tasks = next(iter(mg.data.sinusoid(shots=5, queries=7, meta_batch=2)))
    with tf.GradientTape() as tape:
        result = learner.meta_gradient(tasks)
    through = tape.gradient(result.loss, learner.model.trainable_variables)
    assert relative_error(through, result.gradients) < 1e-5
