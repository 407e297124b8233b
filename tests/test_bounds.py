"""The bounds of the BinomMAML paper on random Hessians: they hold, and those said to be attained are attained."""

import math

import numpy as np
import pytest
from references import binomial_sum

from tf_metagrad import bounds

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
        norm(product_of(extremal(circles, [t] * (K - M) + [s] * M)) - IDENTITY)
        for t in (grid if M < K else [0.0]) for s in grid
    )  # fmt: skip
    assert bound * 0.99 < measured <= bound * (1 + 1e-9)


def product_of(hessians):
    product = IDENTITY
    for hessian in hessians:
        product = product @ (IDENTITY - hessian)
    return product


def test_the_printed_13a_is_exceeded():
    """K = 5, M = 2 = min(L, K - L): eigenvalues [-0.6, 0.6], then [0.5, 0.6], turned from step to step."""
    circles, grid = [(1.0, 0.6)] * 3 + [(0.45, 0.05)] * 2, 2 * np.pi * np.arange(72) / 72
    measured = max(norm(product_of(extremal(circles, [t] * 3 + [s] * 2)) - IDENTITY) for t in grid for s in grid)
    bound, printed = (bounds.strongly_convex(5, 0.6, 0.5, 2, 2, commuting=c).fomaml for c in (False, True))
    assert printed < 1.0 < measured <= bound * (1 + 1e-9)
    assert measured > 0.99 * bound


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
    ],
)
def test_outside_of_the_assumptions(call, message):
    with pytest.raises(ValueError, match=message):
        call()
