"""Keras' mixed precision: layers compute in 16 bits; weights, iterates, losses and gradients are float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from estimator_cases import CASES, RATE, STEPS, typical
from keras import layers
from references import Quadratic, relative_error

import tf_metagrad as mg
from tf_metagrad import _tree
from tf_metagrad.estimators import ESMAML, FOBMAML, FOMAML, MAML

WEIGHTS, TASKS = 3, 2
ROUNDING = {"mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}  # half the gap between neighbours, relative
WAYS = [("vectorize", True), ("loop", False)]
EVERY = [("mixed_bfloat16", *WAYS[0]), ("mixed_bfloat16", *WAYS[1]), ("mixed_float16", *WAYS[1])]


@pytest.fixture
def policy(request):
    """The policy of the test, its parameter."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def coarse(values):
    """Return values that bfloat16 holds exactly, so that only the arithmetic rounds."""
    return np.asarray(tf.cast(tf.cast(values, tf.bfloat16), tf.float32))


def linear_tasks():
    rng = np.random.default_rng(1)
    xs, xq = coarse(rng.normal(size=(2, TASKS, 6, WEIGHTS)))
    ys, yq = coarse(rng.normal(size=(2, TASKS, 6, 1)))
    return mg.Task(xs, ys, xq, yq)


def amplification(estimator):
    """Return by how much a difference quotient multiplies what its two ends are off by."""
    if isinstance(estimator, FOBMAML):
        return 1 / estimator.perturbation
    return 1 / estimator.sigma if isinstance(estimator, ESMAML) else 1


@pytest.mark.parametrize("policy, execution, jit_compile", EVERY, indirect=["policy"])
@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_every_estimator(policy, kind, execution, jit_compile):
    """A product of the model and its transpose round by a few units each; errors add up over gradients and HVPs."""
    case = typical(kind)
    model = keras.Sequential([keras.Input((WEIGHTS,)), layers.Dense(1, use_bias=False)])
    model.set_weights([coarse(w) for w in model.get_weights()])
    options = {"execution": execution, "jit_compile": jit_compile}
    learner = mg.MetaLearner(model, "mse", case.inner, case.estimator, **options)
    tasks = linear_tasks()
    result = learner.meta_gradient(tasks)
    assert [g.dtype for g in result.gradients] == [v.dtype for v in learner.meta_variables] == ["float32"]
    assert result.loss.dtype == "float32"
    w0, rates = model.get_weights()[0][:, 0].astype("float64"), np.full((STEPS, WEIGHTS), RATE)
    expected = case.meta_gradient
    if case.stochastic:  # the same draws in float32
        keras.config.set_dtype_policy("float32")
        plain = keras.Sequential([keras.Input((WEIGHTS,)), layers.Dense(1, use_bias=False)])
        plain.set_weights(model.get_weights())
        reference = mg.MetaLearner(plain, "mse", case.inner, case.estimator, **options).meta_gradient(tasks).gradients
    else:
        data = [[part[i].astype("float64") for part in tasks] for i in range(TASKS)]
        reference = [
            np.mean([expected(Quadratic((a, b[:, 0]), (c, d[:, 0]), w0, rates)) for a, b, c, d in data], axis=0)
        ]
    assert relative_error(result.gradients, reference) < 8 * ROUNDING[policy] * amplification(case.estimator)


def smooth_net():
    """A net without maxima: one that 16 bits decide in another way is off by more than they round."""
    body = [layers.Conv2D(3, 3, padding="same", activation="tanh"), layers.BatchNormalization()]
    images = np.random.default_rng(0).normal(size=(TASKS, 9, 6, 6, 1))
    return keras.Sequential([keras.Input((6, 6, 1)), *body, layers.AveragePooling2D(2)]), images


def pooling_net():
    """A net whose maxima no rounding moves: each pixel goes its own way, and the four of a window lie far apart."""
    pixels = layers.Conv2D(3, 1, activation="softplus")
    net = keras.Sequential([keras.Input((6, 6, 1)), pixels, layers.MaxPooling2D(2)])
    pixels.kernel.assign([[[[0.5, -0.7, 0.9]]]])
    rng = np.random.default_rng(0)
    windows = rng.permuted(np.tile([-1.5, -0.5, 0.5, 1.5], (TASKS, 9, 3, 3, 1)), axis=-1)
    windows += rng.normal(size=(TASKS, 9, 3, 3, 1))
    return net, windows.reshape(TASKS, 9, 3, 3, 2, 2).swapaxes(3, 4).reshape(TASKS, 9, 6, 6, 1)


@pytest.mark.parametrize("policy, execution, jit_compile", EVERY, indirect=["policy"])
@pytest.mark.parametrize("net", [smooth_net, pooling_net], ids=lambda net: net.__name__)
def test_convolutional_net(policy, net, execution, jit_compile):
    body, images = net()
    model = keras.Sequential([body, layers.Flatten(), layers.Dense(3)])
    model.build((None, 6, 6, 1))
    keras.config.set_dtype_policy("float32")
    plain = keras.models.clone_model(model, clone_function=lambda layer: layer.from_config(_plain(layer)))
    plain.set_weights(model.get_weights())
    images = coarse(images)
    labels = np.tile([0, 1, 2], (TASKS, 1)), np.tile([0, 1, 2, 0, 1, 2], (TASKS, 1))
    tasks = mg.Task(images[:, :3], labels[0], images[:, 3:], labels[1])

    def learner(net):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        options = {"execution": execution, "jit_compile": jit_compile}
        return mg.MetaLearner(net, loss, mg.inner.GradientDescent(2, 0.1), MAML(), **options)

    mixed, reference = learner(model), learner(plain)
    found, expected = mixed.meta_gradient(tasks), reference.meta_gradient(tasks)
    assert all(g.dtype == "float32" for g in found.gradients)
    assert relative_error(found.gradients, expected.gradients) < 32 * ROUNDING[policy]
    assert all(w.dtype == "float32" for w in mixed.adapt(tasks.support_x[0], tasks.support_y[0]))


def _plain(layer):
    return {**layer.get_config(), "dtype": "float32"}


@pytest.mark.parametrize("policy, execution, jit_compile", EVERY[2:], indirect=["policy"])
def test_a_large_curvature_is_multiplied_by_a_small_rate_first(policy, execution, jit_compile):
    """H v is beyond float16's 65504, and H alpha v is not."""
    results, (x, y) = [], np.random.default_rng(0).uniform(0, 255, size=(2, TASKS, 5, 16))
    for dtype in (policy, "float32"):
        keras.config.set_dtype_policy(dtype)
        model = keras.Sequential([keras.Input((16,)), layers.Dense(1)])
        model.set_weights([np.full((16, 1), 0.02), np.zeros(1)])
        options = {"execution": execution, "jit_compile": jit_compile}
        learner = mg.MetaLearner(model, "mse", mg.inner.GradientDescent(2, 1e-6), MAML(), **options)
        results.append(learner.meta_gradient(mg.Task(x, y[..., :1] / 255, x, y[..., :1] / 255)).gradients)
    assert relative_error(*results) < 8 * ROUNDING[policy]


@pytest.mark.parametrize("execution", ["vectorize", "loop"])
def test_small_gradients_in_float16_are_summed_before_they_are_divided(execution):
    keras.config.set_dtype_policy("float16")
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    keras.config.set_dtype_policy("float32")
    options = {"execution": execution, "jit_compile": False}
    learner = mg.MetaLearner(model, lambda y, p: 4e-7 * p[:, 0], mg.inner.GradientDescent(1, 0.1), FOMAML(), **options)
    ones = np.ones((16, 2, 1), "float16")
    (gradient,) = learner.meta_gradient(mg.Task(ones, ones, ones, ones)).gradients
    assert np.isclose(gradient, 4e-7, rtol=0.2)  # a subnormal number; a sixteenth of it is zero


@pytest.mark.parametrize("policy", ROUNDING, indirect=True)
def test_iterates_are_float32_and_move_by_less_than_16_bits_hold(policy):
    model = keras.Sequential([keras.Input((WEIGHTS,)), layers.Dense(1, use_bias=False)])
    learner = mg.MetaLearner(model, "mse", mg.inner.GradientDescent(3, 1e-5), FOMAML(), execution="loop")
    seen = []

    def body(problem):
        path = problem.adapt(keep=3)
        seen.extend([*path.iterates, *path.end, *problem.query(path.end, path.state).gradient])
        return [], _tree.subtract(path.end, problem.initial())

    moved = learner.run_tasks(body, learner.check_tasks(linear_tasks()), tf.constant(0, tf.int64))[1]
    assert {t.dtype for t in seen} == {tf.float32}
    assert all(np.all(np.asarray(m) != 0) for m in moved)


@pytest.mark.parametrize("policy", ["mixed_bfloat16"], indirect=True)
@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()], ids=["function", "object"])
def test_the_loss_is_computed_in_float32(policy, loss):
    """Targets that 16 bits can't tell from the predictions are told."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.ones((1, 1))])
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 1e-7), FOMAML(), execution="loop")
    x, y = np.ones((1, 2, 1), "float32"), np.full((1, 2, 1), 1 + 2.0**-13, "float32")
    result = learner.meta_gradient(mg.Task(x, y, x, y))
    assert np.isclose(result.loss, 2.0**-26, rtol=0.01)
    assert np.isclose(result.gradients[0], -(2.0**-12), rtol=0.01)
