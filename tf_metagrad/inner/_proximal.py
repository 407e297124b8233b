"""Proximal gradient descent: adaptation held near the initialisation."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad._types import Params
from tf_metagrad.inner._base import AdaptingWeights, InnerOptimizer, check_positive, is_one_of, take_count


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class ProximalGradientDescent(InnerOptimizer):
    """Gradient descent on f-hat(phi) + lambda/2 |phi - theta|^2, the inner problem (6) of FO-B-MAML and of iMAML.

        G_k = grad f-hat(phi^k) + lambda (phi^k - theta),     phi^{k+1} = phi^k - alpha G_k.

    It converges where alpha (lambda + H) < 2, with H the smoothness of the support loss. A task stops where
    |G_k| <= `tolerance`; if the inner objective is mu-strongly convex, its distance to the solution is then at most
    tolerance / mu, the delta of FO-B-MAML's eq. (15). `MetaLearner.solve` says what stopped it.

    Args:
        steps: K, the largest number of inner steps; at least 1.
        learning_rate: alpha, positive.
        weight: lambda, positive; FO-B-MAML (appendix A.2) found 2.0 robust, or about 1/alpha of MAML.
        tolerance: the norm of G_k, over all adapting weights, at which a task stops; 0 takes all K steps.
        learn: None, or `"weight"`: lambda is learned together with the initialisation, as its logarithm.

    Raises:
        ValueError: a value outside of these, or alpha lambda >= 2, where no problem converges.

    Example:
        >>> ProximalGradientDescent(steps=16, learning_rate=0.1, weight=2.0).tolerance
        0.0
    """

    steps: int
    learning_rate: float = 0.01
    weight: float = 2.0
    tolerance: float = 0.0
    learn: str | None = None
    proximal: ClassVar[bool] = True

    def __post_init__(self):
        """Check the configuration."""
        take_count(self, "steps")
        check_positive("learning_rate", self.learning_rate)
        check_positive("weight", self.weight)
        if not (isinstance(self.tolerance, int | float) and self.tolerance == 0):
            check_positive("tolerance", self.tolerance)
        if not is_one_of(self.learn, (None, "weight")):
            raise ValueError(f'`learn` must be None or "weight". Received: learn={self.learn!r}.')
        if self.learning_rate * self.weight >= 2:
            raise ValueError(
                "`learning_rate` times `weight` must be below 2, or the proximal term alone makes the loop diverge. "
                f"Received: learning_rate={self.learning_rate}, weight={self.weight}. Lower one of them."
            )

    def initial_hyperparameters(self, weights: AdaptingWeights) -> dict[str, np.ndarray]:
        """See `InnerOptimizer.initial_hyperparameters`."""
        return {"log_weight": np.log(self.weight)} if self.learn == "weight" else {}

    def weight_of(self, learned: Params, dtype: Any) -> tf.Tensor:
        """Return lambda, a scalar."""
        return tf.cast(tf.exp(learned[0]), dtype) if self.learn == "weight" else tf.constant(self.weight, dtype)

    def rates_at(self, learned: Params, step: tf.Tensor, weights: AdaptingWeights, dtypes: Sequence[Any]):
        """See `InnerOptimizer.rates_at`."""
        return [tf.constant(self.learning_rate, dtype) for dtype in dtypes]
