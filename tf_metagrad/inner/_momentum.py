"""Gradient descent with momentum, Polyak's or Nesterov's."""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad._types import Params
from tf_metagrad.inner._base import check_fraction
from tf_metagrad.inner._gradient_descent import GradientDescent


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class Momentum(GradientDescent):
    """Gradient descent with momentum, m_{k+1} = beta m_k + G_k.

        u_k = m_{k+1}                    (Polyak, 1964)
        u_k = G_k + beta m_{k+1}         (`nesterov=True`; Sutskever et al., 2013)

    With a fixed rate it is `keras.optimizers.SGD(momentum=...)`; the rate multiplies u_k here, so that learned rates
    mean the same in every inner optimiser.

    Args:
        steps: K, the number of inner steps; at least 1.
        learning_rate: alpha, positive.
        learn: as for `GradientDescent`.
        momentum: beta, in [0, 1).
        nesterov: whether the step looks ahead.

    Raises:
        ValueError: a value outside of these.

    Example:
        >>> Momentum(steps=5, learning_rate=0.1, momentum=0.5).nesterov
        False
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self):
        """Check the configuration."""
        super().__post_init__()
        check_fraction("momentum", self.momentum)
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"`nesterov` must be True or False. Received: nesterov={self.nesterov!r}.")

    def initial_slots(self, phi: Params) -> list[tf.Tensor]:
        """See `InnerOptimizer.initial_slots`."""
        return [tf.zeros_like(p) for p in phi]

    def direction(self, gradient: Params, slots: Params, step: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """See `InnerOptimizer.direction`."""
        m = [self.momentum * m + g for m, g in zip(slots, gradient, strict=True)]
        if self.nesterov:
            return [g + self.momentum * m for g, m in zip(gradient, m, strict=True)], m
        return m, m
