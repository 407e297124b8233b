"""ESMAML: Gaussian smoothing of the loss after adaptation, by antithetic pairs.

Song, Gao, Yang, Choromanski, Pacchiano and Tang, 2020, "ES-MAML: simple Hessian-free meta learning",
arXiv:1910.01215. With F(theta) the query loss after adaptation from theta and e_i standard normal,

    v = 1/n sum_i (F(theta + sigma e_i) - F(theta - sigma e_i)) / (2 sigma) e_i,

an unbiased estimate of the gradient of E F(theta + sigma e), which differs from that of F by O(sigma^2). Its variance
grows with the number of weights d: about |grad F|^2 (d + 1) / n. Every weight is moved, those that do not adapt too.

Cost: 2n + 1 inner loops, no HVP, no backpropagation through the query loss. Memory: that of one inner step, and two
sets of weights.
"""

import dataclasses

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._loop import repeated
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad._types import Params
from tf_metagrad.estimators._base import Estimator, check_fixed
from tf_metagrad.inner import InnerOptimizer
from tf_metagrad.inner._base import take_count


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class ESMAML(Estimator):
    """The gradient of the smoothed loss, from function values only; the baseline, not a recommendation.

    Args:
        pairs: n, the antithetic pairs of each task; each task draws its own, by the seed of the step.
        sigma: the standard deviation of the moves, positive.

    Raises:
        ValueError: a value outside of these, or an inner optimiser with learned hyperparameters.

    Example:
        >>> ESMAML(pairs=8).hvps(steps=5)
        0
    """

    pairs: int = 16
    sigma: float = 0.01

    def __post_init__(self):
        """Check the configuration."""
        take_count(self, "pairs")
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 < self.sigma < float("inf"):
            raise ValueError(f"`sigma` must be a positive number. Received: sigma={self.sigma!r}.")

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_fixed(self, inner)

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""

        def loss_at(offset: Params):
            moved = problem.moved(offset)
            path = moved.adapt()
            loss = moved.query_loss(path.end, path.state).loss
            lost = (path.failed_step < 0) & ~tf.math.is_finite(loss)
            return loss, tf.where(lost, problem.steps, path.failed_step)

        def body(pair, total, failed):
            noise = _noise(problem, seed, pair)
            offset = _tree.scale(self.sigma, noise)
            above, failed_above = loss_at(offset)
            with tf.control_dependencies([above]):
                below, failed_below = loss_at(_tree.scale(-1.0, offset))
            slope = (above - below) / (2 * self.sigma)
            failed = tf.maximum(failed, tf.maximum(failed_above, failed_below))
            return pair + 1, _tree.add(total, _tree.scale(slope / self.pairs, noise)), failed

        path, seed = problem.adapt(), problem.draw_seed()
        query = problem.query_loss(path.end, path.state)
        zeros = _tree.zeros_like(_noise(problem, seed, tf.constant(0)))
        _, gradients, failed = repeated(self.pairs, body, (tf.constant(0), zeros, path.failed_step))
        diagnostics = problem.diagnostics(path) | {"inner_failed_step": failed}
        return Estimate(problem.total(gradients), [], query, diagnostics)


def _noise(problem: Problem, seed: tf.Tensor, pair: tf.Tensor) -> list[tf.Tensor]:
    """Return standard normal moves of all weights, for each task where stacked; a function of its seed and the pair."""

    def one(seed):
        return [
            tf.random.stateless_normal(
                t.shape, tf.stack([seed[0] ^ index, seed[1] + tf.cast(pair, seed.dtype)]), dtype=t.dtype, alg="philox"
            )
            for index, t in enumerate(problem.theta)
        ]

    if not problem.stacked:
        return one(seed)
    return [tf.stack(parts) for parts in zip(*[one(own) for own in tf.unstack(seed)], strict=True)]
