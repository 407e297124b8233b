"""IMAML: implicit differentiation of the proximal solution.

Rajeswaran, Finn, Kakade and Levine, 2019, "Meta-learning with implicit gradients", arXiv:1909.04630; eqs. (7), (8) of
FO-B-MAML. With phi* the solution of min f-hat(phi) + lambda/2 |phi - theta|^2, q the query gradient at phi* and H the
Hessian of f-hat there:

    (I + H/lambda) v = q;     dF/dtheta = v.

By the same theorem weights that do not adapt get q - (1/lambda) (d^2 f-hat / d shared d phi) v, and
dF/dlambda = -(1/lambda) <phi* - theta, v>.

Cost: K + 1 gradients and one HVP for each iteration of the linear solver, and one for the residual. Memory: one HVP's
activations and four vectors; no iterate is kept.
"""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._curvature import at_point
from tf_metagrad._linear_solve import SOLVERS
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad.estimators._base import Estimator, check_proximal, check_small
from tf_metagrad.inner import InnerOptimizer
from tf_metagrad.inner._base import is_one_of, take_count


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class IMAML(Estimator):
    """The meta-gradient of the proximal solution, by an iterative linear solver.

    It is exact as far as phi^K is the solution and the linear system is solved. The diagnostics give the relative
    `solver_residual` and the `solver_iterations` of each task; a residual above `tolerance` is logged as a warning.

    Args:
        solver: `"cg"`, conjugate gradients, or `"neumann"`, the Neumann series with the relaxation alpha lambda, which
            converges wherever the inner loop does, at the same rate.
        iterations: the largest number of HVPs.
        tolerance: the relative residual at which a task's solver stops.

    Raises:
        ValueError: a value outside of these, or an inner optimiser without a proximal term.

    Example:
        >>> IMAML(iterations=5).hvps(steps=16)
        6
    """

    solver: str = "cg"
    iterations: int = 10
    tolerance: float = 1e-3

    def __post_init__(self):
        """Check the configuration."""
        if not is_one_of(self.solver, tuple(SOLVERS)):
            raise ValueError(f"`solver` must be one of {tuple(SOLVERS)}. Received: solver={self.solver!r}.")
        take_count(self, "iterations")
        check_small("tolerance", self.tolerance)

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_proximal(self, inner)

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`; the largest number."""
        return self.iterations + 1

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt()
        query = problem.query(path.end, path.state)
        weight = problem.weight()
        hessian = at_point(problem, path.end, path.state)

        def operator(vector):
            return _tree.add(vector, _tree.scale(1 / weight, problem.adapting(hessian(vector))))

        relaxation = problem.inner.learning_rate * weight
        q = problem.adapting(query.gradient)
        v, _, iterations = SOLVERS[self.solver](
            operator, q, self.iterations, self.tolerance, relaxation, problem.stacked
        )
        q_all = problem.support.widened(query.gradient)
        rest = _tree.subtract(q_all, _tree.scale(1 / weight, hessian(v)))  # q - H v / lambda, for all weights
        gap = _tree.subtract(problem.adapting(rest), v)
        lengths = [tf.sqrt(_tree.dot(a, a, problem.stacked)) for a in (gap, q)]
        gradients = problem.merged(v, [rest[i] for i in problem.held])
        moved = _tree.subtract(path.end, problem.initial())
        learned = problem.weight_gradient(-_tree.dot(moved, v, problem.stacked) / weight)
        residual = tf.math.divide_no_nan(*lengths)  # the true one: the solver's own drifts by rounding
        diagnostics = problem.diagnostics(path, solver_residual=residual, solver_iterations=iterations)
        return Estimate(problem.total(gradients), learned, query, diagnostics)
