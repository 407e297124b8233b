"""The cheapest estimator of a comparison that keeps within a budget, and why it is the one."""

import math
from typing import NamedTuple

import numpy as np

from tf_metagrad._table import Comparison, Row, figure
from tf_metagrad.estimators import MAML, BinomMAML, BinomTruncMAML, Estimator

_TIE = 1.1  # times within a tenth of the fastest count as equal: machines are noisy


class Recommendation(NamedTuple):
    """An estimator, and in a sentence or two why it is the one. `str` of it is the reason.

    Example:
        >>> print(Recommendation(MAML(), "MAML is the only one that is exact."))
        MAML is the only one that is exact.
    """

    estimator: Estimator
    reason: str

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason


def recommend(
    comparison: Comparison,
    *,
    max_error: float | None = 0.1,
    max_memory: float | None = None,
    max_bias_to_noise: float | None = None,
) -> Recommendation:
    """Return the estimator with the fastest step inside the budgets.

    Of those within a tenth of the fastest step, the one with the fewest HVPs is taken, then the most accurate. On a
    CPU, BinomMAML and BinomTruncMAML are ruled out where exact MAML needs no more HVPs than they do: their one
    advantage is to run them in parallel.

    Args:
        comparison: of `compare_estimators`.
        max_error: largest relative error of the mean estimate; None for any.
        max_memory: largest peak memory of a step in MiB; None for any.
        max_bias_to_noise: largest bias over the noise of one batch; None for any. At 1 the bias hides in the noise of
            a step, though not in the mean of many.

    Returns:
        `Recommendation(estimator, reason)`.

    Raises:
        ValueError: nothing fits, in a sentence that says what comes nearest; a budget for what was not measured; a
            budget that is no number of at least 0.

    Example:
        >>> from tf_metagrad.estimators import FOMAML
        >>> exact = Row(MAML(), 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 0.004, 1.5, 3.0, 5)
        >>> cheap = Row(FOMAML(), 0.2, 0.98, 0.2, 0.1, 0.5, 0.2, 0.001, 0.5, 1.0, 0)
        >>> comparison = Comparison((exact, cheap), MAML(), 5, 8, 4, "CPU", "vectorize, XLA", "allocator")
        >>> recommend(comparison, max_error=0.1).estimator
        MAML()
        >>> recommend(comparison, max_error=0.3).estimator
        FOMAML()
    """
    budgets = _budgets(comparison, {"error": max_error, "peak_mib": max_memory, "bias_to_noise": max_bias_to_noise})
    allowed = [row for row in comparison.rows if not _ruled_out(row, comparison)]
    fitting = [row for row in allowed if _excess(row, budgets)[0] <= 1]
    unruled = [row for row in comparison.rows if _excess(row, budgets)[0] <= 1]
    if not fitting:
        raise ValueError(_nothing_fits(comparison, allowed, unruled, budgets))
    best, rival = _cheapest(fitting), _cheapest(unruled)
    reason = _reason(best, unruled if rival is best else fitting, budgets)
    return Recommendation(best.estimator, reason if rival is best else f"{reason} {_rule(rival, comparison)}")


_BUDGETS = {
    "error": ("max_error", "relative error", ""),
    "peak_mib": ("max_memory", "peak memory", " MiB"),
    "bias_to_noise": ("max_bias_to_noise", "bias over noise", ""),
}


def _budgets(comparison: Comparison, limits: dict[str, float | None]) -> dict[str, float]:
    """Return the budgets that were given."""
    budgets = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in budgets.items():
        given = _BUDGETS[name][0]
        if isinstance(limit, bool) or not isinstance(limit, int | float | np.number) or not limit >= 0:
            raise ValueError(f"`{given}` must be a number of at least 0, or None. Received: {given}={limit!r}.")
        if all(getattr(row, name) is None for row in comparison.rows):
            why = "memory cannot be measured on this system" if name == "peak_mib" else "noise needs several batches"
            raise ValueError(f"`{given}` cannot be judged: {why}. Leave it out. Received: {given}={limit!r}.")
    return budgets


def _ruled_out(row: Row, comparison: Comparison) -> bool:
    parallel = isinstance(row.estimator, BinomMAML | BinomTruncMAML)
    return comparison.device == "CPU" and parallel and row.hvps >= MAML().hvps(comparison.steps)


def _excess(row: Row, budgets: dict[str, float]) -> tuple[float, str]:
    """Return the largest ratio of a figure to its budget, and whose it is; infinite for what is not known."""
    worst = 0.0, ""
    for name, limit in budgets.items():
        value = getattr(row, name)
        if value is None or not math.isfinite(value):
            ratio = math.inf
        else:
            ratio = value / limit if limit else math.inf if value else 0.0
        worst = max(worst, (ratio, name))
    return worst


def _cheapest(rows: list[Row]) -> Row:
    fastest = min(row.seconds for row in rows)
    return min((r for r in rows if r.seconds <= _TIE * fastest), key=lambda r: (r.hvps, r.error, r.seconds))


def _inside(budgets: dict[str, float]) -> str:
    parts = [f"{_BUDGETS[name][1]} at most {limit:.3g}{_BUDGETS[name][2]}" for name, limit in budgets.items()]
    return f"inside the budget ({', '.join(parts)})" if parts else "compared"


def _reason(best: Row, fitting: list[Row], budgets: dict[str, float]) -> str:
    fastest = min(fitting, key=lambda row: row.seconds)
    if len(fitting) == 1:
        why = f"and is the only estimator {_inside(budgets)}"
    elif best is fastest:
        why = f"and is the fastest of the {len(fitting)} estimators {_inside(budgets)}"
    else:
        why = (
            f"within a tenth of {fastest.estimator} ({_ms(fastest)}), the fastest of the {len(fitting)} estimators "
            f"{_inside(budgets)}, and {'costs fewer HVPs' if best.hvps < fastest.hvps else 'is more accurate'}"
        )
    memory = "" if best.peak_mib is None else f", its peak memory {figure(best.peak_mib)} MiB"
    return (
        f"{best.estimator} takes {_ms(best)} a step, {why}. Its relative error is {best.error:.2g}, its cosine "
        f"{best.cosine:.4f}, its cost {best.hvps} HVPs a task{memory}."
    )


def _rule(row: Row, comparison: Comparison) -> str:
    exact = MAML().hvps(comparison.steps)
    return (
        f"{row.estimator} ({_ms(row)}) is ruled out: on a CPU its {row.hvps} HVPs a task gain nothing over the {exact} "
        "of exact MAML, whatever one measurement says."
    )


def _ms(row: Row) -> str:
    return f"{figure(1e3 * row.seconds)} ms"


def _nothing_fits(comparison: Comparison, allowed: list[Row], unruled: list[Row], budgets: dict[str, float]) -> str:
    """Return a sentence that names the estimator that comes nearest to fitting, and the budget that it misses."""
    rule = f" {_rule(_cheapest(unruled), comparison)}" if unruled else ""
    if not allowed:
        return "No estimator fits." + (rule or f" {_rule(_cheapest(list(comparison.rows)), comparison)}")
    nearest = min(allowed, key=lambda row: _excess(row, budgets)[0])
    name = _excess(nearest, budgets)[1]
    given, words, unit = _BUDGETS[name]
    value = getattr(nearest, name)
    shown = "not known" if value is None else figure(value) + unit
    return (
        f"No estimator fits. {nearest.estimator} comes nearest: its {words} is {shown}, against {given}="
        f"{figure(budgets[name])}{unit}.{rule}"
    )
