"""Reptile: the mean support gradient along the inner path.

Nichol, Achiam and Schulman, 2018, "On first-order meta-learning algorithms", arXiv:1803.02999; eq. (4) of FO-B-MAML:

    v = (theta - phi^K) / (K alpha)

K is the number of steps taken, where a tolerance stopped the loop. With an inner optimiser other than gradient descent
it is the same difference, as Reptile's authors used with Adam.

Cost: K gradients and one query forward pass. Weights that are shared by all tasks (`adapt` names some layers only) have
no inner path; they get the query gradient at phi^K, as in FOMAML.
"""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad.estimators._base import Estimator, check_fixed
from tf_metagrad.inner import InnerOptimizer


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class Reptile(Estimator):
    """Move the initialisation towards the adapted weights.

    Raises:
        ValueError: the inner optimiser learns hyperparameters, for which Reptile has no gradient.

    Example:
        >>> Reptile().hvps(steps=5)
        0
    """

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_fixed(self, inner)

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt()
        query = problem.query(path.end, path.state, tuple(problem.shared))
        moved = _tree.subtract(problem.initial(), path.end)
        length = problem.inner.learning_rate * tf.cast(tf.maximum(path.taken, 1), moved[0].dtype)
        gradients = problem.merged(_tree.scale(1 / length, moved), query.gradient)
        return Estimate(problem.total(gradients), [], query, problem.diagnostics(path))
