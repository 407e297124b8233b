"""Every public estimator with its reference on a quadratic. A new estimator fails the suite until it is here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tf_metagrad import estimators as e
from tf_metagrad.inner import GradientDescent, InnerOptimizer, ProximalGradientDescent

STEPS, RATE = 4, 0.15
PLAIN = GradientDescent(STEPS, RATE)
SOLVED = ProximalGradientDescent(steps=300, learning_rate=RATE, weight=2.0)  # to rounding


class Case(NamedTuple):
    """An estimator and its reference.

    Attributes:
        estimator: the value.
        meta_gradient: the closed form of the estimate, a function of a `references.Quadratic`.
        adjoint: the closed form of the adjoint of phi^j, which the gradient of learned rates uses; a function of the
            quadratic and j, or None where the estimator takes no learned rates.
        inner: the inner optimiser.
        stochastic: whether the closed form is the mean over seeds.
        weight_gradient: the closed form of the gradient of log lambda, where lambda is learned.
    """

    estimator: e.Estimator
    meta_gradient: Callable[[Any], Any]
    adjoint: Callable[[Any, int], Any] | None = None
    inner: InnerOptimizer = PLAIN
    stochastic: bool = False
    weight_gradient: Callable[[Any], Any] | None = None


def _implicit(estimator: e.Estimator, *stencil: tuple[float, float]) -> Case:
    """The exact implicit gradient, or -lambda sum_i c_i phi_{nu_i} for a stencil of (nu_i, c_i)."""

    def meta_gradient(q):
        if not stencil:
            return q.implicit(SOLVED.weight)
        return -SOLVED.weight * sum(c * q.proximal(SOLVED.weight, nu) for nu, c in stencil)

    def weight_gradient(q):
        """Return lambda dF/dlambda; F depends on lambda by |phi - theta|^2 / 2, whose derivative in nu is wanted."""
        if not stencil:
            return (q.w0 - q.proximal(SOLVED.weight)) @ q.implicit(SOLVED.weight)
        return SOLVED.weight * sum(c * np.sum((q.proximal(SOLVED.weight, nu) - q.w0) ** 2) / 2 for nu, c in stencil)

    return Case(estimator, meta_gradient, inner=SOLVED, weight_gradient=weight_gradient)


CASES = {
    e.MAML: [
        Case(e.MAML(), lambda q: q.binomial(q.steps), lambda q, j: q.binomial(q.steps, start=j)),
        Case(e.MAML(mode="unrolled"), lambda q: q.binomial(q.steps), lambda q, j: q.binomial(q.steps, start=j)),
        *(
            Case(
                e.MAML(mode=mode, step_weights=(0.1, 0, 0.3, 0.6)),
                lambda q: q.multi_step((0.1, 0, 0.3, 0.6)),
                lambda q, j: q.multi_step((0.1, 0, 0.3, 0.6), start=j),
            )
            for mode in ("mixed", "unrolled")
        ),
    ],
    e.FOMAML: [Case(e.FOMAML(), lambda q: q.g, lambda q, j: q.g)],
    e.Reptile: [Case(e.Reptile(), lambda q: (q.w0 - q.path[-1]) / (q.steps * q.rates[0]))],
    e.TruncMAML: [
        Case(
            e.TruncMAML(L),
            lambda q, L=L: q.binomial(L, first=q.steps - L),
            lambda q, j, L=L: q.binomial(q.steps, first=q.steps - L, start=j),
        )
        for L in (0, 1, 2, 4)
    ],
    e.BinomMAML: [
        Case(e.BinomMAML(L), lambda q, L=L: q.binomial(L), lambda q, j, L=L: q.binomial(L, start=j))
        for L in (0, 1, 2, 3, 4)
    ],
    e.BinomTruncMAML: [
        Case(
            e.BinomTruncMAML(L, C),
            lambda q, L=L, C=C: q.binomial(L, first=q.steps - C),
            lambda q, j, L=L, C=C: q.binomial(L, first=q.steps - C, start=j),
        )
        for L, C in ((0, 3), (1, 3), (2, 2), (2, 3), (2, 4))
    ],
    e.IMAML: [
        _implicit(e.IMAML(iterations=3, tolerance=1e-12)),  # three weights: conjugate gradients end after three steps
        _implicit(e.IMAML("neumann", iterations=300, tolerance=1e-12)),
    ],
    e.FOBMAML: [
        _implicit(e.FOBMAML(scheme="tangent")),
        _implicit(e.FOBMAML("forward", 0.05), (0.05, 20), (0, -20)),
        _implicit(e.FOBMAML("symmetric", 0.05), (0.05, 10), (-0.05, -10)),
        _implicit(
            e.FOBMAML("four_point", 0.06),
            *((nu, c / 0.72) for nu, c in ((0.06, 8), (-0.06, -8), (0.12, -1), (-0.12, 1))),
        ),
    ],
    e.ESMAML: [Case(e.ESMAML(pairs=50, sigma=0.3), lambda q: q.binomial(q.steps), stochastic=True)],
}


def typical(kind: type) -> Case:
    """Return one case of a kind of estimator, by conjugate gradients where there is a choice of solvers."""
    return CASES[kind][0 if kind is e.IMAML else -1]
