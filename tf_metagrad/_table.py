"""The result of a comparison of estimators: rows, and them as a text table, columns and a plot."""

import dataclasses
import math
import os
from typing import Any, NamedTuple

from tf_metagrad.estimators import Estimator


class Row(NamedTuple):
    """What was measured of one estimator.

    Attributes:
        estimator: the estimator.
        error: |mean estimate - mean reference| / |mean reference|, means over all batches.
        cosine: of the angle between these means.
        batch_error: the relative error on one batch, averaged over the batches.
        bias: |mean estimate - mean reference|.
        noise: standard deviation of one batch's estimate around its mean over the batches; None for one batch.
        bias_to_noise: the bias over the *reference's* noise: where it is below 1, the estimator is nearer to the
            reference than one batch of the exact gradient is to its own mean. None for one batch.
        seconds: median time of a step.
        first_seconds: time of the first step, tracing and compilation included; parts that an estimator before it
            had traced are reused.
        peak_mib: memory that a step needs at its peak, see `Comparison.memory`; None where it cannot be measured.
        hvps: Hessian-vector products of one task.
        bound: upper bound of the error relative to |g^K|, the norm of a task's query gradient after adaptation
            (FOMAML's estimate), not to the exact gradient's norm; None where there is none.
    """

    estimator: Estimator
    error: float
    cosine: float
    batch_error: float
    bias: float
    noise: float | None
    bias_to_noise: float | None
    seconds: float
    first_seconds: float
    peak_mib: float | None
    hvps: int
    bound: float | None = None


_HEADINGS = {
    "estimator": "estimator", "error": "error", "cosine": "cosine", "batch_error": "batch error", "bias": "bias",
    "noise": "noise", "bias_to_noise": "bias/noise", "seconds": "ms a step", "first_seconds": "first s",
    "peak_mib": "peak MiB", "hvps": "HVPs", "bound": "bound",
}  # fmt: skip
_MEMORY = {
    "allocator": "peak MiB: of the buffers that TensorFlow's allocator holds during a step",
    "resident": "peak MiB: growth of the process's resident memory during a step; good to some 10 MiB",
    "allocator + resident": "peak MiB: large buffers by TensorFlow's allocator, the rest by growth of resident memory; "
    "good to some 2 MiB",
    None: "peak MiB: cannot be measured on this system",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of `compare_estimators`. `str` of it is a text table.

    Attributes:
        rows: one `Row` for each estimator.
        reference: what the estimates were compared with.
        steps: K, the number of inner steps.
        batches: number of batches.
        tasks: number of tasks in the first batch.
        device: `"CPU"` or `"GPU"`.
        execution: how tasks were run, e.g. `"vectorize, XLA"`.
        memory: where `peak_mib` comes from: `"allocator"` (TensorFlow's), `"resident"` (growth of the process),
            `"allocator + resident"` (large buffers by the former, the rest by the latter) or None.

    Example:
        >>> from tf_metagrad.estimators import MAML
        >>> row = Row(MAML(), 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 0.002, 1.5, 3.25, 5)
        >>> comparison = Comparison((row,), MAML(), 5, 8, 4, "CPU", "vectorize, XLA", "allocator")
        >>> comparison.to_dict()["peak_mib"]
        [3.25]
        >>> print(str(comparison).splitlines()[0])
        8 batches of 4 tasks, K = 5, on the CPU (vectorize, XLA). Reference: MAML().
    """

    rows: tuple[Row, ...]
    reference: Estimator
    steps: int
    batches: int
    tasks: int
    device: str
    execution: str
    memory: str | None

    def __str__(self) -> str:
        """Return an aligned table, with what its columns mean."""
        columns = [[heading, *(_cell(row, name) for row in self.rows)] for name, heading in _HEADINGS.items()]
        widths = [max(map(len, column)) for column in columns]
        columns = [[column[0], "-" * width, *column[1:]] for column, width in zip(columns, widths, strict=True)]
        names, *numbers = [
            [cell.rjust(width) if i else cell.ljust(width) for cell in column]
            for i, (column, width) in enumerate(zip(columns, widths, strict=True))
        ]
        size = f"{self.batches} batches of {self.tasks} tasks, K = {self.steps}"
        return "\n".join(
            [
                f"{size}, on the {self.device} ({self.execution}). Reference: {self.reference}.",
                "",
                *("  ".join(cells) for cells in zip(names, *numbers, strict=True)),
                "",
                "error, cosine: mean estimate against the reference's mean; batch error: one batch's, averaged",
                "noise: standard deviation of one batch's estimate; bias/noise: over the reference's noise",
                _MEMORY[self.memory],
                "bound: of the error, relative to the query gradient |g^K| of a task (BinomMAML, Theorem 3.6)",
            ]
        )

    def to_dict(self) -> dict[str, list]:
        """Return the columns by name, ready for `pandas.DataFrame` and for JSON; None is what is not known."""
        values = {name: [getattr(row, name) for row in self.rows] for name in Row._fields}
        values["estimator"] = [repr(estimator) for estimator in values["estimator"]]
        return {name: [None if _unknown(v) else v for v in column] for name, column in values.items()}

    def plot(self, path: str | os.PathLike) -> None:
        """Draw error against time, with memory as the size of the marks, into an image file.

        Args:
            path: the file, e.g. `"comparison.png"`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("`Comparison.plot` needs matplotlib. Install it: pip install matplotlib.") from error
        drawing = Figure(figsize=(9, 5), layout="constrained")
        _draw(self, drawing.add_subplot())
        drawing.savefig(path, dpi=120)


def _unknown(value: Any) -> bool:
    return value is None or isinstance(value, float) and not math.isfinite(value)


def figure(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _cell(row: Row, name: str) -> str:
    value = getattr(row, name)
    if value is None or name == "estimator":
        return "-" if value is None else repr(value)
    return f"{value:.4f}" if name == "cosine" else figure(1e3 * value if name == "seconds" else value)


def _draw(comparison: Comparison, axis: Any) -> None:
    rows = [row for row in comparison.rows if not _unknown(row.error)]
    largest = max((row.peak_mib or 0.0 for row in rows), default=0.0) or 1.0
    floor = min([row.error for row in rows if row.error > 1e-7], default=1e-3) / 10
    for row in rows:
        memory = "" if row.peak_mib is None else f", {figure(row.peak_mib)} MiB"
        size = 30 + 500 * (row.peak_mib or 0.0) / largest
        axis.scatter(1e3 * row.seconds, max(row.error, floor), s=size, alpha=0.6, label=f"{row.estimator}{memory}")
    axis.axhline(floor, color="grey", linewidth=0.8, linestyle=":")
    axis.annotate("no error", (0, floor), (4, 4), ("axes fraction", "data"), "offset points", color="grey", fontsize=8)
    axis.set(yscale="log", xlabel="ms a step", ylabel="relative error of the mean estimate")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=floor / 3)
    axis.margins(y=0.15)
    axis.set_title(f"Against {comparison.reference}; the larger the mark, the more memory", fontsize=9)
    for handle in axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5)).legend_handles:
        handle.set_sizes([30])
