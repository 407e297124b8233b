"""The bounds of the FO-B-MAML paper on problems with known constants: they hold, and are attained or approached."""

import math

import numpy as np
import pytest

from tf_metagrad import bounds
from tf_metagrad.bounds import Regularity

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
        nu = 0.3 * mu / np.linalg.norm(hessian, 2)
        path = [problem.solution(theta, t) for t in np.linspace(-nu, nu, 41)]
        L0 = 1.001 * max(np.linalg.norm(query.gradient(z)) for z in path)
        regularity = Regularity(weight, mu, L0, np.linalg.norm(hessian, 2), 0.0, 0.0, 0.0)
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
