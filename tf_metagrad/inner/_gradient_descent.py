"""Plain gradient descent, with fixed or learned rates."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad._types import Params
from tf_metagrad.inner._base import AdaptingWeights, InnerOptimizer, check_positive, is_one_of, take_count

_LEARN = (None, "scalar", "per_layer_and_step", "per_parameter")


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class GradientDescent(InnerOptimizer):
    """Plain gradient descent, phi^{k+1} = phi^k - D_k grad l_trn(phi^k).

    D_k is diagonal. It is `learning_rate` times the identity, or learned together with the initialisation:

    * `learn="scalar"`: one rate for everything;
    * `learn="per_layer_and_step"`: one for each layer and step, as in MAML++ (Antoniou et al., 2019, arXiv:1810.09502);
    * `learn="per_parameter"`: one for each weight, Meta-SGD (Li et al., 2017, arXiv:1707.09835).

    Args:
        steps: K, the number of inner steps; at least 1.
        learning_rate: alpha, positive; where rates are learned, their initial value.
        learn: `None`, `"scalar"`, `"per_layer_and_step"` or `"per_parameter"`.

    Raises:
        ValueError: a value outside of these.

    Example:
        >>> GradientDescent(steps=5, learning_rate=0.1).get_config()
        {'steps': 5, 'learning_rate': 0.1, 'learn': None}
    """

    steps: int
    learning_rate: float = 0.01
    learn: str | None = None

    def __post_init__(self):
        """Check the configuration."""
        take_count(self, "steps")
        check_positive(
            "learning_rate", self.learning_rate, " To learn it, give its initial value here and choose `learn`."
        )
        if not is_one_of(self.learn, _LEARN):
            raise ValueError(f"`learn` must be one of {_LEARN}. Received: learn={self.learn!r}.")

    def initial_hyperparameters(self, weights: AdaptingWeights) -> dict[str, np.ndarray]:
        """See `InnerOptimizer.initial_hyperparameters`."""
        if self.learn == "scalar":
            return {"rate": np.array(self.learning_rate)}
        if self.learn == "per_layer_and_step":
            return {"rate": np.full((self.steps, max(weights.layers) + 1), self.learning_rate)}
        if self.learn == "per_parameter":
            return {f"rate_{i}": np.full(shape, self.learning_rate) for i, shape in enumerate(weights.shapes)}
        return {}

    def rates_at(self, learned: Params, step: tf.Tensor, weights: AdaptingWeights, dtypes: Sequence[Any]):
        """See `InnerOptimizer.rates_at`.

        Beyond the learned table (`adapt` with more steps than were trained) the last step's rates are used.
        """
        if self.learn is None:
            rates = [tf.constant(self.learning_rate, dtype) for dtype in dtypes]
        elif self.learn == "scalar":
            rates = [learned[0]] * len(dtypes)
        elif self.learn == "per_layer_and_step":
            row = learned[0][tf.minimum(step, learned[0].shape[0] - 1)]
            rates = [row[layer] for layer in weights.layers]
        else:
            rates = learned
        return [tf.cast(rate, dtype) for rate, dtype in zip(rates, dtypes, strict=True)]
