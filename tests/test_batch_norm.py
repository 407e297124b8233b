"""The fused batch normalisation, in float32, against plain operations and differences in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import ravel, relative_error

import tf_metagrad as mg
from tf_metagrad._batch_norm import _fits, batch_norm, fused_batch_normalization
from tf_metagrad._hvp import forward_over_reverse, reverse_over_reverse, value_and_gradient

RNG = np.random.default_rng(0)
X, TARGET = 1 + 2 * RNG.normal(size=(2, 3, 4, 5, 6))
WEIGHTS = [RNG.normal(size=(6, 6)), RNG.normal(size=6) * (np.arange(6) != 2), RNG.normal(size=6)]  # a scale of zero
VECTOR = [RNG.normal(size=w.shape) for w in WEIGHTS]


def plain(x, scale, offset, epsilon):
    mean = tf.reduce_mean(x, (0, 1, 2))
    variance = tf.reduce_mean(tf.square(x - mean), (0, 1, 2))
    return (x - mean) / tf.sqrt(variance + epsilon) * scale + offset, mean, variance


def loss_of(normalize, dtype):
    x, target = tf.constant(X, dtype), tf.constant(TARGET, dtype)

    def loss(weights):
        kernel, scale, offset = weights
        z = tf.tensordot(x, kernel, 1)
        return tf.reduce_sum(tf.tanh(normalize(z + tf.sin(z), scale, offset, 1e-3)[0]) * target), None

    return loss


def gradient_at(shift):
    weights = [tf.constant(w + shift * v) for w, v in zip(WEIGHTS, VECTOR, strict=True)]
    return ravel(value_and_gradient(loss_of(plain, tf.float64), weights, range(3))[2])


@pytest.mark.parametrize("mode", [forward_over_reverse, reverse_over_reverse])
def test_gradient_and_hvp_equal_differences_in_float64(mode):
    h = 1e-4
    expected = (8 * (gradient_at(h) - gradient_at(-h)) - (gradient_at(2 * h) - gradient_at(-2 * h))) / (12 * h)
    weights, vector = ([tf.constant(a, tf.float32) for a in arrays] for arrays in (WEIGHTS, VECTOR))
    loss = loss_of(batch_norm, tf.float32)
    compiled = tf.function(lambda: mode(loss, weights, range(3), vector)[:2], autograph=False)
    for gradient, product in (mode(loss, weights, range(3), vector)[:2], compiled()):
        assert relative_error(gradient, [gradient_at(0)]) < 1e-6
        assert relative_error(product, [expected]) < 1e-6


@pytest.mark.parametrize("nested", ["function", "loop"])
def test_what_is_differentiated_after_it_was_traced_is_right(nested):
    """Then TensorFlow's registered derivatives count."""
    weights, vector = ([tf.constant(a, tf.float32) for a in arrays] for arrays in (WEIGHTS, VECTOR))

    def slope(*weights):
        gradient = value_and_gradient(loss_of(batch_norm, tf.float32), weights, range(3))[2]
        return tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradient, vector, strict=True)])

    def looped(*weights):
        return tf.while_loop(lambda i, _: i < 1, lambda i, _: (i + 1, slope(*weights)), (0, 0.0))[1]

    traced = tf.function({"function": slope, "loop": looped}[nested], autograph=False)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = traced(*weights)
    found = tape.gradient(value, weights)
    direct = forward_over_reverse(loss_of(batch_norm, tf.float32), weights, range(3), vector)[1]
    assert relative_error(found, direct) < 2e-6


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 5, 3), {}),
        ((7, 3), {"momentum": 0.5, "epsilon": 0.1}),
        ((2, 3, 2, 3), {"scale": False}),
        ((4, 5, 3), {"center": False}),
        ((4, 5, 3), {"axis": 1}),
        ((4, 5, 3), {"trainable": False}),
        ((5,), {}),
        ((4, 5, 3), {"dtype": "mixed_bfloat16"}),
    ],
    ids=str,
)
def test_the_layer_does_what_keras_does(shape, options):
    x = RNG.normal(2.0, 3.0, size=(6, *shape)).astype("float32")
    mine, own = (layers.BatchNormalization(**options) for _ in range(2))
    for layer in (mine, own):
        layer.build((None, *shape))
        for variable in layer.variables:
            variable.assign(np.random.default_rng(1).uniform(0.5, 2, size=variable.shape))
    expected = own(x, training=True)
    with fused_batch_normalization():
        found = mine(x, training=True)
    assert found.dtype == expected.dtype
    tolerance = 1e-2 if found.dtype == tf.bfloat16 else 2e-6
    assert relative_error([tf.cast(found, tf.float32)], [tf.cast(expected, tf.float32)]) < tolerance
    assert relative_error(mine.variables, own.variables) < 1e-6
    expected = mine(x, training=False)
    with fused_batch_normalization():
        np.testing.assert_array_equal(mine(x, training=False), expected)


def test_what_the_kernel_has_not_is_left_to_keras():
    class Own(layers.BatchNormalization):
        def _moments(self, inputs, mask):
            mean, variance = super()._moments(inputs, mask)
            return mean, 4 * variance

    x = RNG.normal(2.0, 3.0, size=(6, 7, 3)).astype("float32")
    mask = np.arange(42).reshape(6, 7) % 3 > 0
    for kind, options in ((Own, {}), (layers.BatchNormalization, {"mask": mask})):
        mine, own = kind(), kind()
        expected = own(x, training=True, **options)
        with fused_batch_normalization():
            found = mine(x, training=True, **options)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(mine.moving_variance, own.moving_variance)
    assert not _fits(layers.BatchNormalization(synchronized=True), tf.constant(x))


def make_learner(**options):
    keras.utils.set_random_seed(1)
    body = []
    for _ in range(2):
        body += [
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
        ]
    model = keras.Sequential([keras.Input((6, 6, 2)), *body, layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inner = mg.inner.GradientDescent(steps=3, learning_rate=0.5)
    return mg.MetaLearner(model, loss, inner, jit_compile=False, **options)


def make_tasks(dtype):
    rng = np.random.default_rng(2)
    xs, xq = rng.normal(size=(2, 2, 6, 6, 6, 2)).astype(dtype)
    y = np.tile(np.arange(6) % 3, (2, 1))
    return mg.Task(xs, y, xq, y)


def gradients(learner, tasks, estimator):
    learner.estimator = estimator
    return ravel(learner.meta_gradient(tasks).gradients)


ESTIMATORS = [mg.estimators.MAML(), mg.estimators.MAML("unrolled"), mg.estimators.BinomMAML(2), mg.estimators.FOMAML()]


@pytest.fixture(scope="module")
def in_float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        learner, tasks = make_learner(execution="map"), make_tasks("float64")
        weights = [v.numpy() for v in learner.model.weights]
        return weights, {str(e): gradients(learner, tasks, e) for e in ESTIMATORS}
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("execution", ["loop", "map"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_meta_gradients_equal_those_in_float64(in_float64, estimator, execution):
    weights, expected = in_float64
    learner = make_learner(execution=execution)
    learner.model.set_weights(weights)
    found = gradients(learner, make_tasks("float32"), estimator)
    assert relative_error([found], [expected[str(estimator)]]) < 2e-5


@pytest.mark.parametrize(
    ("execution", "jit_compile"), [("loop", False), ("map", False), ("vectorize", False), ("map", True)]
)
def test_the_kernel_is_used_where_it_is_said(execution, jit_compile):
    learner = make_learner(execution=execution)
    tasks = learner.check_tasks(make_tasks("float32"))
    chosen = learner.execution._replace(jit_compile=jit_compile)
    run = tf.function(lambda: learner.estimate(tasks, 0, execution=chosen)[0], autograph=False)
    graph = run.get_concrete_function().graph.as_graph_def()
    operations = {node.op for function in graph.library.function for node in function.node_def}
    assert ("FusedBatchNormV3" in operations) == (execution != "vectorize" and not jit_compile)


@pytest.mark.parametrize("mean", [30, 300])
def test_no_digits_are_lost_where_the_mean_is_far_above_the_deviation(in_float64, mean):
    """Inputs that nobody normalised: the error is that of plain operations, which vectorised tasks have."""
    weights, tasks, errors = in_float64[0], make_tasks("float32"), []
    for part in (tasks.support_x, tasks.query_x):
        part += mean
    exact = exactly(weights, tasks)
    for execution in ("loop", "vectorize"):
        learner = make_learner(execution=execution)
        learner.model.set_weights(weights)
        errors.append(relative_error([gradients(learner, tasks, ESTIMATORS[0])], [exact]))
    assert errors[0] < 3 * errors[1]


def exactly(weights, tasks):
    """Return the meta-gradient in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        learner = make_learner(execution="map")
        learner.model.set_weights(weights)
        doubled = mg.Task(*(np.asarray(part, "float64") if part.dtype == "float32" else part for part in tasks))
        return gradients(learner, doubled, ESTIMATORS[0])
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def test_a_served_model_adapts_to_any_number_of_examples(tmp_path):
    learner = make_learner(execution="loop")
    served = tf.saved_model.load(mg.export(learner, tmp_path / "served")).signatures["adapt_and_predict"]
    task = make_tasks("float32")
    for count in (3, 6):
        xs, ys, xq = task.support_x[0, :count], tf.cast(task.support_y[0, :count], tf.int32), task.query_x[0, :5]
        expected = learner.predict_adapted(learner.adapt(xs, ys), xq)
        assert relative_error([served(support_x=xs, support_y=ys, query_x=xq)["predictions"]], [expected]) < 1e-5
