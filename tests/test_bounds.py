"""The bounds hold on random problems that meet their assumptions, and those said to be attained are attained."""

import math

import keras
import numpy as np
import pytest
from references import binomial_sum, ravel

import tf_metagrad as mg
from tf_metagrad import bounds
from tf_metagrad.bounds import Regularity

ORDERS = [(K, L, C) for K in range(1, 7) for L in range(K + 1) for C in {L, (L + K + 1) // 2, K}]
IDENTITY = np.eye(2)


def norm(matrix):
    return np.linalg.norm(matrix, 2)


def errors(hessians, L, C):
    """Return the four errors for the worst g: norms of matrices. `hessians` are alpha H^0 .. alpha H^{K-1}."""
    K, one = len(hessians), np.eye(len(hessians[0]))
    factors = [-h for h in hessians]
    exact = binomial_sum(factors, K, one)
    estimates = [one, binomial_sum(factors[K - L :], L, one), binomial_sum(factors, L, one),
                 binomial_sum(factors[K - C :], L, one)]  # fmt: skip
    return np.array([norm(exact - estimate) for estimate in estimates])


def random_hessians(rng, ranges, dimension, commuting=False):
    """Return a symmetric matrix for each range of eigenvalues, most eigenvalues at its ends, where errors are large."""
    basis, matrices = None, []
    for low, high in ranges:
        if basis is None or not commuting:
            basis = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
        share = np.clip(rng.uniform(-0.5, 1.5, size=dimension), 0, 1)
        matrices.append((basis * (low + (high - low) * share)) @ basis.T)
    return matrices


def check(hessians, L, C, bound):
    measured = errors(hessians, L, C)
    assert np.all(measured <= np.array(bound) * (1 + 1e-9) + 1e-12), (measured, bound)


@pytest.mark.parametrize("a", [0.1, 0.6, 1.7])
def test_smooth(a):
    rng = np.random.default_rng(0)
    for K, L, C in ORDERS:
        bound = bounds.smooth(K, a, L, C)
        np.testing.assert_allclose(errors([-a * IDENTITY] * K, L, C), bound, rtol=1e-9, atol=1e-12)
        if 1 <= L < K:
            assert bound.binom < bound.trunc < bound.fomaml
        for _ in range(10):
            check(random_hessians(rng, [(-a, a)] * K, int(rng.integers(1, 5))), L, C, bound)


@pytest.mark.parametrize("commuting", [False, True])
@pytest.mark.parametrize("a", [0.2, 0.6, 1.0])
def test_convex(a, commuting):
    rng = np.random.default_rng(1)
    for K, L, C in ORDERS:
        bound = bounds.convex(K, a, L, C, commuting)
        for _ in range(10):
            check(random_hessians(rng, [(0, a)] * K, int(rng.integers(1, 5)), commuting), L, C, bound)
        if commuting:  # (12a) and (12b) are attained
            np.testing.assert_allclose(errors([a * IDENTITY] * K, L, C)[0], bound.fomaml, rtol=1e-9)
            last_zero = [a * IDENTITY] * (K - L) + [0 * IDENTITY] * L
            np.testing.assert_allclose(errors(last_zero, L, C)[1], bound.trunc, rtol=1e-9, atol=1e-12)


def extremal(circles, angles):
    """Return 2 x 2 Hessians whose product acts on (1, 0) as the complex product of c + r e^{i angle}.

    `circles` are (c, r), one a step. c I + r R, R a reflection with its axis at p + angle / 2, takes x = |x| e^{i p} to
    x (c + r e^{i angle}).
    """
    hessians, phase = [], 0.0
    for (c, r), angle in zip(circles[::-1], angles[::-1], strict=True):  # H^{K-1} acts first
        axis = 2 * phase + angle
        reflection = np.array([[np.cos(axis), np.sin(axis)], [np.sin(axis), -np.cos(axis)]])
        hessians.insert(0, (1 - c) * IDENTITY - r * reflection)
        phase += np.angle(c + r * np.exp(1j * angle))
    return hessians


@pytest.mark.parametrize("a", [0.2, 0.6, 1.0])
@pytest.mark.parametrize(("K", "L"), [(1, 0), (2, 0), (3, 1), (5, 0), (5, 2)])
def test_convex_is_attained_where_the_paper_is_exceeded(K, L, a):
    """Hessians that turn by the same angle from step to step attain the corrected (12a) and (12b)."""
    bound, steps = bounds.convex(K, a, L), K - L
    candidates = [extremal([(1 - a / 2, a / 2)] * steps, [t] * steps) for t in np.linspace(0, np.pi, 721)]
    measured = [errors(h + [0 * IDENTITY] * L, L, K)[1] for h in candidates]
    assert max(measured) <= bound.trunc * (1 + 1e-9)
    assert max(measured) > bound.trunc * (1 - 1e-4)
    printed = bounds.convex(K, a, L, commuting=True)
    if steps >= 2 and a == 1:
        assert max(measured) > 1.1 * printed.trunc
    elif a == 0.2:
        assert bound.trunc == pytest.approx(printed.trunc, rel=1e-12)


def test_counterexample_of_the_docstring():
    hessians = [np.outer(v, v) for v in (np.array([1.0, 0.0]), np.array([1.0, 1.0]) / np.sqrt(2))]
    assert errors(hessians, 0, 2)[0] == pytest.approx(1.1441, abs=1e-4)
    for K, limit in ((2, 0.585), (5, 0.276)):
        same, above = (bounds.convex(K, limit + d, 0) for d in (0, 0.01))
        assert same.fomaml == pytest.approx(bounds.convex(K, limit, 0, commuting=True).fomaml, rel=1e-12)
        assert above.fomaml > bounds.convex(K, limit + 0.01, 0, commuting=True).fomaml + 1e-7


@pytest.mark.parametrize("commuting", [False, True])
@pytest.mark.parametrize(("a", "ah"), [(0.25, 0.025), (0.6, 0.3), (1.0, 0.1), (1.0, 1.0)])
def test_strongly_convex(a, ah, commuting):
    rng = np.random.default_rng(2)
    for K, L, C in ORDERS:
        for M in range(K + 1):
            if K == 6 and M not in (2, 4):
                continue
            bound = bounds.strongly_convex(K, a, ah, M, L, C, commuting)
            ranges = [(-a, a)] * (K - M) + [(ah, a)] * M
            for _ in range(3):
                check(random_hessians(rng, ranges, int(rng.integers(1, 4)), commuting), L, C, bound)
            if M <= L:  # (13b) is attained
                hessians = [-a * IDENTITY] * (K - M) + [ah * IDENTITY] * M
                np.testing.assert_allclose(errors(hessians, L, C)[1], bound.trunc, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("a", "ah"), [(0.25, 0.025), (0.6, 0.3), (1.0, 0.1)])
@pytest.mark.parametrize(("K", "M"), [(2, 1), (3, 2), (5, 2), (4, 4)])
def test_strongly_convex_fomaml_is_attained(K, M, a, ah):
    bound = bounds.strongly_convex(K, a, ah, M, truncation=0).fomaml
    circles = [(1.0, a)] * (K - M) + [(1 - (a + ah) / 2, (a - ah) / 2)] * M
    grid = 2 * np.pi * np.arange(72) / 72
    measured = max(
        norm(math_product(extremal(circles, [t] * (K - M) + [s] * M)) - IDENTITY)
        for t in (grid if M < K else [0.0]) for s in grid
    )  # fmt: skip
    assert bound * 0.99 < measured <= bound * (1 + 1e-9)


def math_product(hessians):
    product = IDENTITY
    for hessian in hessians:
        product = product @ (IDENTITY - hessian)
    return product


def test_strongly_convex_contains_the_other_theorems():
    for K, L, C in ORDERS:
        for commuting in (False, True):
            inside = bounds.strongly_convex(K, 0.7, 0.0, K, L, C, commuting)
            np.testing.assert_allclose(inside, bounds.convex(K, 0.7, L, C, commuting), rtol=1e-10, atol=1e-14)
            inside = bounds.strongly_convex(K, 0.7, 0.3, 0, L, C, commuting)
            np.testing.assert_allclose(inside, bounds.smooth(K, 0.7, L, C), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.smooth(0, 0.1, 0), "`steps` must be a whole number at least 1. Received: steps=0"),
        (lambda: bounds.smooth(3, 0.1, 4), "`truncation` must be a whole number from 0 to 3"),
        (lambda: bounds.smooth(3, 0.1, 1.0), "Received: truncation=1.0"),
        (lambda: bounds.smooth(3, 0.1, 2, horizon=1), "`horizon` must be at least `truncation`"),
        (lambda: bounds.smooth(3, -0.1, 2), "`alpha_H` must be a finite number not below 0"),
        (lambda: bounds.smooth(3, math.nan, 2), "Received: alpha_H=nan"),
        (lambda: bounds.convex(3, 1.1, 2), "from 0 to 1 .alpha <= 1/H is assumed; else use `smooth`"),
        (lambda: bounds.strongly_convex(3, 0.5, 0.6, 1, 2), "`alpha_h` must be a finite number from 0 to 0.5"),
        (lambda: bounds.strongly_convex(3, 0.5, 0.1, 4, 2), "`convex_steps` must be a whole number from 0 to 3"),
        (lambda: bounds.forward_bias(LOSSES, 0.0), "`perturbation` must be a positive number"),
        (lambda: bounds.forward_bias(LOSSES, 0.1, -1.0), "`precision` must be a number not below 0"),
        (lambda: bounds.forward_bias(LOSSES._replace(mu=-1.0), 0.1), "`mu` must be finite and positive; raise"),
        (lambda: bounds.forward_bias(LOSSES._replace(L1=-1.0), 0.1), "`L1` must be finite and 0 or more"),
        (lambda: bounds.symmetric_bias(LOSSES._replace(L2=None), 0.1), "needs `L2`"),
        (lambda: bounds.symmetric_bias(LOSSES, 2.0), "`perturbation` must be below mu / L1 = 2"),
        (lambda: bounds.best_forward(LOSSES, 0.0), "`precision` must be positive"),
        (lambda: bounds.best_symmetric(LOSSES._replace(L3_hat=None), 1e-3), "needs `L3_hat`"),
        (lambda: bounds.meta_smoothness(LOSSES._replace(proximal_weight=0.0)), "`proximal_weight` must be"),
    ],
)
def test_outside_of_the_assumptions(call, message):
    with pytest.raises(ValueError, match=message):
        call()


LOSSES = Regularity(proximal_weight=2.0, mu=2.0, L0=1.0, L1=1.0, L2_hat=0.5, L2=1.0, L3_hat=2.0)


class Ridge:
    """sum_i u(<a_i, phi> + c_i): gradient, Hessian, and bounds of its first four derivatives."""

    KINDS = {
        "sin": (np.cos, lambda t: -np.sin(t), (1, 1, 1, 1)),
        "logcosh": (np.tanh, lambda t: 1 / np.cosh(t) ** 2, (1, 1, 4 / (3 * np.sqrt(3)), 2)),
        "square": (lambda t: t, np.ones_like, (np.inf, 1, 0, 0)),
    }

    def __init__(self, kind, directions, shifts):
        self.first, self.second, sizes = self.KINDS[kind]
        self.directions, self.shifts, self.kind = np.array(directions, float), np.array(shifts, float), kind
        lengths = np.linalg.norm(self.directions, axis=1)
        self.bounds = [size * np.sum(lengths**order) for order, size in enumerate(sizes, start=1)]

    def gradient(self, phi):
        return self.directions.T @ self.first(self.directions @ phi + self.shifts)

    def hessian(self, phi):
        return (self.directions.T * self.second(self.directions @ phi + self.shifts)) @ self.directions


class Bilevel:
    """A query loss, a support loss and lambda: solutions z(nu) by Newton's method, the meta-gradient by eq. (7)."""

    def __init__(self, query, support, weight, convex):
        self.query, self.support, self.weight = query, support, weight
        mu = weight if convex else weight - support.bounds[1]
        self.regularity = Regularity(weight, mu, *query.bounds[:2], support.bounds[2], query.bounds[2],
                                     support.bounds[3])  # fmt: skip

    def solution(self, theta, nu):
        phi = theta.copy()
        for _ in range(30):
            residual = nu * self.query.gradient(phi) + self.support.gradient(phi) + self.weight * (phi - theta)
            matrix = nu * self.query.hessian(phi) + self.support.hessian(phi) + self.weight * np.eye(len(phi))
            phi = phi - np.linalg.solve(matrix, residual)
        assert np.linalg.norm(residual) < 1e-12
        return phi

    def meta_gradient(self, theta):
        phi = self.solution(theta, 0.0)
        return np.linalg.solve(np.eye(len(phi)) + self.support.hessian(phi) / self.weight, self.query.gradient(phi))

    def forward(self, theta, nu, shift=0.0):
        return -self.weight * (self.solution(theta, nu) - self.solution(theta, 0.0) + 2 * shift) / nu

    def symmetric(self, theta, nu, shift=0.0):
        return -self.weight * (self.solution(theta, nu) - self.solution(theta, -nu) + 2 * shift) / (2 * nu)


def ridges():
    rng = np.random.default_rng(3)
    wide = [rng.normal(size=(3, 2)) / 2 for _ in range(2)]
    one = [[1.0]]
    return {
        "convex": Bilevel(Ridge("sin", one, [0.0]), Ridge("logcosh", one, [0.3]), 2.0, True),
        "not convex": Bilevel(Ridge("logcosh", one, [0.0]), Ridge("sin", one, [1.0]), 2.5, False),
        "two weights": Bilevel(Ridge("sin", wide[0], [0, 1, 2]), Ridge("logcosh", wide[1], [0, 1, -1]), 1.5, True),
        "quadratic support": Bilevel(Ridge("sin", one, [0.0]), Ridge("square", one, [0.0]), 2.0, True),
    }


@pytest.mark.parametrize("scheme", ["forward", "symmetric"])
@pytest.mark.parametrize("name", ridges())
def test_bias(name, scheme):
    problem, rng, closest = ridges()[name], np.random.default_rng(4), 0.0
    bound_of = getattr(bounds, f"{scheme}_bias")
    for nu in (0.3, 0.1, 0.03):
        for _ in range(40):
            theta = rng.uniform(-3, 3, size=problem.query.directions.shape[1])
            exact, shift = problem.meta_gradient(theta), rng.normal(size=theta.shape)
            for precision in (0.0, 1e-4, 1e-2):
                off = precision * shift / np.linalg.norm(shift)  # both solutions are wrong by delta, opposite ways
                error = np.linalg.norm(getattr(problem, scheme)(theta, nu, off) - exact)
                bound = bound_of(problem.regularity, nu, precision)
                assert error <= bound * (1 + 1e-9) + 1e-12
                closest = max(closest, error / bound)
    assert closest > 0.3  # a bound that is never approached would prove nothing


def test_quadratic_bias():
    """The paper's example D.1; L_0 is the largest query gradient on the path z."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        query, support = (Ridge("square", rng.normal(size=(4, 3)), rng.normal(size=4)) for _ in range(2))
        hessian = query.hessian(np.zeros(3))
        weight, theta = 2.0, rng.normal(size=3)
        mu = weight + np.linalg.eigvalsh(support.hessian(theta))[0]
        problem = Bilevel(query, support, weight, True)
        nu = 0.3 * mu / norm(hessian)
        path = [problem.solution(theta, t) for t in np.linspace(-nu, nu, 41)]
        L0 = 1.001 * max(np.linalg.norm(query.gradient(z)) for z in path)
        regularity = Regularity(weight, mu, L0, norm(hessian), 0.0, 0.0, 0.0)
        exact = problem.meta_gradient(theta)
        for bound, estimate in ((bounds.forward_bias, problem.forward), (bounds.symmetric_bias, problem.symmetric)):
            assert np.linalg.norm(estimate(theta, nu) - exact) <= bound(regularity, nu)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_forward_bias_is_attained(weight):
    """Support -lambda/4 phi^2, so mu = lambda/2; a Huber query at the end of its parabola has |f'| = f'' = 1."""
    mu, nu = weight / 2, 1e-4
    theta, z = mu / weight, 1 / (1 + nu / mu)  # mu z(nu) - lambda theta + nu z(nu) = 0 with z(0) = 1
    bias = abs(-weight * (z - 1) / nu - weight / mu)
    bound = bounds.forward_bias(Regularity(weight, mu, L0=1.0, L1=1.0, L2_hat=0.0), nu)
    assert theta == 0.5
    assert 0.999 * bound < bias <= bound
    assert bias > 3.99 * nu / weight  # nu L_0 / lambda (L_1 + ...), as printed above (27), is exceeded fourfold


def test_symmetric_bias_is_attained():
    """Query sin phi, support phi^2/2 around z(0) = 0, where f'' = 0 and the term of f''' is all there is."""
    problem, nu = Bilevel(Ridge("sin", [[1.0]], [0.0]), Ridge("square", [[1.0]], [0.0]), 1.0, True), 0.01
    bias = abs(problem.symmetric(np.zeros(1), nu) - problem.meta_gradient(np.zeros(1)))[0]
    bound = bounds.symmetric_bias(Regularity(1.0, 2.0, 1.0, L1=nu / 2, L2_hat=0.0, L2=1.0, L3_hat=0.0), nu)
    assert 0.98 * bound < bias <= bound


@pytest.mark.parametrize("nu", [0.1, 0.7, 0.9])
def test_third_constant_off_zero(nu):
    """Query -phi^2/2 + c phi, lambda = mu = 1, z(0) = 0: z'' = -2c / (1 - nu)^3; C_3 at nu = 0 is too small for it."""
    c = 1 - nu  # so that L_0, the gradient at z(nu), is 1
    third = [6 * bounds.symmetric_bias(Regularity(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0), s) / s**2 for s in (nu, 1e-9)]
    difference = 2 * c / (1 - nu) ** 3 - 2 * c / (1 + nu) ** 3
    assert difference <= 2 * nu * third[0]
    assert third[1] == pytest.approx(6) and (nu < 0.5 or difference > 2 * nu * third[1])


def test_solver_terms_are_attained():
    """A linear query and a quadratic support loss have no bias but the solver's: lambda times that of (27)."""
    weight, nu, delta = 3.0, 0.1, 1e-3
    regularity = Regularity(weight, weight + 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert bounds.forward_bias(regularity, nu, delta) == pytest.approx(weight * (2 * delta) / nu)
    assert bounds.symmetric_bias(regularity, nu, delta) == pytest.approx(weight * (2 * delta) / (2 * nu))
    assert bounds.best_forward(regularity, delta) == bounds.best_symmetric(regularity, delta) == (math.inf, 0.0)


@pytest.mark.parametrize("scheme", ["forward", "symmetric"])
@pytest.mark.parametrize("delta", [1e-8, 1e-4, 1e-1])
def test_best_perturbation(scheme, delta):
    bias = getattr(bounds, f"{scheme}_bias")
    for regularity in (LOSSES, LOSSES._replace(proximal_weight=5.0, mu=0.4), LOSSES._replace(L1=0.0)):
        best = getattr(bounds, f"best_{scheme}")(regularity, delta)
        assert best.bias == pytest.approx(bias(regularity, best.perturbation, delta), rel=1e-12)
        limit = regularity.mu / regularity.L1 if regularity.L1 and scheme == "symmetric" else np.inf
        for nu in best.perturbation * np.geomspace(1e-2, 1e2, 201):
            assert nu >= limit or bias(regularity, nu, delta) >= best.bias * (1 - 1e-12)
        for factor in (0.99, 1.01):
            assert bias(regularity, factor * best.perturbation, delta) > best.bias


def test_closed_form_of_the_best_symmetric_perturbation():
    """Eq. (33), where C_3 does not depend on nu, here 1 / mu (3 L-hat_2 C_1 C_2 + L-hat_3 C_1^3)."""
    delta, third = 1e-5, 0.5 * (3 * 0.5 * 0.5 * (0.5 * 0.25 / 2) + 2.0 * 0.125)
    best = bounds.best_symmetric(LOSSES._replace(L1=0.0, L2=0.0), delta)
    assert best.perturbation == pytest.approx((3 * delta / third) ** (1 / 3), rel=1e-6)
    assert best.bias == pytest.approx(2.0 / 2 * (3 * delta) ** (2 / 3) * third ** (1 / 3), rel=1e-9)


@pytest.mark.parametrize("name", ridges())
def test_meta_smoothness(name):
    problem, rng = ridges()[name], np.random.default_rng(6)
    constant, slope, lipschitz = bounds.meta_smoothness(problem.regularity)
    for _ in range(100):
        theta = rng.uniform(-3, 3, size=problem.query.directions.shape[1])
        other = theta + rng.normal(size=theta.shape) * rng.choice([1e-3, 1.0])
        a, b = problem.meta_gradient(theta), problem.meta_gradient(other)
        smallest = constant + slope * min(np.linalg.norm(a), np.linalg.norm(b))
        assert np.linalg.norm(a - b) <= smallest * np.linalg.norm(theta - other) * (1 + 1e-9)
        assert smallest <= lipschitz * (1 + 1e-12)


def test_meta_smoothness_is_attained():
    """Support -lambda/4 phi^2 and query phi^2/2: phi* = 2 theta, F = 2 theta^2, so 4 L_1 and not the L_1 / 4 of C.4."""
    assert bounds.meta_smoothness(Regularity(2.0, 1.0, L0=1.0, L1=1.0, L2_hat=0.0)).constant == 4.0


# The library's own estimators, and the measured smoothness ----------------------------------------------------------


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
    learned.rates[0].assign([[0.1], [0.3], [0.2], [0.1]])
    found = bounds.estimate_smoothness(learned, make_tasks())
    assert found.alpha_H == pytest.approx(0.3 * found.H)
