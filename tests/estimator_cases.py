"""Every public estimator with its reference on a quadratic. A new estimator fails the suite until it is here.

A case is `(estimator, meta_gradient, adjoint)`: the closed form of the estimate, and of the adjoint of phi^j that the
gradient of learned rates uses (None where the estimator takes no learned rates).
"""

from tf_metagrad import estimators as e

CASES = {
    e.MAML: [
        (e.MAML(), lambda q: q.binomial(q.steps), lambda q, j: q.binomial(q.steps, start=j)),
        (e.MAML(mode="unrolled"), lambda q: q.binomial(q.steps), lambda q, j: q.binomial(q.steps, start=j)),
    ],
    e.FOMAML: [(e.FOMAML(), lambda q: q.g, lambda q, j: q.g)],
    e.Reptile: [(e.Reptile(), lambda q: (q.w0 - q.path[-1]) / (q.steps * q.rates[0]), None)],
    e.TruncMAML: [
        (
            e.TruncMAML(L),
            lambda q, L=L: q.binomial(L, first=q.steps - L),
            lambda q, j, L=L: q.binomial(q.steps, first=q.steps - L, start=j),
        )
        for L in (0, 1, 2, 4)
    ],
    e.BinomMAML: [
        (e.BinomMAML(L), lambda q, L=L: q.binomial(L), lambda q, j, L=L: q.binomial(L, start=j))
        for L in (0, 1, 2, 3, 4)
    ],
    e.BinomTruncMAML: [
        (
            e.BinomTruncMAML(L, C),
            lambda q, L=L, C=C: q.binomial(L, first=q.steps - C),
            lambda q, j, L=L, C=C: q.binomial(L, first=q.steps - C, start=j),
        )
        for L, C in ((0, 3), (1, 3), (2, 2), (2, 3), (2, 4))
    ],
}
