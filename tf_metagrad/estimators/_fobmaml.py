"""FOBMAML: the meta-gradient as the derivative of a perturbed inner solution.

"A new first-order meta-learning algorithm with convergence guarantees" (FO-B-MAML). With

    phi_nu = argmin nu f(phi) + f-hat(phi) + lambda/2 |phi - theta|^2       (10)
    dF/dtheta = -lambda d phi_nu / d nu at nu = 0                           (proposition 1)

the derivative is taken by a stencil sum_i c_i phi_{nu_i}:

    forward     (phi_nu - phi_0) / nu                                       (12)   order nu
    symmetric   (phi_nu - phi_-nu) / (2 nu)                                 (13)   order nu^2
    four_point  (8 (phi_nu - phi_-nu) - (phi_2nu - phi_-2nu)) / (12 nu)            order nu^4

or in the limit nu -> 0, "tangent": forward-mode differentiation in the scalar nu carries one tangent t = d phi / d nu
along the inner loop,

    t^{k+1} = t^k - alpha (H^k t^k + lambda t^k + grad f(phi^k)),   t^0 = 0;

the paper says that this needs backpropagation through the loop, which is true of reverse mode only.

Any hyperparameter h of the inner objective G_nu(phi, h) has dF/dh = d/dnu [dG_nu/dh at phi_nu], eq. (20): for lambda
that is |phi_nu - theta|^2 / 2, for weights that do not adapt the gradient of nu f + f-hat.

Cost: two K gradients for each point of the stencil (one K at nu = 0), no HVP; the tangent takes K HVPs and K query
gradients. Memory: that of FOMAML and one more set of weights (four_point: three), for the problems are solved one after
the other, with the support and the query gradient one after the other. Where only some layers adapt, the features of
both sets are computed once, and held with what reaches them (`_frozen`).

Before the solution is reached neither is the gradient of the loss after K steps, which MAML computes.

Deviations: appendix A.1 gives ranges for nu; `perturbation="auto"` is 0.1 for K <= 10, 0.01 for K >= 50, and geometric
between. Where the stencil has no point at nu = 0 the query result is that of the mean of the solutions, whose distance
to phi_0 is of order nu^2. `tolerance` stops the tangent when both its own residual and that of phi are below it.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._inner_loop import Path, move, path_to, start
from tf_metagrad._loop import repeated
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad._types import Params
from tf_metagrad.estimators._base import Estimator, check_proximal
from tf_metagrad.inner import InnerOptimizer
from tf_metagrad.inner._base import is_one_of

# scheme: the points nu_i / nu, the slopes c_i nu, and the weights of the mean that the query set judges
_STENCILS = {
    "forward": ((0, 1), (-1, 1), (1, 0)),
    "symmetric": ((-1, 1), (-1 / 2, 1 / 2), (1 / 2, 1 / 2)),
    "four_point": ((-2, -1, 1, 2), (1 / 12, -8 / 12, 8 / 12, -1 / 12), (0, 1 / 2, 1 / 2, 0)),
}
_SCHEMES = (*_STENCILS, "tangent")


def step_aware_perturbation(steps: int) -> float:
    """Return nu for K inner steps, appendix A.1 of FO-B-MAML; see the module.

    Example:
        >>> [round(step_aware_perturbation(k), 3) for k in (5, 10, 25, 50, 100)]
        [0.1, 0.1, 0.027, 0.01, 0.01]
    """
    share = np.log(np.clip(steps, 10, 50) / 10) / np.log(5)
    return float(0.1 ** (1 + share))


def stencil(problem: Problem, scheme: str, perturbation: float) -> Estimate:
    """Return the estimate by finite differences in nu."""
    problem = problem.judged_often()
    initial, sums, held = problem.initial(), [], []  # sums: of slopes and of shares
    shared = [tf.zeros([], t.dtype) for t in [*problem.fixed()[0], *problem.judged.features]]
    penalty, diagnostics = 0.0, {}
    for point, slope, share in zip(*_STENCILS[scheme], strict=True):
        nu, slope = tf.constant(point * perturbation, initial[0].dtype), slope / perturbation
        known = [t for t in tf.nest.flatten([penalty, diagnostics, sums, held]) if tf.is_tensor(t)]
        known = [*known, *shared] if known else problem.features
        waiting = problem.after(known) if known else problem  # one after the other
        path = waiting.adapt(perturbation=nu if point else None)
        away = _tree.subtract(path.end, initial)
        if shared:
            shared = _tree.add(shared, _tree.scale(slope, _shared_gradient(problem, path, nu)))
        penalty += slope * _tree.dot(away, away, problem.stacked) / 2
        found = problem.diagnostics(path)
        diagnostics = {name: tf.maximum(value, diagnostics.get(name, value)) for name, value in found.items()}
        held.append((slope, share, away))
        if len(held) == 2:  # of a pair one solution is held while the other is found
            (a, b, first), (c, d, second) = held
            first = _tree.after(second, first)  # no product before
            pair = [_weighted(a, first, c, second), _weighted(b, first, d, second)]
            sums, held = [_tree.add(x, y) for x, y in zip(sums, pair, strict=True)] if sums else pair, []
    moved, mean = sums
    query = problem.after([*moved, *shared]).query(_tree.add(initial, mean), path.state, ())
    gradients = problem.merged(_tree.scale(-problem.weight(), moved), shared)
    gradients = problem.total(_tree.after([query.loss], gradients))  # one set of activations after the other
    return Estimate(gradients, problem.weight_gradient(penalty), query, diagnostics)


def _weighted(a: float, x: Params, b: float, y: Params) -> list[tf.Tensor]:
    return _tree.add(_tree.scale(a, x), _tree.scale(b, y))


def _shared_gradient(problem: Problem, path: Path, nu: tf.Tensor) -> list[tf.Tensor]:
    """Return the gradient of nu f + f-hat with respect to the weights that do not adapt."""
    support, *_ = problem.support_gradient(path.end, path.state, held_only=True)
    query = problem.query_of_held(_tree.after(support, path.end), path.state)
    return problem.held_sum(support, _tree.scale(nu, query.gradient))


def tangent(problem: Problem) -> Estimate:
    """Return the limit nu -> 0, by forward-mode differentiation in nu."""
    problem = problem.judged_often()
    adapting, weight = tuple(problem.functions.adapting), problem.weight()

    def body(step, at, t):
        with tf.name_scope("tangent_step"):
            gradient, product, state, loss = problem.curvature(at.phi, at.state, t)
            query = problem.query(_tree.after(gradient, at.phi), at.state, adapting)
            pull = _tree.scale(weight, _tree.subtract(at.phi, problem.initial()))
            gradient = _tree.add(problem.adapting(gradient), pull)
            slope = _tree.add(_tree.add(problem.adapting(product), _tree.scale(weight, t)), query.gradient)
            squares = [_tree.dot(r, r, problem.stacked) for r in (gradient, slope)]
            after, _ = move(problem, at, step, gradient, state, loss, tf.sqrt(tf.maximum(*squares)))
            turned = _tree.subtract(t, _tree.multiply(problem.rates_at(step), slope))
        return step + 1, after, _tree.select(after.active, turned, t)

    at = start(problem)
    going = (lambda step, at, t: tf.reduce_any(at.active)) if problem.inner.tolerance else None
    _, at, t = repeated(problem.steps, body, (tf.constant(0), at, _tree.zeros_like(at.phi)), going)
    query = problem.query_of_held(at.phi, at.state)
    shared = query.gradient
    if shared:
        product = problem.curvature(at.phi, at.state, t)[1]
        shared = problem.held_sum([product[i] for i in problem.held], shared)
    gradients = problem.merged(_tree.scale(-weight, t), shared)
    away = _tree.subtract(at.phi, problem.initial())
    learned = problem.weight_gradient(_tree.dot(away, t, problem.stacked))
    return Estimate(problem.total(gradients), learned, query, problem.diagnostics(path_to(problem, at)))


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class FOBMAML(Estimator):
    """The derivative of the perturbed inner solution: first-order, as exact as the solution and the stencil are.

    Args:
        scheme: `"symmetric"`, `"forward"`, `"four_point"`, or `"tangent"`, which needs no perturbation but HVPs.
        perturbation: nu, positive, or `"auto"`, the paper's step-aware rule.

    Raises:
        ValueError: a value outside of these, or an inner optimiser without a proximal term.

    Example:
        >>> FOBMAML().hvps(steps=5), FOBMAML(scheme="tangent").hvps(steps=5)
        (0, 5)
    """

    scheme: str = "symmetric"
    perturbation: float | str = "auto"

    def __post_init__(self):
        """Check the configuration."""
        if not is_one_of(self.scheme, _SCHEMES):
            raise ValueError(f"`scheme` must be one of {_SCHEMES}. Received: scheme={self.scheme!r}.")
        number = isinstance(self.perturbation, int | float | np.number) and not isinstance(self.perturbation, bool)
        if not is_one_of(self.perturbation, ("auto",)) and not (number and 0 < self.perturbation < np.inf):
            raise ValueError(
                f'`perturbation` must be a positive number or "auto". Received: perturbation={self.perturbation!r}. '
                'The limit 0 is scheme="tangent".'
            )

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        check_proximal(self, inner)

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return steps if self.scheme == "tangent" else 0

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        if self.scheme == "tangent":
            return tangent(problem)
        auto = self.perturbation == "auto"
        return stencil(problem, self.scheme, step_aware_perturbation(problem.steps) if auto else self.perturbation)
