"""RMSprop."""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad._types import Params
from tf_metagrad.inner._base import check_fraction, check_positive
from tf_metagrad.inner._gradient_descent import GradientDescent


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class RMSprop(GradientDescent):
    """RMSprop (Hinton, 2012), v_{k+1} = rho v_k + (1 - rho) G_k^2,  u_k = G_k / sqrt(v_{k+1} + epsilon).

    The same as `keras.optimizers.RMSprop`, with a larger epsilon: the derivative of u_k at G_k = 0 is
    1 / sqrt(epsilon), which multiplies the rounding errors of gradients that should be zero.

    Args:
        steps: K, the number of inner steps; at least 1.
        learning_rate: alpha, positive.
        learn: as for `GradientDescent`.
        rho: decay of the mean square, in [0, 1).
        epsilon: positive; inside the root, so that the rule is differentiable at zero.

    Raises:
        ValueError: a value outside of these.

    Example:
        >>> RMSprop(steps=5, learning_rate=0.001).rho
        0.9
    """

    rho: float = 0.9
    epsilon: float = 1e-6

    def __post_init__(self):
        """Check the configuration."""
        super().__post_init__()
        check_fraction("rho", self.rho)
        check_positive("epsilon", self.epsilon)

    def initial_slots(self, phi: Params) -> list[tf.Tensor]:
        """See `InnerOptimizer.initial_slots`."""
        return [tf.zeros_like(p) for p in phi]

    def direction(self, gradient: Params, slots: Params, step: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """See `InnerOptimizer.direction`."""
        v = [self.rho * v + (1 - self.rho) * tf.square(g) for v, g in zip(slots, gradient, strict=True)]
        return [g * tf.math.rsqrt(v + self.epsilon) for g, v in zip(gradient, v, strict=True)], v
