"""The measured smoothness against explicit Hessians, and the library's own estimators against the bounds."""

import math

import keras
import numpy as np
import pytest
from references import ravel

import tf_metagrad as mg
from tf_metagrad import bounds


def make_learner(layers, steps=4, rate=0.15, **options):
    model = keras.Sequential([keras.Input((3,)), *layers])
    return mg.MetaLearner(model, "mse", mg.inner.GradientDescent(steps, rate), **options)


def make_tasks(count=3):
    rng = np.random.default_rng(1)
    xs, xq = rng.normal(size=(2, count, 6, 3))
    ys, yq = rng.normal(size=(2, count, 6, 1))
    return mg.Task(xs, ys, xq, yq)


def linear(**options):
    return make_learner([keras.layers.Dense(1, use_bias=False)], **options)


def tanh_net(**options):
    return make_learner([keras.layers.Dense(2, "tanh"), keras.layers.Dense(1, name="head")], **options)


def relative_errors(learner, tasks, L, C):
    """Return the errors of the four estimators over |g^K|, for a single task."""
    gradients = {}
    kinds = mg.estimators
    for kind in (kinds.MAML(), kinds.FOMAML(), kinds.TruncMAML(L), kinds.BinomMAML(L), kinds.BinomTruncMAML(L, C)):
        learner.estimator = kind
        gradients[kind] = ravel(learner.meta_gradient(tasks).gradients)
    exact, first, *_ = gradients.values()
    return np.array([np.linalg.norm(g - exact) for g in list(gradients.values())[1:]]) / np.linalg.norm(first)


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_library_on_quadratics(float64, rate):
    tasks = make_tasks(count=1)
    learner = linear(rate=rate, jit_compile=False)
    found = bounds.estimate_smoothness(learner, tasks)
    for L, C in ((1, 2), (1, 4), (2, 3), (3, 4)):
        measured = relative_errors(learner, tasks, L, C)
        bound = bounds.strongly_convex(4, found.alpha_H, rate * found.h, 4, L, C, commuting=True)
        for candidate in (bounds.smooth(4, found.alpha_H, L, C), bounds.convex(4, found.alpha_H, L, C), bound):
            assert np.all(measured <= np.array(candidate) * (1 + 1e-9))
        assert np.all(measured > 1e-3 * np.array(bound))


def test_library_on_a_net(float64):
    tasks = make_tasks(count=1)
    learner = tanh_net(rate=0.1, jit_compile=False)
    found = bounds.estimate_smoothness(learner, tasks)
    assert found.h < 0
    for L, C in ((1, 2), (1, 4), (2, 3), (3, 4)):
        assert np.all(relative_errors(learner, tasks, L, C) <= bounds.smooth(4, found.alpha_H, L, C))


@pytest.mark.parametrize("execution", ["vectorize", "map", "loop"])
def test_smoothness_of_quadratics(float64, execution):
    tasks = make_tasks()
    found = bounds.estimate_smoothness(linear(execution=execution, jit_compile=False), tasks)
    values = np.array([np.linalg.eigvalsh(2 * x.T @ x / len(x)) for x in tasks.support_x])
    np.testing.assert_allclose(found.extremes, np.repeat(values[:, None, [0, -1]], 4, axis=1), rtol=1e-8)
    assert found[:3] == pytest.approx((values.max(), values.min(), 0.15 * values.max()), rel=1e-8)
    assert found.residual < 1e-8


def explicit_hessian(learner, task, theta, shapes):
    """Return the Hessian of the support loss, and its gradient, by central differences of NumPy's own gradient."""
    x, y, _, _ = task

    def gradient(flat):
        (w, b, u, c), step = unravel(flat, shapes), 2 / len(x)
        hidden = np.tanh(x @ w + b)
        back = step * (hidden @ u + c - y)
        inner = (back @ u.T) * (1 - hidden**2)
        return ravel([x.T @ inner, inner.sum(0), hidden.T @ back, back.sum(0)])

    def column(direction, step=1e-3):
        at = [gradient(theta + t * step * direction) for t in (1, -1, 2, -2)]
        return (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * step)

    hessian = np.stack([column(d) for d in np.eye(len(theta))])
    return (hessian + hessian.T) / 2, gradient(theta)


def unravel(flat, shapes):
    cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, cuts), shapes, strict=True)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_smoothness_of_a_net(float64, jit_compile):
    """Also where only the head adapts, and where Lanczos stops early."""
    tasks, learner = make_tasks(), tanh_net(jit_compile=jit_compile)
    shapes = [tuple(v.shape) for v in learner.model.trainable_variables]
    expected, head = np.zeros((3, 4, 2)), np.zeros((3, 2))
    for i, task in enumerate(zip(*tasks, strict=True)):
        theta = ravel(v.numpy() for v in learner.model.trainable_variables)
        for k in range(4):
            hessian, gradient = explicit_hessian(learner, task, theta, shapes)
            expected[i, k] = np.linalg.eigvalsh(hessian)[[0, -1]]
            head[i] = np.linalg.eigvalsh(hessian[-3:, -3:])[[0, -1]] if k == 0 else head[i]
            theta = theta - 0.15 * gradient
    found = bounds.estimate_smoothness(learner, tasks)
    np.testing.assert_allclose(found.extremes, expected, rtol=1e-7, atol=1e-8)
    assert found.H == np.abs(found.extremes).max() and found.h == found.extremes.min()
    assert found.alpha_H == pytest.approx(0.15 * found.H)
    early = bounds.estimate_smoothness(learner, tasks, iterations=4)
    assert 0.9 * found.H < early.H <= found.H * (1 + 1e-9) and found.h <= early.h + 1e-9
    assert early.residual > 1e-6 > found.residual
    only = tanh_net(adapt=["head"], jit_compile=jit_compile)
    for new, old in zip(only.model.trainable_variables, learner.model.trainable_variables, strict=True):
        new.assign(old)
    np.testing.assert_allclose(bounds.estimate_smoothness(only, tasks).extremes[:, 0], head, rtol=1e-7, atol=1e-8)


def test_smoothness_of_repeated_eigenvalues(float64):
    """A multiple of the identity and an exhausted space: Lanczos starts again, and finds the other eigenvalues too."""
    tasks = make_tasks(count=2)
    support = np.stack([np.eye(3), np.diag([1.0, 0.0, 0.0])])
    tasks = mg.Task(support, tasks.support_y[:, :3], tasks.query_x, tasks.query_y)
    found = bounds.estimate_smoothness(linear(), tasks)
    np.testing.assert_allclose(found.extremes[:, 0], [[2 / 3, 2 / 3], [0.0, 2 / 3]], atol=1e-12)


def test_smoothness_is_seeded_and_traced_once(float64):
    learner, tasks = tanh_net(jit_compile=False), make_tasks()
    first, again, other = (mg.estimate_smoothness(learner, tasks, 4, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.extremes, again.extremes) and not np.array_equal(first.extremes, other.extremes)
    (function,) = [f for (kind, _), f in learner._cache.functions.items() if kind == "smoothness"]
    assert function.plain.experimental_get_tracing_count() == 1
    with pytest.raises(ValueError, match="`iterations` must be a whole number of at least 1. Received: iterations=0"):
        bounds.estimate_smoothness(learner, tasks, iterations=0)


def test_smoothness_uses_learned_rates(float64):
    learner = make_learner([keras.layers.Dense(1, use_bias=False)])
    inner = mg.inner.GradientDescent(4, 0.15, learn="per_layer_and_step")
    learned = mg.MetaLearner(learner.model, "mse", inner)
    learned.hyperparameters[0].assign([[0.1], [0.3], [0.2], [0.1]])
    found = bounds.estimate_smoothness(learned, make_tasks())
    assert found.alpha_H == pytest.approx(0.3 * found.H)
