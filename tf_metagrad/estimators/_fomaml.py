"""FOMAML: first-order MAML.

Finn, Abbeel and Levine, 2017, section 5.2, arXiv:1703.03400:   v = g^K.

Cost: K + 1 gradients, no HVP. Memory: one gradient's activations; no iterate is kept. A learned rate gets
dF/dD_k = -u_k * g^K, first-order as well.
"""

import dataclasses

import keras

from tf_metagrad._problem import Estimate, Problem
from tf_metagrad.estimators._base import Estimator, check_fixed_weight
from tf_metagrad.estimators._truncated import recorded_rate_gradients
from tf_metagrad.inner import InnerOptimizer


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class FOMAML(Estimator):
    """The query gradient at the adapted weights, taken as if the support gradients did not depend on theta.

    Raises:
        ValueError: the inner optimiser learns its proximal weight, for which FOMAML has no gradient.

    Example:
        >>> FOMAML().hvps(steps=5)
        0
    """

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_fixed_weight(self, inner)

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt()
        query = problem.query(path.end, path.state)
        learned = recorded_rate_gradients(problem, path, query.gradient)
        return Estimate(problem.total(query.gradient), learned, query, problem.diagnostics(path))
