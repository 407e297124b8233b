"""Conjugate gradients and the Neumann series against numpy.linalg, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tf_metagrad._linear_solve import SOLVERS, conjugate_gradient, neumann

SPLIT = [2, 4]  # the vectors are lists of two tensors


def spd(n, condition, seed=0):
    """A random symmetric matrix with eigenvalues from 1 to `condition`, geometric between."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return (q * np.geomspace(1, condition, n)) @ q.T


def parts(vector):
    """`[..., 6]` as tensors of shape `[..., 2]` and `[..., 2, 2]`."""
    first, second = tf.split(tf.constant(vector), SPLIT, axis=-1)
    return [first, tf.reshape(second, [*second.shape[:-1], 2, 2])]


def whole(tensors, stacked):
    lead = [tensors[0].shape[0]] if stacked else []
    return np.concatenate([np.reshape(t, [*lead, -1]) for t in tensors], -1)


def solve(solver, a, b, iterations=6, tolerance=1e-12, relaxation=None):
    """Run a solver on the system A x = b, or on stacked ones; A's last axes are the matrix."""
    stacked = b.ndim == 2

    def operator(v):
        return parts(np.einsum("...ij,...j->...i", a, whole(v, stacked)))

    found = solver(operator, parts(b), iterations, tolerance, relaxation, stacked)
    return whole(found.x, stacked), found.residual.numpy(), found.iterations.numpy()


def residual_of(a, x, b):
    return np.linalg.norm(b - np.einsum("...ij,...j->...i", a, x), axis=-1) / np.linalg.norm(b, axis=-1)


B = np.random.default_rng(5).normal(size=(4, 6))


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_conjugate_gradients_are_exact_after_n_steps(condition):
    a = spd(6, condition)
    x, residual, iterations = solve(conjugate_gradient, a, B[0], 8, 1e-8)
    np.testing.assert_allclose(x, np.linalg.solve(a, B[0]), rtol=1e-6)
    assert iterations == (1 if condition == 1 else 6)
    assert residual < 1e-8 and abs(residual - residual_of(a, x, B[0])) < 1e-12


def test_conjugate_gradients_keep_to_their_bound_at_every_step():
    """|x_k - x|_A <= 2 ((sqrt(c) - 1) / (sqrt(c) + 1))^k |x|_A, and x_k is the best point of the Krylov space."""
    a = spd(6, 50.0)
    exact = np.linalg.solve(a, B[0])

    def size(e):
        return np.sqrt(e @ a @ e)

    for k in range(1, 6):
        x, residual, iterations = solve(conjugate_gradient, a, B[0], k, 1e-12)
        ratio = (np.sqrt(50) - 1) / (np.sqrt(50) + 1)
        assert iterations == k and size(x - exact) <= 2 * ratio**k * size(exact)
        krylov = np.linalg.qr(np.stack([np.linalg.matrix_power(a, j) @ B[0] for j in range(k)], 1))[0]
        best = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ B[0])
        np.testing.assert_allclose(x, best, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(residual, residual_of(a, x, B[0]), rtol=1e-8)


@pytest.mark.parametrize("iterations", [1, 5, 40])
def test_neumann_equals_the_partial_sum(iterations):
    a = spd(6, 4.0)
    omega = 0.3
    expected = sum(omega * np.linalg.matrix_power(np.eye(6) - omega * a, j) @ B[0] for j in range(iterations))
    x, residual, count = solve(neumann, a, B[0], iterations, 1e-14, omega)
    np.testing.assert_allclose(x, expected, rtol=1e-11)
    np.testing.assert_allclose(residual, residual_of(a, x, B[0]), rtol=1e-6)
    assert count == iterations and residual <= 0.7**iterations


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_tolerance_stops_at_the_first_iterate_within_it(name, tolerance):
    a, options = spd(6, 30.0), {"relaxation": 0.06}
    x, residual, count = solve(SOLVERS[name], a, B[0], 1000, tolerance, **options)
    assert residual <= tolerance and 1 < count < 1000
    np.testing.assert_allclose(residual, residual_of(a, x, B[0]), rtol=1e-6, atol=1e-14)
    before = solve(SOLVERS[name], a, B[0], int(count) - 1, tolerance, **options)
    assert before[1] > tolerance and before[2] == count - 1


@pytest.mark.parametrize("name", SOLVERS)
def test_stacked_systems_stop_one_by_one(name):
    """Each gets what it gets alone, though others go on; one has b = 0."""
    a = np.stack([spd(6, c, seed) for seed, c in enumerate((1.0, 1.2, 40.0, 5.0))])
    b = B * np.array([[1.0], [1e-6], [1e6], [0.0]])
    x, residual, count = solve(SOLVERS[name], a, b, 200, 1e-4, 0.045)
    for i in range(4):
        alone = solve(SOLVERS[name], a[i], b[i], 200, 1e-4, 0.045)
        np.testing.assert_allclose(x[i], alone[0], rtol=1e-10)
        np.testing.assert_allclose(residual[i], alone[1], rtol=1e-7)
        assert count[i] == alone[2]
    assert len(set(count)) == 4 and count[3] == 0 and residual[3] == 0 and not x[3].any()
    np.testing.assert_allclose(residual[:3], residual_of(a[:3], x[:3], b[:3]), rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_to_solve(name):
    x, residual, count = solve(SOLVERS[name], spd(6, 3.0), np.zeros(6), 10, 1e-3, 0.1)
    assert not x.any() and residual == 0 and count == 0


def test_indefinite_matrices_stop_conjugate_gradients_with_an_honest_residual():
    """Curvature <= 0 at the first direction, or later; beside a system that is definite."""
    flat = np.diag([1.0, 2, 3, -4, -5, -6])
    late = np.diag([9.0, 8, 7, 6, 5, -0.5])
    a = np.stack([flat, late, spd(6, 20.0), np.zeros((6, 6))])
    b = np.stack([np.eye(6)[4], np.array([1, 1, 1, 1, 1, 0.3]), B[0], B[1]])
    x, residual, count = solve(conjugate_gradient, a, b, 20, 1e-10)
    assert np.isfinite(x).all() and np.isfinite(residual).all()
    np.testing.assert_allclose(residual[[0, 1, 3]], residual_of(a, x, b)[[0, 1, 3]], rtol=1e-9)
    np.testing.assert_allclose(x[2], np.linalg.solve(a[2], b[2]), rtol=1e-8)
    assert count[0] == count[3] == 1 and 1 < count[1] < 20
    assert residual[0] == residual[3] == 1 and residual[1] > 1e-3 and residual[2] <= 1e-10


@pytest.mark.parametrize("iterations", [20, 300])
def test_diverging_neumann_series_does_not_hide_it(iterations):
    a = np.stack([spd(6, 10.0), spd(6, 3.0)])
    x, residual, count = solve(neumann, a, B[:2], iterations, 1e-6, 0.5)
    assert count[0] == iterations and not residual[0] <= 100
    if iterations == 20:
        np.testing.assert_allclose(residual[0], residual_of(a, x, B[:2])[0], rtol=1e-9)
    np.testing.assert_allclose(x[1], solve(neumann, a[1], B[1], 100, 1e-6, 0.5)[0], rtol=1e-12)
