"""BinomMAML and its hybrid with truncation: all products of at most L Hessians.

"BinomMAML", ICLR 2026, eq. (8), with the diagonal rate D_k for alpha:

    v = [ I + sum_{l=1..L} sum_{k_1 < ... < k_l} prod_i (-H^{k_i} D_{k_i}) ] g^K

By the recursion of its Algorithm 2 and eq. (24), v_l[k] being the sum over products of at most l Hessians among
H^k .. H^{K-1}:

    v_0[k] = g^K;   v_l[k] = v_l[k+1] - H^k D_k v_{l-1}[k+1];   the answer is v_L[0].

At level l only k = L-l .. K-l is needed: K-L+1 independent HVPs, which run in parallel, and a cumulative sum.
Cost: L (K-L+1) HVPs, L deep. Memory: K iterates and K-L+1 adjoints. BinomTruncMAML(L, C), eq. (39), uses the last C
Hessians only.

Deviations: Algorithm 1 starts at H^L .. H^K, and H^K does not exist; the indices here are those of Algorithm 2. The
substitution alpha' = L alpha / K of appendix C.2 costs accuracy as an estimator; it is the option `rescale`, off by
default.
"""

import dataclasses
import functools

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._curvature import in_parallel
from tf_metagrad._inner_loop import Path
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad._types import Params
from tf_metagrad.estimators._base import Estimator, check_at_most, check_order, check_plain
from tf_metagrad.estimators._truncated import recorded_rate_gradients
from tf_metagrad.inner import InnerOptimizer


def binomial(problem: Problem, path: Path, query_gradient: Params, truncation: int, scale: float = 1.0):
    """Return v_L[0] over the Hessians at the kept iterates, and the rates' gradient."""
    L, C = truncation, path.iterates[0].shape[0] if path.iterates else 0  # noqa: N806  the paper's letters
    first = problem.steps - C  # step of the earliest Hessian used
    rate_gradients = _tree.zeros_like(problem.learned)
    if L == 0:
        return query_gradient, recorded_rate_gradients(problem, path, query_gradient)
    parallel = C - L + 1
    curvatures = tf.function(functools.partial(in_parallel, problem, path), autograph=False)  # one trace for all levels
    v_0 = problem.support.widened(query_gradient)
    level = [tf.repeat(g[None], parallel, axis=0) for g in v_0]  # v_0[k+1], k = L-1 .. C-1
    for l in range(1, L + 1):  # noqa: E741
        steps = slice(L - l, C - l + 1)
        recorded = (path.iterates, path.states) if path.stored is None else ([], [])
        index = tf.range(C)[steps]
        with tf.name_scope(f"hvp_level_{l}"):
            point = tf.nest.map_structure(lambda t, steps=steps: t[steps], recorded)
            gradients, products = curvatures(point, index, first + index, level)
        last = _tree.at(level, -1)  # v_{l-1}[C-l+1] = v_l[C-l+1]
        share = problem.rate_gradients(tf.constant(first + C - l), _tree.at(gradients, -1), last)
        rate_gradients = _tree.add(rate_gradients, share)
        level = [
            v[None] - scale * tf.cumsum(h, axis=0, reverse=True) for v, h in zip(last, products, strict=True)
        ]  # v_l[k], k = L-l .. C-l
    for k in range(C - L if problem.learned else 0):
        gradient, adjoint = _tree.at(gradients, k), _tree.at(level, k + 1)
        rate_gradients = _tree.add(rate_gradients, problem.rate_gradients(tf.constant(first + k), gradient, adjoint))
    adjoint = _tree.at(level, 0)
    return adjoint, _tree.add(rate_gradients, recorded_rate_gradients(problem, path, adjoint))


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class BinomMAML(Estimator):
    """The binomial expansion of the exact meta-gradient, cut at order `truncation`, with parallel HVPs.

    Args:
        truncation: L, from 0 (FOMAML) to the number of inner steps (MAML).
        rescale: use L alpha / K for alpha in the expansion (appendix C.2). A damping for large rates, not an
            approximation: with small rates it is less accurate.

    Raises:
        ValueError: `truncation` is negative, not whole, or (once the inner optimiser is known) above its steps.

    Example:
        For 2 <= L <= K - 1 the HVPs outnumber MAML's; they win time only where they run in parallel.

        >>> [BinomMAML(truncation=L).hvps(steps=5) for L in (1, 2, 3, 4, 5)]
        [5, 8, 9, 8, 5]
    """

    truncation: int = 1
    rescale: bool = False

    def __post_init__(self):
        """Check the configuration."""
        check_order("truncation", self.truncation)
        if not isinstance(self.rescale, bool):
            raise ValueError(f"`rescale` must be True or False. Received: rescale={self.rescale!r}.")

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_plain(self, inner)
        check_at_most("truncation", self.truncation, inner.steps)

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return self.truncation * (steps - self.truncation + 1)

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt(keep=problem.steps if self.truncation else 0, products=not problem.stacked)
        query = problem.query(path.end, path.state)
        scale = self.truncation / problem.steps if self.rescale else 1.0
        adjoint, rate_gradients = binomial(problem, path, query.gradient, self.truncation, scale)
        return Estimate(problem.total(adjoint), rate_gradients, query, problem.diagnostics(path))


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class BinomTruncMAML(Estimator):
    """The binomial expansion over the last `horizon` Hessians; horizon = K is Binom, horizon = L is Trunc.

    Args:
        truncation: L, from 0 (FOMAML) to `horizon`.
        horizon: C, from `truncation` to the number of inner steps.

    Raises:
        ValueError: orders that are negative, not whole, or not `truncation <= horizon <= steps`.

    Example:
        >>> BinomTruncMAML(truncation=1, horizon=4).hvps(steps=5)
        4
    """

    truncation: int = 1
    horizon: int = 1

    def __post_init__(self):
        """Check the configuration."""
        check_order("truncation", self.truncation)
        check_order("horizon", self.horizon)
        if self.truncation > self.horizon:
            raise ValueError(
                f"`horizon` must be at least `truncation`. Received: truncation={self.truncation}, "
                f"horizon={self.horizon}. Raise `horizon` or lower `truncation`."
            )

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_plain(self, inner)
        check_at_most("horizon", self.horizon, inner.steps)

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return self.truncation * (self.horizon - self.truncation + 1)

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        path = problem.adapt(keep=self.horizon if self.truncation else 0, products=not problem.stacked)
        query = problem.query(path.end, path.state)
        adjoint, rate_gradients = binomial(problem, path, query.gradient, self.truncation)
        return Estimate(problem.total(adjoint), rate_gradients, query, problem.diagnostics(path))
