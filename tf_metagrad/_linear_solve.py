"""Iterative solvers of A x = b, for the symmetric operators that implicit differentiation meets.

One interface: `solve(operator, b, iterations, tolerance, relaxation, stacked) -> LinearSolution`. The vectors are lists
of tensors. With `stacked=True` their first axis counts independent systems, which stop one by one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._loop import repeated
from tf_metagrad._types import Params

Operator = Callable[[Params], Params]


class LinearSolution(NamedTuple):
    """The solution and how good it is, the scalars once for each system.

    Attributes:
        x: the solution.
        residual: |b - A x| / |b|; 0 where b = 0.
        iterations: products with A that were used.
    """

    x: Params
    residual: tf.Tensor
    iterations: tf.Tensor


class _Iteration(NamedTuple):
    x: Params
    r: Params  # b - A x
    p: Params  # search direction
    active: tf.Tensor
    iterations: tf.Tensor


def conjugate_gradient(
    operator: Operator, b: Params, iterations: int, tolerance: float, relaxation: Any, stacked: bool
) -> LinearSolution:
    """Solve by conjugate gradients (Hestenes and Stiefel, 1952) from x = 0; `relaxation` is not used.

    A system also stops at a direction of curvature <p, A p> <= 0: A is then not positive definite, and the residual of
    what was reached so far says how far it is from a solution.
    """
    del relaxation

    def step(at: _Iteration) -> _Iteration:
        a_p = operator(at.p)
        r_r, p_a_p = _tree.dot(at.r, at.r, stacked), _tree.dot(at.p, a_p, stacked)
        active = at.active & (p_a_p > 0)
        length = tf.where(active, r_r / tf.where(active, p_a_p, 1), 0)
        x = _tree.add(at.x, _tree.scale(length, at.p))
        r = _tree.subtract(at.r, _tree.scale(length, a_p))
        turn = _tree.dot(r, r, stacked) / tf.where(r_r > 0, r_r, 1)
        return _Iteration(x, r, _tree.add(r, _tree.scale(turn, at.p)), active, at.iterations)

    return _iterate(step, b, iterations, tolerance, stacked)


def neumann(
    operator: Operator, b: Params, iterations: int, tolerance: float, relaxation: Any, stacked: bool
) -> LinearSolution:
    """Solve by the Neumann series x = omega sum_j (I - omega A)^j b (Lorraine et al., 2020, arXiv:1911.02590, eq. 8).

    omega is the `relaxation`; the series converges where the eigenvalues of omega A are in (0, 2).
    """

    def step(at: _Iteration) -> _Iteration:
        move = _tree.scale(relaxation * tf.cast(at.active, b[0].dtype), at.r)
        x = _tree.add(at.x, move)
        return at._replace(x=x, r=_tree.subtract(at.r, operator(move)))

    return _iterate(step, b, iterations, tolerance, stacked)


def _iterate(
    step: Callable[[_Iteration], _Iteration], b: Params, iterations: int, tolerance: float, stacked: bool
) -> LinearSolution:
    """Run `step` until the residual of every system is small enough, or the cap is reached."""
    scale = _tree.dot(b, b, stacked)
    goal = tolerance**2 * scale

    def body(at):
        counted = at.iterations + tf.cast(at.active, tf.int32)
        at = step(at)
        with_goal = at.active & ~(_tree.dot(at.r, at.r, stacked) <= goal)
        return (at._replace(active=with_goal, iterations=counted),)

    active = scale > 0
    first = _Iteration(_tree.zeros_like(b), list(b), list(b), active, tf.zeros_like(active, tf.int32))
    (at,) = repeated(iterations, body, (first,), lambda at: tf.reduce_any(at.active))
    residual = tf.sqrt(_tree.dot(at.r, at.r, stacked) / tf.where(scale > 0, scale, 1))
    return LinearSolution(at.x, residual, at.iterations)


SOLVERS = {"cg": conjugate_gradient, "neumann": neumann}
