"""Inner optimisers: the loop equals Keras' optimizers, and MAML through it equals complex steps in NumPy, float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from inner_references import loops, meta_gradient, tanh_net
from references import ravel, relative_error
from test_exactness import CROSSENTROPY, net, tasks_for

import tf_metagrad as mg
from tf_metagrad.estimators import MAML
from tf_metagrad.inner import Adam, Momentum, ProximalGradientDescent, RMSprop

K = 3
# Keras rounds its constants to float32; those here are exact in it.
KERAS = {
    "momentum": (Momentum(K, 0.2, momentum=0.75), lambda: keras.optimizers.SGD(0.2, 0.75)),
    "nesterov": (Momentum(K, 0.2, None, 0.75, True), lambda: keras.optimizers.SGD(0.2, 0.75, nesterov=True)),
    "rmsprop": (RMSprop(K, 0.03, None, 0.75, 1e-4), lambda: keras.optimizers.RMSprop(0.03, 0.75, epsilon=1e-4)),
    "adam": (Adam(K, 0.05, None, 0.75, 0.875), lambda: keras.optimizers.Adam(0.05, 0.75, 0.875, epsilon=1e-5)),
}
RULES = {
    "momentum": lambda learn: Momentum(K, 0.2, learn, 0.8),
    "nesterov": lambda learn: Momentum(K, 0.2, learn, 0.8, nesterov=True),
    "rmsprop": lambda learn: RMSprop(K, 0.03, learn, 0.7),
    "adam": lambda learn: Adam(K, 0.05, learn, 0.8, 0.9),
    "proximal": lambda learn: ProximalGradientDescent(K, 0.2, 1.5, learn=learn),
    "tolerant": lambda learn: ProximalGradientDescent(K, 0.3, 1.5, 0.145, learn),
}
HEAD, ALL = [2, 3], [0, 1, 2, 3]


def make(inner, adapting=ALL, estimator=None, **options):
    """A tanh net that learns `inner` with hyperparameters that differ from each other."""
    options = {"execution": "vectorize", "jit_compile": False} | options
    model, shape = net("tanh")
    adapt = "all" if adapting == ALL else ["head"]
    learner = mg.MetaLearner(model, CROSSENTROPY, inner, estimator, adapt=adapt, **options)
    rng = np.random.default_rng(6)
    for v in learner.model.trainable_variables:  # biases too
        v.assign(rng.normal(size=v.shape) * 0.7)
    for v in learner.hyperparameters:
        v.assign(v * rng.uniform(0.6, 1.4, size=v.shape))
    return learner, tasks_for(shape)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", KERAS)
def test_loop_equals_the_optimizer_of_keras(float64, name, steps):
    inner, optimizer = KERAS[name][0], KERAS[name][1]()
    learner, tasks = make(inner)
    x, y = tasks.support_x[0], tasks.support_y[0]
    adapted = learner.adapt(x, y, steps=steps)
    before = [v.numpy() for v in learner.model.trainable_variables]
    twin = keras.models.clone_model(learner.model)
    twin.set_weights(learner.model.get_weights())
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, twin(x)))
        optimizer.apply(tape.gradient(loss, twin.trainable_variables), twin.trainable_variables)
    assert relative_error(adapted, [v.numpy() for v in twin.trainable_variables]) < 1e-12
    assert relative_error(adapted, before) > 1e-2
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, learner.model.trainable_variables, strict=True))


def test_proximal_loop_equals_numpy_and_ends_at_the_proximal_solution(float64):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    learner = mg.MetaLearner(model, "mse", ProximalGradientDescent(6, 0.2, 1.5), jit_compile=False)
    x, y, w0 = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), model.get_weights()[0]
    hessian, b = x.T @ x / 5, x.T @ y / 5  # of the mean over two outputs
    w = w0
    for _ in range(6):
        w = w - 0.2 * (hessian @ w - b + 1.5 * (w - w0))
    assert relative_error(learner.adapt(x, y), [w]) < 1e-13
    solution = np.linalg.solve(hessian + 1.5 * np.eye(3), b + 1.5 * w0)
    assert relative_error([w], [solution]) > 1e-6
    assert relative_error(learner.adapt(x, y, steps=200), [solution]) < 1e-13


CASES = [
    ("momentum", None, ALL), ("momentum", "per_layer_and_step", HEAD), ("momentum", "per_parameter", ALL),
    ("nesterov", None, HEAD), ("nesterov", "scalar", ALL), ("nesterov", "per_layer_and_step", ALL),
    ("rmsprop", None, ALL), ("rmsprop", "scalar", HEAD), ("rmsprop", "per_parameter", ALL),
    ("adam", None, HEAD), ("adam", "scalar", ALL), ("adam", "per_layer_and_step", ALL), ("adam", "per_parameter", HEAD),
    ("proximal", None, ALL), ("proximal", "weight", HEAD), ("tolerant", "weight", ALL), ("tolerant", None, HEAD),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "learn", "adapting", "mode"),
    [*((*case, "mixed") for case in CASES), *((*case, "unrolled") for case in CASES[2::3])],
)
def test_maml_equals_complex_steps(float64, rule, learn, adapting, mode):
    """Every entry of the meta-gradient, of weights, shared weights and hyperparameters; both modes to one number."""
    learner, tasks = make(RULES[rule](learn), adapting, MAML(mode))
    references = loops(learner, tasks, tanh_net, adapting)
    expected, result = meta_gradient(learner, references), learner.meta_gradient(tasks)
    for value, reference in zip(result.gradients, expected, strict=True):
        assert relative_error([value], [reference]) < 1e-10
    runs = [one([v.numpy() for v in learner.model.trainable_variables],
                [v.numpy() for v in learner.hyperparameters]) for one in references]  # fmt: skip
    assert abs(result.loss - np.mean([run.loss for run in runs])) < 1e-12
    if rule == "tolerant":
        assert 0 < min(run.taken for run in runs) < K
        assert list(result.diagnostics["inner_steps"]) == [run.taken for run in runs]


@pytest.mark.parametrize("mode", ["mixed", "unrolled"])
@pytest.mark.parametrize("rule", ["nesterov", "adam", "tolerant"])
def test_multi_step_loss_equals_complex_steps(float64, rule, mode):
    weights = (0.4, 0.0, 0.6)
    learn = "weight" if rule == "tolerant" else "per_layer_and_step"
    learner, tasks = make(RULES[rule](learn), ALL, MAML(mode, weights))
    expected = meta_gradient(learner, loops(learner, tasks, tanh_net, ALL, step_weights=weights))
    assert relative_error(learner.meta_gradient(tasks).gradients, expected) < 1e-10


@pytest.mark.parametrize("rule", ["adam", "tolerant"])
def test_every_way_to_run_gives_the_same_numbers(float64, rule):
    learn = "weight" if rule == "tolerant" else "per_layer_and_step"
    results = []
    for way, jit in (("loop", False), ("map", False), ("vectorize", False), ("vectorize", True)):
        learner, tasks = make(RULES[rule](learn), HEAD, execution=way, jit_compile=jit)
        result = learner.meta_gradient(tasks)
        results.append((ravel(result.gradients), result.loss, {k: list(v) for k, v in result.diagnostics.items()}))
    for gradients, loss, diagnostics in results[1:]:
        assert relative_error([gradients], [results[0][0]]) < 1e-10 and abs(loss - results[0][1]) < 1e-12
        assert diagnostics.keys() == results[0][2].keys()
        for name, values in diagnostics.items():
            np.testing.assert_allclose(values, results[0][2][name], rtol=1e-10)
