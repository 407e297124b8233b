"""TruncMAML: backpropagation through the last L inner steps.

Shaban, Cheng, Hatch and Boots, 2019, "Truncated back-propagation for bilevel optimization", arXiv:1810.10667.

    v <- g^K;   for k = K-1 .. K-L:   v <- v - H^k D_k v

Cost: K + 1 gradients and L HVPs, one after the other. Memory: L iterates and one HVP's activations.
"""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._problem import Estimate, Path, Problem
from tf_metagrad._types import Params
from tf_metagrad.estimators._base import Estimator, check_at_most, check_order
from tf_metagrad.inner import GradientDescent


def recorded_rate_gradients(problem: Problem, path: Path, adjoint: Params) -> list[tf.Tensor]:
    """Return the rates' gradient from the steps before the kept ones, where the adjoint no longer changes."""
    total = _tree.zeros_like(problem.rates)
    if problem.rates and path.gradients:
        for step in range(path.gradients[0].shape[0]):
            share = problem.rate_gradients(tf.constant(step), _tree.at(path.gradients, step), adjoint)
            total = _tree.add(total, share)
    return total


def backpropagate(problem: Problem, path: Path, adjoint: Params, truncation: int) -> tuple[Params, Params]:
    """Apply the last `truncation` factors (I - H^k D_k) to the adjoint; return it and the rates' gradient."""
    first = problem.steps - truncation

    def body(step, adjoint, rate_gradients):
        with tf.name_scope("hvp"):
            phi, state = _tree.at(path.iterates, step - first), _tree.at(path.states, step - first)
            gradient, product = problem.curvature(phi, state, step, adjoint)
            share = problem.rate_gradients(step, problem.adapting(gradient), adjoint)
        return step - 1, _tree.subtract(adjoint, product), _tree.add(rate_gradients, share)

    rate_gradients = _tree.zeros_like(problem.rates)
    if truncation:
        _, adjoint, rate_gradients = tf.while_loop(
            lambda step, *_: step >= first, body, (tf.constant(problem.steps - 1), list(adjoint), rate_gradients),
            maximum_iterations=truncation, parallel_iterations=1,
        )  # fmt: skip
    return adjoint, _tree.add(rate_gradients, recorded_rate_gradients(problem, path, adjoint))


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
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

    def check(self, inner: GradientDescent) -> None:
        """See `Estimator.check`."""
        check_at_most("truncation", self.truncation, inner.steps)

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return self.truncation

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt(keep=self.truncation)
        query = problem.query(path.end, path.state)
        adjoint, rate_gradients = backpropagate(problem, path, query.gradient, self.truncation)
        return Estimate(problem.mean(adjoint), rate_gradients, query)
