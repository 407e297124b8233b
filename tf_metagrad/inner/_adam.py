"""Adam."""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad._types import Params
from tf_metagrad.inner._base import check_fraction, check_positive
from tf_metagrad.inner._gradient_descent import GradientDescent


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True)
class Adam(GradientDescent):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980, the form before section 2.1), with step k counted from 0.

        m_{k+1} = beta_1 m_k + (1 - beta_1) G_k,     v_{k+1} = beta_2 v_k + (1 - beta_2) G_k^2,
        u_k = sqrt(1 - beta_2^{k+1}) / (1 - beta_1^{k+1})  m_{k+1} / (sqrt(v_{k+1}) + epsilon).

    The same as `keras.optimizers.Adam`, with a larger epsilon: the derivative of u_k at G_k = 0 is of order 1/epsilon,
    which multiplies the rounding errors of gradients that should be zero (a bias before batch normalisation). The root
    has derivative 0 at v = 0, so that a weight without gradient gives no NaN.

    Args:
        steps: K, the number of inner steps; at least 1.
        learning_rate: alpha, positive.
        learn: as for `GradientDescent`.
        beta_1: decay of the mean, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: positive.

    Raises:
        ValueError: a value outside of these.

    Example:
        >>> Adam(steps=5, learning_rate=0.001).beta_2
        0.999
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-5

    def __post_init__(self):
        """Check the configuration."""
        super().__post_init__()
        check_fraction("beta_1", self.beta_1)
        check_fraction("beta_2", self.beta_2)
        check_positive("epsilon", self.epsilon)

    def initial_slots(self, phi: Params) -> list[tf.Tensor]:
        """See `InnerOptimizer.initial_slots`; the means, then the mean squares."""
        return [tf.zeros_like(p) for p in [*phi, *phi]]

    def direction(self, gradient: Params, slots: Params, step: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """See `InnerOptimizer.direction`."""
        count = len(gradient)
        m = [self.beta_1 * m + (1 - self.beta_1) * g for m, g in zip(slots[:count], gradient, strict=True)]
        v = [self.beta_2 * v + (1 - self.beta_2) * tf.square(g) for v, g in zip(slots[count:], gradient, strict=True)]
        k = tf.cast(step, tf.float64) + 1  # in float32 1 - beta_2^k is off by up to 1e-4
        correction = tf.sqrt(1 - self.beta_2**k) / (1 - self.beta_1**k)
        u = []
        for mean, square in zip(m, v, strict=True):
            u.append(tf.cast(correction, mean.dtype) * mean / (_root(square) + self.epsilon))
        return u, [*m, *v]


def _root(x: tf.Tensor) -> tf.Tensor:
    """Return sqrt(x), with derivative 0 at 0."""
    positive = x > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, x, 1)), 0)
