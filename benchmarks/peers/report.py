"""What was measured, as rows of a CSV file and as tables."""

import csv
import dataclasses
import pathlib

LIBRARIES = {"ours": "tf_metagrad", "torch": "PyTorch", "jax": "JAX"}
REFERENCE = "float64"  # the variant that the others are compared with, and that is not timed


@dataclasses.dataclass
class Row:
    """One variant of one library on one workload; times in seconds, None where they were not taken.

    Attributes:
        workload: its name.
        library: `"ours"`, `"torch"` or `"jax"`.
        variant: how it computes the gradient.
        median: of the steps of all rounds.
        least: of the same.
        rounds: turns that it had.
        first: from the call to the first result in a fresh process.
        error: |gradient - float64 gradient| / |float64 gradient|.
        to_ours: the same against this library's gradient.
        double: the error where the library computes in float64, too.
    """

    workload: str
    library: str
    variant: str
    median: float | None = None
    least: float | None = None
    rounds: int | None = None
    first: float | None = None
    error: float | None = None
    to_ours: float | None = None
    double: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What is measured."""
        return self.workload, self.library, self.variant


def read(path: pathlib.Path) -> list[Row]:
    """Return the rows of a file, none where there is no file."""
    if not path.exists():
        return []
    numbers = {field.name for field in dataclasses.fields(Row)} - {"workload", "library", "variant"}
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    found = [{k: (float(v) if v else None) if k in numbers else v for k, v in line.items()} for line in table]
    return [Row(**line) for line in found]


def write(rows: list[Row], path: pathlib.Path) -> None:
    """Write the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in vars(row).items()} for row in rows)


def merge(old: list[Row], new: list[Row], columns: tuple[str, ...]) -> list[Row]:
    """Return the rows with these columns measured anew: times of one run are never beside those of another."""
    workloads = {row.workload for row in new}
    rows = {row.key: row for row in old}
    for row in rows.values():
        if row.workload in workloads:
            for column in columns:
                setattr(row, column, None)
    for row in new:
        for column in columns:
            setattr(rows.setdefault(row.key, row), column, getattr(row, column))
    return list(rows.values())


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.0f}" if value >= 0.1 else f"{1e3 * value:.2f}"


def table(rows: list[Row], workload: str) -> str:
    """Return a Markdown table of one workload, the fastest first in each library."""
    lines = [
        f"\n### {workload}\n",
        "| library | variant | median (ms) | least (ms) | first (s) | error | to ours | float64 |",
        "|---" * 8 + "|",
    ]
    for library, name in LIBRARIES.items():
        own = [row for row in rows if row.library == library and row.workload == workload]
        for row in sorted(own, key=lambda r: (r.median is None, r.median or r.first or 0)):
            cells = [_ms(row.median), _ms(row.least), _cell(row.first, ".2f")]
            cells += [_cell(row.error, ".1e"), _cell(row.to_ours, ".1e"), _cell(row.double, ".0e")]
            lines.append(f"| {name} | {row.variant} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _best(rows: list[Row], column: str, *libraries: str) -> Row | None:
    found = [r for r in rows if r.library in libraries and getattr(r, column) is not None and r.variant != REFERENCE]
    return min(found, key=lambda r: getattr(r, column), default=None)


def _ours(rows: list[Row], column: str, variant: str) -> Row | None:
    return _best([row for row in rows if row.variant == variant], column, "ours")


def _times(row: Row | None, column: str) -> str:
    if row is None:
        return ""
    value = getattr(row, column)
    return f"{_ms(value)} ms" if column == "median" else f"{value:.2f} s"


def summary(rows: list[Row], variant: str = "as chosen") -> str:
    """Return a Markdown table with one line for each workload: this library against the best of each peer.

    Steps are compared with the faster of PyTorch and JAX, first results with JAX' faster version.
    """
    lines = ["| workload | ours | best PyTorch | best JAX | ours / best | first: ours | first: best JAX | ratio |"]
    lines += ["|---" * 8 + "|"]
    for workload in dict.fromkeys(row.workload for row in rows):
        own = [row for row in rows if row.workload == workload]
        cells = []
        for column, peers in (("median", ("torch", "jax")), ("first", ("jax",))):
            ours, best = _ours(own, column, variant), _best(own, column, *peers)
            cells += [_times(row, column) for row in (ours, *(_best(own, column, peer) for peer in peers))]
            cells.append(f"{getattr(ours, column) / getattr(best, column):.2f}" if ours and best else "")
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
