"""Reptile: the mean support gradient along the inner path.

Nichol, Achiam and Schulman, 2018, "On first-order meta-learning algorithms", arXiv:1803.02999; eq. (4) of FO-B-MAML:

    v = (theta - phi^K) / (K alpha)

Cost: K gradients and one query forward pass. Weights that are shared by all tasks (`adapt` names some layers only) have
no inner path; they get the query gradient at phi^K, as in FOMAML.
"""

import dataclasses

import keras

from tf_metagrad import _tree
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad.estimators._base import Estimator
from tf_metagrad.inner import GradientDescent


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class Reptile(Estimator):
    """Move the initialisation towards the adapted weights.

    Raises:
        ValueError: the inner optimiser learns its rates, for which Reptile has no gradient.

    Example:
        >>> Reptile().hvps(steps=5)
        0
    """

    def check(self, inner: GradientDescent) -> None:
        """See `Estimator.check`."""
        if inner.learn is not None:
            raise ValueError(
                f"Reptile has no gradient for a learned rate. Received: learn={inner.learn!r}. "
                "Use a fixed `learning_rate`, or another estimator."
            )

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt()
        query = problem.query(path.end, path.state, shared_only=True)
        moved = _tree.subtract(problem.initial(), path.end)
        gradients = [None] * len(problem.theta)
        for index, difference in zip(problem.functions.adapting, moved, strict=True):
            gradients[index] = difference / (problem.steps * problem.inner.learning_rate)
        for index, gradient in zip(problem.shared, query.gradient, strict=True):
            gradients[index] = gradient
        return Estimate(problem.mean(gradients), [], query)
