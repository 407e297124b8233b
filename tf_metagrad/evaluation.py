"""Results over many tasks, as the field reports them: mean and 95 % confidence interval."""

from typing import NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Means over tasks, with half-widths of the 95 % confidence intervals, 1.96 s / sqrt(count), by metric name."""

    mean: dict[str, float]
    confidence: dict[str, float]
    count: int

    def __str__(self) -> str:
        """Return e.g. `accuracy 0.953 +/- 0.006, loss 0.141 +/- 0.018 (600 tasks)`."""
        parts = [f"{name} {self.mean[name]:.4f} +/- {self.confidence[name]:.4f}" for name in sorted(self.mean)]
        return f"{', '.join(parts)} ({self.count} tasks)"


def summarize(rows: list[dict[str, float]]) -> Evaluation:
    """Return the `Evaluation` of one row of metrics for each task."""
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    half = {name: float(1.96 * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0 for name, v in values.items()}
    return Evaluation({name: float(v.mean()) for name, v in values.items()}, half, len(rows))
