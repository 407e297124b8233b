"""Meta-optimizers for objectives whose smoothness grows with the gradient: normalised and clipped descent.

`SNGDM` is stochastic normalised gradient descent with momentum (Cutkosky and Mehta, 2020, arXiv:2002.03305). It is a
`keras.optimizers.Optimizer` and takes the place of any other, in `MetaLearner.compile` as in `keras.Model.compile`.

ClippedGD needs no class of its own: it is `keras.optimizers.SGD(eta, global_clipnorm=c)`, one step of which is

    theta <- theta - min(eta, eta c / |g|) g,    |g| the norm of the gradient of all variables together.

* While |g| >= c, it is normalised descent: the step of `SNGDM(eta * c, momentum=0.0)`, but for epsilon.
* While |g| <= c, it is plain gradient descent at the rate eta, where normalised descent keeps its step length.
* `SNGDM(eta * c, momentum=0.0, epsilon=c)` blends the two: its step eta c g / (|g| + c) is never longer than the
  clipped one, and never shorter than half of it. This is the sense in which clipping and normalising are equivalent
  (Zhang et al., 2020, arXiv:1905.11881).

FO-B-MAML bounds the smoothness of its meta-objective by L0 + L1 |g|, and its appendix C.5 finds the step
g / (L0 + L1 |g|) best for such functions; that is `SNGDM(1 / L1, momentum=0.0, epsilon=L0 / L1)`.

Where a `tf.distribute` strategy has several replicas, Keras clips each replica's gradient before it sums them, which
is not the clipping of the sum; `SNGDM` measures the summed gradient.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = ["SNGDM"]


@keras.saving.register_keras_serializable(package="tf_metagrad")
class SNGDM(keras.optimizers.Optimizer):
    """Stochastic normalised gradient descent with momentum (Cutkosky and Mehta, 2020, arXiv:2002.03305).

        m <- beta m + (1 - beta) g
        theta <- theta - eta m / (|m| + epsilon)

    |m| is the Euclidean norm over all variables taken as one vector, so each step has the length eta, however large
    or small the gradient is, and the proportions between the variables are those of m. m starts at zero; a
    correction of that bias, as in Adam, would only scale m and so leave no trace in the step.

    What Keras does to gradients comes before m: clipping, the averaging of accumulated gradients, and the sum over the
    replicas of a `tf.distribute` strategy. What it does to weights stands beside the step and does not count in its
    length: `weight_decay=w` multiplies them by 1 - eta w. A variable whose gradient is None does not take part: it
    and its m stay, and its m is left out of |m|.

    SNGM (Zhao et al., 2020, arXiv:2007.13985) has nearly the same name but is another method: it normalises each
    gradient before it enters m, so its steps differ in length.

    Under a strategy with several replicas the gradients are summed twice, once for |m| and once more by Keras.

    Args:
        learning_rate: eta, the length of a step; a float, a schedule of `keras.optimizers.schedules` or a callable.
        momentum: beta, at least 0 and less than 1; at 0 it is normalised gradient descent.
        epsilon: positive; keeps m = 0 from being divided by zero. The default changes steps where |m| is near 1e-8
            or below only: they shrink towards zero with |m|. A large value turns normalising into a soft clipping,
            see `tf_metagrad.optimizers`.
        name: the name of the optimizer, `"sngdm"` with a number by default.
        **kwargs: what every Keras optimizer takes: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`.

    Raises:
        ValueError: `momentum` outside [0, 1), `epsilon` not positive, or an argument that Keras refuses.

    Example:
        >>> weights = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
        >>> optimizer = SNGDM(learning_rate=0.5)
        >>> optimizer.apply([tf.constant([30.0, 0.0]), tf.constant([40.0])], weights)
        >>> [w.numpy().round(4).tolist() for w in weights]  # a step of length 0.5 along (3, 0, 4)
        [[0.7, 2.0], [2.6]]
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        epsilon: float = 1e-8,
        name: str | None = None,
        **kwargs: Any,
    ):
        """Check and store the configuration; see the class."""
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if not _is_number(momentum) or not 0 <= momentum < 1:
            raise ValueError(
                "`momentum` must be a number of at least 0 and less than 1, the share of m that a step keeps. "
                f"Received: momentum={momentum!r}. Use 0.9, or 0.0 for none."
            )
        if not _is_number(epsilon) or not 0 < epsilon < float("inf"):
            raise ValueError(
                "`epsilon` must be a positive number, because it is added to the norm that divides m. "
                f"Received: epsilon={epsilon!r}. Use 1e-8."
            )
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the slot m of each variable, at zero."""
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Update m and the variable; `learning_rate` is the multiple of m to subtract, eta / (|m| + epsilon)."""
        slot = self.momentums[self._get_variable_index(variable)]
        m = self._next_momentum(gradient, variable)
        self.assign(slot, m)
        self.assign_sub(variable, tf.cast(learning_rate, m.dtype) * m)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer, without its state."""
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}

    def _backend_update_step(self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any):
        """Turn eta into eta / (|m| + epsilon), and let Keras run `update_step` on each variable with it.

        It is the one place of a Keras optimizer that sees all gradients at once, after Keras has clipped and averaged
        them. A replica holds only its own share of the gradient here, so |m| takes a sum over the replicas first.
        """
        grads = [tf.convert_to_tensor(g) for g in grads]  # the rows of an embedding's gradient add up
        summed = self._all_reduce_sum_gradients(list(zip(grads, trainable_variables, strict=True)))
        norm = _global_norm([self._next_momentum(g, v) for g, v in summed])
        scale = tf.math.divide_no_nan(tf.cast(learning_rate, norm.dtype), norm + self.epsilon)
        super()._backend_update_step(grads, trainable_variables, scale)

    def _next_momentum(self, gradient: tf.Tensor, variable: Any) -> tf.Tensor:
        m = tf.convert_to_tensor(self.momentums[self._get_variable_index(variable)])
        return self.momentum * m + (1 - self.momentum) * tf.cast(gradient, m.dtype)


def _global_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the norm of all entries; they are divided by the largest first, so that no square overflows."""
    dtype = tf.float64 if any(t.dtype == tf.float64 for t in tensors) else tf.float32
    tensors = [tf.cast(t, dtype) for t in tensors]
    largest = tf.reduce_max(tf.stack([tf.reduce_max(tf.abs(t)) for t in tensors]))
    unit = tf.where(largest > 0, largest, tf.ones_like(largest))
    return unit * tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(t / unit)) for t in tensors]))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
