"""Estimators of the proximal solution's meta-gradient against the implicit function theorem, in float64.

The reference finds the solution by Newton's method and solves the linear system with an explicit Hessian; the net is
not convex, and one of its layers may be shared by all tasks.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from keras import layers
from references import directional_derivative, ravel, relative_error
from test_frozen import answered

import tf_metagrad as mg
from tf_metagrad import _problem
from tf_metagrad.estimators import FOBMAML, IMAML, MAML, step_aware_perturbation

WEIGHT = 2.0
EXACT = [FOBMAML("tangent"), IMAML("cg", 100, 1e-13), IMAML("neumann", 200, 1e-13)]


def make_learner(estimator, steps=200, adapt="all", **options):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(4, "tanh", name="body"), layers.Dense(1, name="head")])
    inner = mg.inner.ProximalGradientDescent(steps, 0.2, WEIGHT, **options)
    return mg.MetaLearner(model, "mse", inner, estimator, adapt=adapt, execution="map", jit_compile=False)


def make_tasks(count=2, examples=7):
    rng = np.random.default_rng(3)
    xs, xq = rng.normal(size=(2, count, examples, 2))
    return mg.Task(xs, np.sin(2 * xs.sum(-1, keepdims=True)), xq, np.sin(2 * xq.sum(-1, keepdims=True)))


def hessians(learner, weights, x, y):
    """Return the flat gradient and Hessian of the loss of one data set, for all weights."""
    variables = [tf.Variable(w) for w in weights]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_mean(tf.square(learner.predict_adapted(variables, x) - y))
        flat = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(loss, variables)], 0)
    rows = outer.jacobian(flat, variables)
    return flat.numpy(), np.concatenate([np.reshape(r, (len(flat), -1)) for r in rows], axis=1)


def implicit(learner, tasks):
    """Return the meta-gradient of all weights, and of log lambda, from the implicit function theorem."""
    theta = [v.numpy() for v in learner.model.trainable_variables]
    sizes = [t.size for t in theta]
    own = np.concatenate([np.full(s, i in learner._runner.adapting) for i, s in enumerate(sizes)])
    totals, weight_gradients = [], []
    for xs, ys, xq, yq in zip(*tasks, strict=True):
        phi = ravel(learner.adapt(xs, ys))
        for _ in range(3):  # Newton's method takes the solution to rounding
            g, h = hessians(learner, unravel(phi, theta), xs, ys)
            residual = (g + WEIGHT * (phi - ravel(theta)))[own]
            phi[own] -= np.linalg.solve(h[np.ix_(own, own)] + WEIGHT * np.eye(own.sum()), residual)
        _, h = hessians(learner, unravel(phi, theta), xs, ys)
        q, _ = hessians(learner, unravel(phi, theta), xq, yq)
        v = np.linalg.solve(np.eye(own.sum()) + h[np.ix_(own, own)] / WEIGHT, q[own])
        total = q - h[:, own] @ v / WEIGHT
        total[own] = v
        totals.append(total)
        weight_gradients.append(-(phi - ravel(theta))[own] @ v)  # times lambda / lambda: for log lambda
    return np.mean(totals, axis=0), np.mean(weight_gradients)


def unravel(flat, like):
    ends = np.cumsum([w.size for w in like])[:-1]
    return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), like, strict=True)]


@pytest.mark.parametrize("adapt", ["all", ["body"], ["head"]], ids=str)
@pytest.mark.parametrize("estimator", EXACT, ids=str)
def test_exact_forms_equal_the_implicit_function_theorem(float64, estimator, adapt):
    learner, tasks = (
        make_learner(estimator, adapt=adapt, learn="weight"),
        make_tasks(examples=6),
    )  # few, or their features are not cut off
    *gradients, weight_gradient = learner.meta_gradient(tasks).gradients
    assert answered(learner) == ({"body"} if adapt == ["head"] else set())
    expected, expected_weight = implicit(learner, tasks)
    assert relative_error(gradients, [expected]) < 1e-8
    assert abs(weight_gradient - expected_weight) < 1e-8 * abs(expected_weight)


def test_tangent_equals_central_differences_of_the_loss_where_the_inner_problem_is_solved(float64):
    """The reference moves all weights, shared or not, and lambda; it knows nothing of the implicit function theorem."""
    learner, tasks = make_learner(FOBMAML("tangent"), adapt=["body"], learn="weight"), make_tasks()
    gradient = ravel(learner.meta_gradient(tasks).gradients)
    direction = [np.random.default_rng(4).normal(size=v.shape) for v in learner.meta_variables]
    reference = directional_derivative(
        lambda: learner.meta_gradient(tasks).loss, learner.meta_variables, direction, 1e-3
    )
    assert abs(gradient @ ravel(direction) - reference) < 1e-8 * abs(reference)


def test_before_the_solution_the_tangent_is_not_the_gradient_of_the_steps_taken(float64):
    """After one step it is alpha lambda grad f(theta), and MAML's (I - alpha H) grad f(phi^1)."""
    learner, tasks = make_learner(FOBMAML("tangent"), steps=1), make_tasks(1)
    found = learner.meta_gradient(tasks).gradients
    q, _ = hessians(learner, learner.model.trainable_variables, tasks.query_x[0], tasks.query_y[0])
    assert relative_error(found, [0.2 * WEIGHT * q]) < 1e-12


@pytest.mark.parametrize(("scheme", "order"), [("forward", 1), ("symmetric", 2), ("four_point", 4)])
def test_order_of_accuracy(float64, scheme, order):
    """Halving nu divides the error, of all weights and of lambda, by 2^order at exact inner solutions."""
    tasks = make_tasks()
    learner = make_learner(FOBMAML("tangent"), adapt=["body"], learn="weight")
    exact = ravel(learner.meta_gradient(tasks).gradients)
    errors = []
    for nu in (0.1, 0.05, 0.025):
        learner.estimator = FOBMAML(scheme, nu)
        errors.append(np.abs(ravel(learner.meta_gradient(tasks).gradients) - exact))
    for part in (slice(0, 12), slice(12, -1), slice(-1, None)):  # adapting, shared, lambda
        coarse, middle, fine = (np.linalg.norm(e[part]) for e in errors)
        assert abs(np.log2(middle / fine) - order) < 0.1
        assert abs(np.log2(coarse / middle) - order) < 0.2


def test_floor_of_inexact_solutions(float64, monkeypatch):
    """Solutions known to delta and no better: lambda delta / nu at small nu, and the best nu near the predicted one."""
    tasks, delta = make_tasks(1), 1e-4
    learner = make_learner(FOBMAML("tangent"))
    exact = ravel(learner.meta_gradient(tasks).gradients)
    learner.estimator = FOBMAML("symmetric", 0.1)
    curvature = np.linalg.norm(ravel(learner.meta_gradient(tasks).gradients) - exact) / 0.1**2  # lambda C_3 / 6
    predicted = (WEIGHT * delta / (2 * curvature)) ** (1 / 3)  # where lambda C_3 nu^2 / 6 + lambda delta / nu is least
    rng, solve = np.random.default_rng(0), _problem._inner_loop.adapt

    def inexact(*args):
        path = solve(*args)
        noise = [rng.normal(size=p.shape) for p in path.end]
        scale = delta / np.linalg.norm(ravel(noise))
        return path._replace(end=[p + scale * n for p, n in zip(path.end, noise, strict=True)])

    monkeypatch.setattr(_problem._inner_loop, "adapt", inexact)
    factors, draws = 4.0 ** np.arange(-3, 2), 4
    errors = np.zeros(len(factors))
    for i, factor in enumerate(factors):
        for draw in range(draws):
            learner.estimator = FOBMAML("symmetric", float(predicted * factor * (1 + 1e-9 * draw)))  # traced anew
            errors[i] += np.linalg.norm(ravel(learner.meta_gradient(tasks).gradients) - exact) / draws
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.6  # one quarter of nu, four times the error
    bounds = WEIGHT * delta / (predicted * factors) + curvature * (predicted * factors) ** 2
    assert np.all(errors < 1.1 * bounds)
    assert factors[np.argmin(errors)] == 1
    assert errors[0] > 30 * errors.min()
    assert errors[-1] > 5 * errors.min()


def test_cold_starts_share_their_error(float64):
    """From theta both problems take the same K steps: the stencil is that of the K-step map, and has no floor."""
    learner, tasks = make_learner(FOBMAML("tangent"), steps=3), make_tasks()
    limit = ravel(learner.meta_gradient(tasks).gradients)
    learner.estimator = FOBMAML("symmetric", 1e-4)
    assert relative_error([ravel(learner.meta_gradient(tasks).gradients)], [limit]) < 1e-7


def test_unrolled_descent_tends_to_the_implicit_answer(float64):
    tasks = make_tasks()
    learner = make_learner(MAML(), learn="weight")
    expected, expected_weight = implicit(learner, tasks)
    expected = np.append(expected, expected_weight)
    theta = [v.numpy() for v in learner.model.trainable_variables]
    errors = []
    for steps in (4, 8, 16, 64):
        learner = make_learner(MAML(), steps, learn="weight")
        for variable, value in zip(learner.model.trainable_variables, theta, strict=True):
            variable.assign(value)
        errors.append(relative_error([ravel(learner.meta_gradient(tasks).gradients)], [expected]))
    assert errors[0] > 1e-3
    assert all(b < 0.5 * a for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-8


@pytest.mark.parametrize("estimator", [*EXACT[:2], FOBMAML(), FOBMAML("four_point")], ids=str)
def test_every_execution_agrees(float64, estimator):
    tasks, results = make_tasks(3), []
    tasks = mg.Task(tasks[0] * np.array([0.1, 1, 3])[:, None, None], *tasks[1:])
    for execution, jit_compile in (("map", False), ("vectorize", False), ("loop", False), ("vectorize", True)):
        keras.utils.set_random_seed(0)
        inner = mg.inner.ProximalGradientDescent(12, 0.2, WEIGHT, tolerance=0.02, learn="weight")
        model = keras.Sequential([keras.Input((2,)), layers.Dense(4, "tanh", name="body"), layers.Dense(1)])
        learner = mg.MetaLearner(
            model, "mse", inner, estimator, adapt=["body"], execution=execution, jit_compile=jit_compile
        )
        result = learner.meta_gradient(tasks)
        results.append((ravel(result.gradients), result.diagnostics["inner_steps"].numpy()))
    assert len(set(results[0][1])) > 1  # the tasks stop at different steps
    for gradients, steps in results[1:]:
        assert relative_error([gradients], [results[0][0]]) < 1e-10
        assert np.array_equal(steps, results[0][1])


def test_perturbation_follows_the_number_of_steps(float64):
    learner, tasks = make_learner(FOBMAML(), steps=25), make_tasks()
    automatic = learner.meta_gradient(tasks).gradients
    learner.estimator = FOBMAML(perturbation=step_aware_perturbation(25))
    assert relative_error(automatic, learner.meta_gradient(tasks).gradients) == 0


def test_a_solver_that_falls_short_is_reported(float64, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args if args else text))
    learner, tasks = make_learner(IMAML(iterations=1, tolerance=1e-6)), make_tasks()
    result = learner.meta_gradient(tasks)
    assert "did not converge on 2 of 2 tasks" in said[0]
    assert "Raise its `iterations`" in said[0]
    assert np.all(result.diagnostics["solver_iterations"].numpy() == 1)
    for task, residual in enumerate(result.diagnostics["solver_residual"].numpy()):
        xs, ys, xq, yq = (part[task] for part in tasks)
        weights = learner.adapt(xs, ys)
        (_, h), (q, _) = hessians(learner, weights, xs, ys), hessians(learner, weights, xq, yq)
        matrix = np.eye(len(q)) + h / WEIGHT
        v = (q @ q) / (q @ matrix @ q) * q
        assert abs(residual - np.linalg.norm(q - matrix @ v) / np.linalg.norm(q)) < 1e-8
    learner.estimator = IMAML(iterations=60, tolerance=1e-6)
    learner.meta_gradient(tasks)
    assert len(said) == 1


def test_a_comparison_says_that_a_solver_falls_short(float64, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args if args else text))
    estimators = [IMAML(iterations=1, tolerance=1e-6), IMAML(iterations=60, tolerance=1e-6)]
    mg.compare_estimators(make_learner(MAML(), steps=3), make_tasks(), estimators, repeats=2)
    assert len(said) == 1 and "did not converge on 2 of 2 tasks" in said[0]


def test_training_says_once_an_epoch_that_a_solver_falls_short(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args if args else text))
    learner = make_learner(IMAML(iterations=1, tolerance=1e-6), steps=3)
    learner.compile(keras.optimizers.SGD(0.01))
    stream = tf.data.Dataset.from_tensors(mg.Task(*(t.astype("float32") for t in make_tasks()))).repeat()
    mg.train(learner, stream, steps=4, epoch_steps=2, verbose=0)
    assert ["Step 0:" in said[0], "Step 2:" in said[1], len(said)] == [True, True, 2]
