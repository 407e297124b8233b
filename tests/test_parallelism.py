"""In a compiled step no loop over tasks or over parallel HVPs is left, read from the program that XLA gets."""

import contextlib
import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import relative_error

import tf_metagrad as mg
from tf_metagrad._max_pool import plain_max_pooling
from tf_metagrad._vectorize import vectorizable_convolutions

_spec = importlib.util.spec_from_file_location(
    "hlo_graph", Path(__file__).resolve().parents[1] / "benchmarks" / "hlo_graph.py"
)
hlo_graph = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hlo_graph)
K = 3


def learner_of(model, estimator, execution="vectorize", jit_compile=True):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inner = mg.inner.GradientDescent(K, 0.1)
    if isinstance(estimator, mg.estimators.FOBMAML):
        inner = mg.inner.ProximalGradientDescent(K, 0.1, weight=1.0)
    return mg.MetaLearner(model, loss, inner, estimator, execution=execution, jit_compile=jit_compile)


def tasks_of(model, count=2):
    images = np.random.default_rng(0).normal(size=(count, 9, *model.input_shape[1:]))
    labels = np.tile([0, 1, 2], (count, 1)), np.tile([0, 1, 2, 0, 1, 2], (count, 1))
    return mg.Task(images[:, :3], labels[0], images[:, 3:], labels[1])


def at_stage(learner, stage):
    """Return XLA's program of the learner's step."""
    tasks = learner.check_tasks(tasks_of(learner.model))
    arguments = (tasks, tf.constant(0, tf.int64), tf.constant(0), learner.snapshot())
    return learner._meta_update.function(learner.estimator).program(*arguments)(stage=stage)


def program(learner):
    """Return what is in the learner's compiled step."""
    return hlo_graph.read(at_stage(learner, "hlo_serialized"))


def small():
    body = [layers.Conv2D(2, 3, activation="tanh"), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), *body])


def test_reader():
    """Three trips of two products in a row and one beside them; then one more."""

    def function(x):
        _, x, y = tf.while_loop(
            lambda i, x, y: i < 3,
            lambda i, x, y: (i + 1, x @ tf.sin(x @ x), y + x @ y),
            (0, x, x),
            maximum_iterations=9,
        )
        return (x + y) @ x

    x = tf.eye(2)
    found = hlo_graph.read(hlo_graph.compiled(tf.function(function, autograph=False, jit_compile=True), x))
    assert found == hlo_graph.Program([hlo_graph.Loop(0, 3, 3)], heavy=10, critical=7, host=[])


def test_reader_of_loops_that_do_not_run_or_that_the_data_ends():
    def none(x):
        return tf.while_loop(lambda i, x: i < 0, lambda i, x: (i + 1, x @ x), (0, x))[1]

    def some(x):
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 9, lambda x: (x @ x,), (x,))[0]

    def asked(x):
        condition = lambda i, x: (i < 3) & (tf.reduce_sum(x @ x) < 9)  # noqa: E731
        return tf.while_loop(condition, lambda i, x: (i + 1, x @ tf.sin(x)), (0, x), maximum_iterations=3)[1]

    found = []
    for function in (none, some, asked):
        compiled = tf.function(function, autograph=False, jit_compile=True)
        found.append(hlo_graph.read(hlo_graph.compiled(compiled, tf.eye(2))))
    assert [(p.loops[0].trips, p.heavy) for p in found] == [(0, 0), (None, 1), (3, 3 + 4)]


def test_parallel_hvps_and_tasks():
    """The only loops are the K inner steps and, for MAML and TruncMAML, the steps back; a row of HVPs is L long."""
    model = small()
    found = {
        text: program(learner_of(model, mg.estimators.parse(text)))
        for text in ("FOMAML", "TruncMAML(2)", "BinomMAML(2)", "MAML")
    }
    trips = {text: [(loop.depth, loop.trips) for loop in p.loops] for text, p in found.items()}
    assert trips == {
        "FOMAML": [(0, K)],
        "TruncMAML(2)": [(0, K - 2), (0, 2), (0, 2)],
        "BinomMAML(2)": [(0, K)],
        "MAML": [(0, K), (0, K)],
    }
    assert all(p.host == [] for p in found.values())
    row, operations = (
        {text: getattr(p, name) - getattr(found["FOMAML"], name) for text, p in found.items()}
        for name in ("critical", "heavy")
    )
    hvp = row["MAML"] // K  # the longest row of one
    assert row == {"FOMAML": 0, "TruncMAML(2)": 2 * hvp, "BinomMAML(2)": 2 * hvp, "MAML": K * hvp}
    assert operations["BinomMAML(2)"] == operations["TruncMAML(2)"]  # as many HVPs, those of a level in one
    assert operations["TruncMAML(2)"] * K == operations["MAML"] * 2


@pytest.mark.parametrize(
    "text, execution",
    [
        ("TruncMAML(2)", "vectorize"), ("BinomMAML(2)", "vectorize"), ("BinomMAML(2)", "map"),
        ("ESMAML(2)", "vectorize"), ("MAML(step_weights=(0.2, 0.3, 0.5))", "vectorize"), ("FOBMAML", "vectorize"),
        ("FOBMAML('tangent')", "vectorize"),
    ],
)  # fmt: skip
def test_xla_knows_the_trips(text, execution):
    """A GPU asks the host before each trip of a loop whose number XLA does not know."""
    learner = learner_of(small(), mg.estimators.parse(text), execution)
    loops = [line for line in at_stage(learner, "optimized_hlo").splitlines() if " while(" in line]
    assert loops and all('"known_trip_count"' in line for line in loops)


def test_what_nothing_reads_is_not_counted():
    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def both(x):
        return x @ x, tf.sin(x) @ x

    def function(x):
        tf.cos(x) @ x
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 9, lambda x: (both(x)[0],), (x,))[0]

    compiled = tf.function(function, autograph=False, jit_compile=True)
    assert hlo_graph.read(hlo_graph.compiled(compiled, tf.eye(2))).heavy == 1


def test_loop_over_tasks_is_seen():
    found = program(learner_of(small(), mg.estimators.FOMAML(), execution="map"))
    assert [(loop.depth, loop.trips) for loop in found.loops] == [(0, 2), (1, K)]


def test_other_convolutions_run_in_parallel(float64):
    x = start = keras.Input((5, 5, 2))
    x = layers.SeparableConv2D(3, 3, activation="tanh")(x)
    x = layers.Conv2DTranspose(2, 2, strides=2, activation="tanh")(x)
    model = keras.Model(start, layers.Dense(3)(layers.Flatten()(x)))
    assert [loop.trips for loop in program(learner_of(model, mg.estimators.BinomMAML(1))).loops] == [K]
    found, expected = (
        learner_of(model, mg.estimators.FOMAML(), execution, jit_compile=False).meta_gradient(tasks_of(model)).gradients
        for execution in ("vectorize", "loop")
    )
    assert relative_error(found, expected) < 1e-10


def test_max_pooling_has_right_second_derivatives_under_xla():
    """Of inputs that 16 bits can't tell XLA's own second derivative takes the wrong one; if not, XLA was mended."""
    rng = np.random.default_rng(0)
    x, v = 1 + 1e-4 * rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 4)).astype("float32")

    def product(x, v, scope):
        with scope, tf.autodiff.ForwardAccumulator(x, v) as accumulator, tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.nn.max_pool(x[..., None], 4, 4, "VALID", "NWC") ** 3)
            gradient = tape.gradient(loss, x)
        return accumulator.jvp(gradient)

    largest = x == x.max(axis=1, keepdims=True)
    expected = largest * 6 * x * v
    for scope, right in ((plain_max_pooling(), True), (contextlib.nullcontext(), False)):
        compiled = tf.function(lambda x, v, scope=scope: product(x, v, scope), autograph=False, jit_compile=True)
        assert np.allclose(compiled(tf.constant(x), tf.constant(v)), expected, atol=1e-5) is right


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_plain_max_pooling_keeps_its_values(rank, padding):
    shape = (2, *(7, 6, 5)[:rank], 3)
    x = np.random.default_rng(rank).permutation(np.prod(shape)).reshape(shape).astype("float32")
    x = tf.constant(x if rank == 3 else x // 9)  # with ties; TensorFlow's kernel for three axes counts each of them
    for size, strides in ((2, 2), (3, 2), (3, 1)):
        results = []
        for scope in (contextlib.nullcontext(), plain_max_pooling()):
            with scope, tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.nn.max_pool(x, [size] * rank, strides, padding, ["NWC", "NHWC", "NDHWC"][rank - 1])
            results.append((y, tape.gradient(y, x)))
        assert all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_transposed_convolution_as_a_product(rank, padding):
    rng = np.random.default_rng(rank)
    sizes, kernel = (9, 8, 7)[:rank], (3, 2, 3)[:rank]
    filters = rng.normal(size=(*kernel, 4, 3))
    for strides in (1, 2, 3):
        shape = tf.nn.convolution(np.zeros((2, *sizes, 4)), filters, strides, padding).shape
        y, arguments = rng.normal(size=shape), (filters, (2, *sizes, 4), strides, padding)
        plain = tf.nn.conv_transpose(y, *arguments)
        with vectorizable_convolutions():
            ours = tf.nn.conv_transpose(y, *arguments)
        assert ours.shape == plain.shape and np.allclose(ours, plain, atol=1e-12)
