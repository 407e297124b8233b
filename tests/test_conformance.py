"""Every public estimator against closed forms on quadratics, in float64."""

import dataclasses
import inspect
import json

import keras
import numpy as np
import pytest
from estimator_cases import CASES, PLAIN, RATE, STEPS
from references import Quadratic, ravel, relative_error

import tf_metagrad as mg
from tf_metagrad import estimators

WEIGHTS, TASKS = 3, 3
ALL = [case for cases in CASES.values() for case in cases]


def make_tasks():
    rng = np.random.default_rng(1)
    xs, xq = rng.normal(size=(2, TASKS, 6, WEIGHTS))
    ys, yq = rng.normal(size=(2, TASKS, 6, 1))
    return mg.Task(xs, ys, xq, yq)


def make_learner(estimator, inner=PLAIN, execution="vectorize", jit_compile=False):
    model = keras.Sequential([keras.Input((WEIGHTS,)), keras.layers.Dense(1, use_bias=False)])
    return mg.MetaLearner(model, "mse", inner, estimator, execution=execution, jit_compile=jit_compile)


def quadratics(learner, tasks, rates):
    w0 = learner.model.trainable_variables[0].numpy()[:, 0]
    return [
        Quadratic((xs, ys[:, 0]), (xq, yq[:, 0]), w0, rates)
        for xs, ys, xq, yq in zip(*tasks, strict=True)
    ]  # fmt: skip


def test_every_public_estimator_has_a_reference():
    public = {getattr(estimators, name) for name in estimators.__all__}
    public = {c for c in public if inspect.isclass(c) and c is not estimators.Estimator}
    assert public == set(CASES)
    assert all(cases and all(type(case.estimator) is kind for case in cases) for kind, cases in CASES.items())


@pytest.mark.parametrize("case", ALL, ids=lambda case: str(case.estimator))
def test_closed_form(float64, case):
    learner, tasks = make_learner(case.estimator, case.inner), make_tasks()
    before = [v.numpy() for v in learner.meta_variables]
    result = learner.meta_gradient(tasks)
    problems = quadratics(learner, tasks, np.full((STEPS, WEIGHTS), RATE))
    expected = np.mean([case.meta_gradient(q) for q in problems], axis=0)
    if case.stochastic:
        samples = np.stack([ravel(learner.meta_gradient(tasks, seed=s).gradients) for s in range(60)])
        standard_error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(axis=0) - expected) < 4 * standard_error)
        assert np.linalg.norm(standard_error) < 0.05 * np.linalg.norm(expected)
    else:
        assert relative_error(result.gradients, [expected]) < 1e-10
    assert [tuple(g.shape) for g in result.gradients] == [tuple(v.shape) for v in learner.meta_variables]
    assert all(g.dtype == "float64" for g in result.gradients)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, learner.meta_variables, strict=True))


@pytest.mark.parametrize("learn", ["scalar", "per_layer_and_step", "per_parameter"])
@pytest.mark.parametrize("case", [case for case in ALL if case.adjoint], ids=lambda case: str(case.estimator))
def test_learned_rates(float64, case, learn):
    learner, tasks = make_learner(case.estimator, mg.inner.GradientDescent(STEPS, RATE, learn)), make_tasks()
    rng = np.random.default_rng(2)
    for rate in learner.hyperparameters:
        rate.assign(RATE * rng.uniform(0.5, 1.5, size=rate.shape))
    value = learner.hyperparameters[0].numpy()
    rates = {
        "scalar": lambda: np.full((STEPS, WEIGHTS), value),
        "per_layer_and_step": lambda: np.repeat(value, WEIGHTS, 1),
        "per_parameter": lambda: np.repeat(value.T, STEPS, 0),
    }[learn]()
    *gradients, rate_gradient = learner.meta_gradient(tasks).gradients
    problems = quadratics(learner, tasks, rates)
    assert relative_error(gradients, [np.mean([case.meta_gradient(q) for q in problems], axis=0)]) < 1e-10
    per_step = np.mean([q.rate_gradient(lambda j, q=q: case.adjoint(q, j)) for q in problems], axis=0)
    expected = {"scalar": per_step.sum(), "per_layer_and_step": per_step.sum(1), "per_parameter": per_step.sum(0)}[
        learn
    ]
    assert relative_error([rate_gradient], [expected]) < 1e-10


@pytest.mark.parametrize("case", [case for case in ALL if case.weight_gradient], ids=lambda case: str(case.estimator))
def test_learned_weight(float64, case):
    learner, tasks = make_learner(case.estimator, dataclasses.replace(case.inner, learn="weight")), make_tasks()
    *gradients, weight_gradient = learner.meta_gradient(tasks).gradients
    problems = quadratics(learner, tasks, np.full((STEPS, WEIGHTS), RATE))
    assert relative_error(gradients, [np.mean([case.meta_gradient(q) for q in problems], axis=0)]) < 1e-10
    expected = np.mean([case.weight_gradient(q) for q in problems])
    assert abs(weight_gradient - expected) < 1e-10 * abs(expected)


@pytest.mark.parametrize("estimator", [case.estimator for case in ALL], ids=str)
def test_configuration_round_trip(estimator):
    text = json.dumps(keras.saving.serialize_keras_object(estimator))
    assert keras.saving.deserialize_keras_object(json.loads(text)) == estimator
    assert type(estimator).from_config(estimator.get_config()) == estimator
    assert estimators.parse(repr(estimator)) == estimator
    with pytest.raises(AttributeError):
        estimator.truncation = 7


@pytest.mark.parametrize("case", [cases[-1] for cases in CASES.values()], ids=lambda case: str(case.estimator))
def test_traced_once(float64, case):
    estimator = case.estimator
    learner, tasks = make_learner(estimator, case.inner), make_tasks()
    first = learner.meta_gradient(tasks)
    learner.estimator = type(estimator).from_config(estimator.get_config())  # equal, not the same object
    second = learner.meta_gradient(mg.Task(*[t + 1 for t in tasks]))
    functions = [f for (kind, _), f in learner._cache.functions.items() if kind == "gradient"]
    assert [f.plain.experimental_get_tracing_count() for f in functions] == [1]
    assert relative_error(first.gradients, second.gradients) > 1e-3


@pytest.mark.parametrize(
    "case", [cases[-1] for cases in CASES.values() if not cases[-1].stochastic], ids=lambda case: str(case.estimator)
)
def test_batch_is_the_mean_of_its_tasks(float64, case):
    learner, tasks = make_learner(case.estimator, case.inner, execution="map"), make_tasks()
    whole = ravel(learner.meta_gradient(tasks).gradients)
    parts = [ravel(learner.meta_gradient(mg.Task(*[t[i : i + 1] for t in tasks])).gradients) for i in range(TASKS)]
    assert relative_error([whole], [np.mean(parts, axis=0)]) < 1e-12
