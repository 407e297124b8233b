"""TruncMAML: backpropagation through the last L inner steps.

Shaban, Cheng, Hatch and Boots, 2019, "Truncated back-propagation for bilevel optimization", arXiv:1810.10667.

    v <- g^K;   for k = K-1 .. K-L:   v <- v - H^k D_k v

Other inner optimisers put the transpose of their update rule in the place of (I - H^k D_k), see `_transposed_loop`. The
support gradients of earlier steps are taken as constant, so that d phi^{K-L} / d theta = I.

Cost: K + 1 gradients and L HVPs, one after the other. Memory: L iterates (with slots: L of phi, the gradient and the
slots) and one HVP's activations.
"""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._inner_loop import Path
from tf_metagrad._loop import repeated
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad._transposed_loop import Adjoint, adjoint_at_end, transposed_step
from tf_metagrad._types import Params
from tf_metagrad.estimators._base import Estimator, check_at_most, check_fixed_weight, check_order
from tf_metagrad.inner import InnerOptimizer


def recorded_rate_gradients(problem: Problem, path: Path, adjoint: Params) -> list[tf.Tensor]:
    """Return the rates' gradient from the steps before the kept ones, where the adjoint no longer changes."""
    total = _tree.zeros_like(problem.learned)
    if path.directions:
        for step in range(path.directions[0].shape[0]):
            share = problem.rate_gradients(tf.constant(step), _tree.at(path.directions, step), adjoint)
            total = _tree.add(total, share)
    return total


def backpropagate(problem: Problem, path: Path, query_gradient: Params, truncation: int) -> tuple[Params, Params]:
    """Walk back over the last `truncation` steps; return the gradients of theta and of the hyperparameters."""
    first = problem.steps - truncation

    def body(step, adjoint):
        with tf.name_scope("hvp"):
            return step - 1, transposed_step(problem, path, step - first, step, adjoint)

    adjoint = adjoint_at_end(problem, query_gradient)
    if truncation:
        _, adjoint = repeated(truncation, body, (tf.constant(problem.steps - 1), adjoint))
    return _totals(problem, path, adjoint)


def _totals(problem: Problem, path: Path, adjoint: Adjoint) -> tuple[Params, Params]:
    earlier = recorded_rate_gradients(problem, path, adjoint.weights)
    return adjoint.gradient(problem), _tree.add(adjoint.hyperparameters, earlier)


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class TruncMAML(Estimator):
    """Backpropagate through the last `truncation` inner steps and treat the earlier ones as constant.

    Args:
        truncation: L, from 0 (FOMAML) to the number of inner steps (MAML).

    Raises:
        ValueError: `truncation` is negative, not whole, or (once the inner optimiser is known) above its steps.

    Example:
        >>> TruncMAML(truncation=2).hvps(steps=5)
        2
    """

    truncation: int = 1

    def __post_init__(self):
        """Check the configuration."""
        check_order("truncation", self.truncation)

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_at_most("truncation", self.truncation, inner.steps)
        if self.truncation < inner.steps:
            check_fixed_weight(self, inner)
            if inner.tolerance:
                raise ValueError(
                    "TruncMAML keeps the last of K steps, which a task that stops early does not take. "
                    f"Received: truncation={self.truncation}, tolerance={inner.tolerance}. Use tolerance=0, or MAML."
                )

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return self.truncation

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt(keep=self.truncation, stacked=False, products=True)
        query = problem.query(path.end, path.state)
        gradients = backpropagate(problem, path, query.gradient, self.truncation)
        return Estimate(*gradients, query, problem.diagnostics(path))
