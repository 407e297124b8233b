"""Inner optimisers: how a task adapts its weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad._types import Params

_LEARN = (None, "scalar", "per_layer_and_step", "per_parameter")


class AdaptingWeights(NamedTuple):
    """What an inner optimiser needs to know of the weights that adapt: shapes, and the layer that owns each."""

    shapes: list[tuple[int, ...]]
    layers: list[int]


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class GradientDescent:
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
        if isinstance(self.steps, bool) or not isinstance(self.steps, int | np.integer) or self.steps < 1:
            raise ValueError(f"`steps` must be a whole number of at least 1. Received: steps={self.steps!r}.")
        if not isinstance(self.learning_rate, int | float | np.number) or not 0 < self.learning_rate < np.inf:
            raise ValueError(
                f"`learning_rate` must be a positive number. Received: learning_rate={self.learning_rate!r}. "
                "To learn it, give its initial value here and choose `learn`."
            )
        if self.learn not in _LEARN:
            raise ValueError(f"`learn` must be one of {_LEARN}. Received: learn={self.learn!r}.")

    def initial_rates(self, weights: AdaptingWeights) -> dict[str, np.ndarray]:
        """Return the initial value of each learned rate, by name; empty where the rate is a number."""
        if self.learn == "scalar":
            return {"rate": np.array(self.learning_rate)}
        if self.learn == "per_layer_and_step":
            return {"rate": np.full((self.steps, max(weights.layers) + 1), self.learning_rate)}
        if self.learn == "per_parameter":
            return {f"rate_{i}": np.full(shape, self.learning_rate) for i, shape in enumerate(weights.shapes)}
        return {}

    def rates_at(self, learned: Params, step: tf.Tensor, weights: AdaptingWeights, dtypes: Sequence[Any]):
        """Return D_k as one tensor for each adapting weight: a scalar, or of the weight's shape.

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

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GradientDescent":
        """Return the value that `get_config` described."""
        return cls(**config)
