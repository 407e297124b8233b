"""Results over many tasks, as the field reports them: mean and 95 % confidence interval."""

from typing import NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Means over tasks, with half-widths of the 95 % confidence intervals, 1.96 s / sqrt(count), by metric name.

    `skipped` tasks diverged and are not among the `count`.
    """

    mean: dict[str, float]
    confidence: dict[str, float]
    count: int
    skipped: int = 0

    def __str__(self) -> str:
        """Return e.g. `accuracy 0.953 +/- 0.006, loss 0.141 +/- 0.018 (600 tasks)`."""
        parts = [f"{name} {self.mean[name]:.4f} +/- {self.confidence[name]:.4f}" for name in sorted(self.mean)]
        skipped = f", {self.skipped} that diverged left out" if self.skipped else ""
        return f"{', '.join(parts)} ({self.count} tasks{skipped})"


def summarize(rows: list[dict[str, float] | None]) -> Evaluation:
    """Return the `Evaluation` of one row of metrics for each task; None for a task that was skipped.

    Raises:
        FloatingPointError: all were.
    """
    skipped = rows.count(None)
    rows = [row for row in rows if row is not None]
    if not rows:
        raise FloatingPointError(f"All {skipped} tasks of the evaluation diverged. Lower the inner `learning_rate`.")
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    half = {name: float(1.96 * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0 for name, v in values.items()}
    return Evaluation({name: float(v.mean()) for name, v in values.items()}, half, len(rows), skipped)
