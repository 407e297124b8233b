"""MAML: the exact meta-gradient.

Finn, Abbeel and Levine, 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400.

    v <- g^K;   for k = K-1 .. 0:   v <- v - H^k D_k v

Mixed mode computes each product by forward-over-reverse autodiff (Kemaev et al., 2025, "Scalable meta-learning via
mixed-mode differentiation", arXiv:2505.00793). Its memory is K|theta| and one HVP's activations; the tape through the
unrolled loop gives the same number and keeps the activations of all K steps.
"""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._problem import Estimate, Problem, Query
from tf_metagrad.estimators._base import Estimator
from tf_metagrad.estimators._truncated import backpropagate

_MODES = ("mixed", "unrolled")


def unrolled(problem: Problem) -> Estimate:
    """Return the exact meta-gradient by one tape through all inner steps."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([problem.theta, problem.rates])
        phi, state = problem.initial(), problem.state
        for step in range(problem.steps):
            gradient, state = problem.support_gradient(phi, state)
            phi = _tree.subtract(phi, _tree.multiply(problem.rates_at(tf.constant(step)), gradient))
        loss, predictions = problem.query_loss(phi, state)
        mean = tf.reduce_mean(loss)
    gradients = tape.gradient(mean, problem.theta + problem.rates, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = [tf.convert_to_tensor(g) for g in gradients]
    count = len(problem.theta)
    return Estimate(gradients[:count], gradients[count:], Query(loss, predictions, gradients[:count]))


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class MAML(Estimator):
    """The exact meta-gradient, by mixed-mode autodiff (memory flat in the steps) or by the unrolled tape.

    Args:
        mode: `"mixed"` or `"unrolled"`; the numbers agree, the memory does not.

    Raises:
        ValueError: another mode.

    Example:
        >>> MAML().hvps(steps=5)
        5
    """

    mode: str = "mixed"

    def __post_init__(self):
        """Check the configuration."""
        if self.mode not in _MODES:
            raise ValueError(f"`mode` must be one of {_MODES}. Received: mode={self.mode!r}.")

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return steps

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        if self.mode == "unrolled":
            return unrolled(problem)
        path = problem.adapt(keep=problem.steps)
        query = problem.query(path.end, path.state)
        adjoint, rate_gradients = backpropagate(problem, path, query.gradient, problem.steps)
        return Estimate(problem.mean(adjoint), rate_gradients, query)
