"""Inner optimisers at their edges: gradients that are exactly zero, tolerances, loops that diverge. In float64."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from inner_references import linear_net, loops
from keras import layers
from references import ravel, relative_error
from test_exactness import CROSSENTROPY, check_against_differences, learner_for, net, tasks_for

import tf_metagrad as mg
from tf_metagrad.estimators import FOMAML, IMAML, MAML, Reptile, TruncMAML
from tf_metagrad.inner import Adam, ProximalGradientDescent, RMSprop


class Idle(keras.Model):
    """Rows of an embedding without examples, a ReLU that never fires, a layer whose output is not used."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body = layers.Embedding(9, 4), layers.Dense(4, "tanh")
        self.dead = layers.Dense(3, "relu", bias_initializer=keras.initializers.Constant(-50.0))
        self.unused, self.head = layers.Dense(2), layers.Dense(3, "softmax")

    def call(self, tokens):
        x = self.body(layers.Flatten()(self.embedding(tokens)))
        self.unused(x)
        return self.head(layers.Concatenate()([x, self.dead(x)]))


def idle_tasks():
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), (2, 2))
    return mg.Task(rng.integers(0, 6, (2, 6, 2)), labels, rng.integers(0, 9, (2, 4, 2)), labels[:, :4])


@pytest.mark.parametrize(
    "inner", [Adam(3, 0.05, epsilon=0.01), RMSprop(3, 0.03, epsilon=1e-4), Adam(3, 0.05, "per_parameter", epsilon=0.01)]
)
def test_weights_without_gradient(float64, inner):
    model, tasks = Idle(), idle_tasks()
    model(tasks.support_x[0])
    learner = mg.MetaLearner(model, CROSSENTROPY, inner, execution="map", jit_compile=False)
    check_against_differences(learner, tasks, tolerance=1e-7, step=1e-5)  # Adam bends within epsilon of G = 0
    learner.estimator = MAML()
    values = [g.numpy() for g in learner.meta_gradient(tasks).gradients[: len(model.trainable_variables)]]
    assert all(np.isfinite(v).all() for v in values)
    by_variable = {id(v): value for v, value in zip(model.trainable_variables, values, strict=True)}
    rows = by_variable[id(model.embedding.embeddings)]
    assert rows[6:].any()  # the query set uses rows that the support sets do not
    silent = [*model.dead.trainable_variables, *model.unused.trainable_variables]
    assert len(silent) == 4 and not any(by_variable[id(v)].any() for v in silent)


@pytest.mark.parametrize(("mode", "jit"), [("mixed", False), ("mixed", True), ("unrolled", True)])
@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_support_gradient_of_zero(float64, rule, mode, jit):
    """At a stationary point the rules are linear: u = s c_k m, so that phi and m move by block matrices.

    XLA gives NaN for the derivative of sqrt(G^2) at zero, and TensorFlow's own kernel does not.
    """
    inner = Adam(3, 0.05, None, 0.8, 0.9, 0.1) if rule == "adam" else RMSprop(3, 0.05, None, 0.8, 0.01)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    learner = mg.MetaLearner(model, "mse", inner, MAML(mode), execution="vectorize", jit_compile=jit)
    rng = np.random.default_rng(0)
    (x, query_x), query_y = rng.normal(size=(2, 1, 5, 3)), rng.normal(size=(1, 5, 1))
    result = learner.meta_gradient(mg.Task(x, np.zeros((1, 5, 1)), query_x, query_y))
    a, eye, jacobian = 2 * x[0].T @ x[0] / 5, np.eye(3), np.eye(6)
    beta = 0.8 if rule == "adam" else 0.0
    for k in range(1, 4):
        slope = np.sqrt(1 - 0.9**k) / (1 - 0.8**k) / 0.1 if rule == "adam" else 1 / np.sqrt(0.01)
        turn = np.block([[eye, 0 * eye], [(1 - beta) * a, beta * eye]])  # m' = beta m + (1 - beta) G
        jacobian = np.block([[eye, -0.05 * slope * eye], [0 * eye, eye]]) @ turn @ jacobian
    g = -2 * query_x[0].T @ query_y[0] / 5
    assert relative_error(result.gradients, [jacobian[:3, :3].T @ g]) < 1e-12
    assert relative_error(result.gradients, [g]) > 1e-2


SCALES = np.array([1.0, 0.3, 2.5])[:, None, None]


def regression(inner, estimator=None, **options):
    """Linear regression on tasks of unequal scale, so that they take unequal numbers of steps."""
    rng = np.random.default_rng(2)
    x, query_x = rng.normal(size=(2, 3, 6, 3))
    y, query_y = rng.normal(size=(2, 3, 6, 1))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
    options = {"execution": "vectorize", "jit_compile": False} | options
    return mg.MetaLearner(model, "mse", inner, estimator, **options), mg.Task(x * SCALES, y, query_x, query_y)


@pytest.mark.parametrize("way", ["vectorize", "map"])
@pytest.mark.parametrize("estimator", [MAML(), Reptile(), IMAML(iterations=3)], ids=str)
def test_tasks_stop_one_by_one(float64, estimator, way):
    """Task 2 hits the cap; the others reach the tolerance after other numbers of steps. Each is as it is alone."""
    inner = ProximalGradientDescent(14, 0.1, 2.0, 0.1)
    learner, tasks = regression(inner, estimator, execution=way)
    runs = [
        run([v.numpy() for v in learner.model.trainable_variables]) for run in loops(learner, tasks, linear_net, [0])
    ]
    assert len({run.taken for run in runs}) == 3 and max(run.taken for run in runs) == 14
    result = learner.meta_gradient(tasks)
    np.testing.assert_array_equal(result.diagnostics["inner_steps"], [run.taken for run in runs])
    np.testing.assert_allclose(result.diagnostics["inner_residual"], [run.residual for run in runs], rtol=1e-10)
    alone = [learner.meta_gradient(mg.Task(*[t[i : i + 1] for t in tasks])) for i in range(3)]
    assert relative_error(result.gradients, [np.mean([ravel(one.gradients) for one in alone], axis=0)]) < 1e-12
    w0 = learner.model.get_weights()[0]
    if type(estimator) is Reptile:  # divides by the steps that were taken
        moved = [(w0 - run.weights[0]) / (0.1 * run.taken) for run in runs]
        assert relative_error(result.gradients, [np.mean(moved, axis=0)]) < 1e-12
    for i, run in enumerate(runs):
        solution = learner.solve(tasks.support_x[i], tasks.support_y[i])
        assert relative_error(solution.weights, run.weights) < 1e-12
        assert solution.steps == run.taken
        assert solution.stopped_by == ("steps" if run.taken == 14 else "tolerance")
        assert (solution.residual <= 0.1) == (solution.stopped_by == "tolerance")
        np.testing.assert_allclose(solution.residual, run.residual, rtol=1e-10)


def test_stopped_tasks_are_within_delta_of_the_solution(float64):
    """The distance is at most tolerance / mu, eq. (15) of FO-B-MAML."""
    learner, tasks = regression(ProximalGradientDescent(500, 0.07, 2.0, 1e-4))
    w0 = learner.model.get_weights()[0]
    for x, y in zip(*tasks[:2], strict=True):
        a = x.T @ x / 3 + 2 * np.eye(3)
        exact, solution = np.linalg.solve(a, x.T @ y / 3 + 2 * w0), learner.solve(x, y)
        assert solution.stopped_by == "tolerance" and 1 < solution.steps < 500
        assert 0 < np.linalg.norm(solution.weights[0] - exact) <= 1e-4 / np.linalg.eigvalsh(a)[0]


def test_a_task_that_starts_within_the_tolerance_takes_no_step(float64):
    learner, tasks = regression(ProximalGradientDescent(5, 0.07, 2.0, 1e3))
    result, solution = learner.meta_gradient(tasks), learner.solve(*[t[0] for t in tasks[:2]])
    assert solution.steps == 0 and solution.stopped_by == "tolerance"
    np.testing.assert_array_equal(result.diagnostics["inner_steps"], [0, 0, 0])
    w = learner.model.get_weights()[0]
    g = [2 * x.T @ (x @ w - y) / 6 for x, y in zip(*tasks[2:], strict=True)]
    assert relative_error(result.gradients, [np.mean(g, axis=0)]) < 1e-13


def test_truncation_and_a_tolerance_do_not_go_together():
    with pytest.raises(ValueError, match="TruncMAML keeps the last of K steps"):
        regression(ProximalGradientDescent(14, 0.1, 2.0, 0.1), TruncMAML(3))


def test_a_learned_weight_that_no_loop_can_bear_is_named(float64):
    learner, tasks = regression(ProximalGradientDescent(3, 0.1, 2.0, learn="weight"))
    learner.meta_gradient(tasks)
    learner.hyperparameters[0].assign(np.log(20.5))
    with pytest.raises(FloatingPointError, match="weight was learned to 20.5; times the inner `learning_rate`, 0.1"):
        learner.meta_gradient(tasks)


def test_the_solvers_residual_is_the_true_one():
    """In float32 the residual that conjugate gradients carry along drifts away from |q - A v| / |q|."""
    learner, tasks = regression(ProximalGradientDescent(3, 1e-7, 1e-3), IMAML(iterations=40, tolerance=1e-6))
    tasks = mg.Task(*(t.astype("float32") for t in tasks))
    result = learner.meta_gradient(tasks)
    learner.estimator = FOMAML()
    for i, reported in enumerate(result.diagnostics["solver_residual"].numpy()):
        one = mg.Task(*(t[i : i + 1] for t in tasks))
        q = ravel(learner.meta_gradient(one).gradients).astype("float64")
        learner.estimator = IMAML(iterations=40, tolerance=1e-6)
        v = ravel(learner.meta_gradient(one).gradients).astype("float64")
        learner.estimator = FOMAML()
        x = tasks.support_x[i].astype("float64")
        true = np.linalg.norm(q - v - 2 * x.T @ (x @ v) / (len(x) * 1e-3)) / np.linalg.norm(q)
        assert reported == pytest.approx(true, rel=0.5, abs=1e-6)


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True)
class OwnRates(mg.inner.InnerOptimizer):
    """Rates of its own: each in its way alpha for every weight, but where `kind` says otherwise."""

    steps: int = 3
    learning_rate: float = 0.3
    learn: str | None = None
    kind: str = "constants"

    def rates_at(self, learned, step, weights, dtypes):
        """See `InnerOptimizer`."""
        scalars = [tf.constant(self.learning_rate, dtype) for dtype in dtypes]
        full = [tf.fill(shape, rate) for shape, rate in zip(weights.shapes, scalars, strict=True)]
        kinds = {
            "constants": scalars, "numbers": [self.learning_rate] * len(dtypes), "one": scalars[:1] * len(dtypes),
            "arrays": full, "array first": full[:1] + scalars[1:], "array later": scalars[:1] + full[1:],
            "falling": [rate / tf.cast(step + 1, rate.dtype) for rate in scalars],
            "differing": [rate / (i + 1) for i, rate in enumerate(scalars)],
        }  # fmt: skip
        return kinds[self.kind]


KINDS = ["constants", "numbers", "one", "arrays", "array first", "array later", "falling", "differing"]


@pytest.mark.parametrize("kind", KINDS)
def test_rates_of_an_own_rule(float64, kind):
    learner, tasks = learner_for("tanh")
    learner.inner = OwnRates(kind=kind)
    check_against_differences(learner, tasks)


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True, repr=False)
class Clipped(mg.inner.GradientDescent):
    """Steps along tanh(G): a rule that turns the gradient and remembers nothing."""

    def direction(self, gradient, slots, step):
        """See `InnerOptimizer`."""
        return [tf.tanh(5 * g) for g in gradient], list(slots)


@pytest.mark.parametrize("learn", [None, "scalar", "per_layer_and_step"])
@pytest.mark.parametrize("options", [{}, {"execution": "vectorize", "jit_compile": True}])
def test_a_direction_without_slots(float64, learn, options):
    model, shape = net("tanh")
    learner = mg.MetaLearner(model, CROSSENTROPY, Clipped(3, 0.3, learn), **options)
    check_against_differences(learner, tasks_for(shape))
    learner.estimator = TruncMAML(3)
    whole = ravel(learner.meta_gradient(tasks_for(shape)).gradients)
    learner.estimator = MAML("unrolled")
    assert relative_error(learner.meta_gradient(tasks_for(shape)).gradients, [whole]) < 1e-10
