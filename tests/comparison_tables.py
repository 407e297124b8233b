"""Comparisons made by hand, for tests that must not depend on a clock."""

import tf_metagrad as mg
from tf_metagrad._table import Row
from tf_metagrad.estimators import MAML


def row(estimator, error, ms, mib=1.0, ratio=None, steps=5, **changes):
    values = Row(estimator, error, 1 - error, error, error, 1.0, ratio, ms / 1e3, 1.0, mib, estimator.hvps(steps))
    return values._replace(**changes)


def table(*rows, device="CPU", steps=5):
    return mg.Comparison(rows, MAML(), steps, 8, 4, device, "vectorize, XLA", "allocator")
