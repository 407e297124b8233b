"""Exact MAML meta-gradients by this library, PyTorch and JAX: the same arrays, in turns, in one run.

  python benchmarks/compare_peers.py [--workloads=sinusoid,omniglot] [--rounds=20] [--variants=REGEX] [--only_first]

Every library runs in a process of its own; while one works the others are stopped. All variants run twice, the fastest
`--keep` of each library go on for `--rounds` turns, and medians are compared. The time to the first result is measured
in a fresh process for each variant, with packages imported and data and weights loaded: tracing, compilation and
the first run. `make bench` installs what is needed and runs this.
"""

import pathlib
import re
import signal
import statistics
import sys
import tempfile

import numpy as np
from absl import app, flags
from peers import report, workloads
from peers.driver import Worker
from peers.report import REFERENCE, Row

_WORKLOADS = flags.DEFINE_list(
    "workloads", list(workloads.WORKLOADS), "What to run; where empty, what `--output` has is printed."
)
_LIBRARIES = flags.DEFINE_list("libraries", list(report.LIBRARIES), "Which libraries.")
_VARIANTS = flags.DEFINE_string("variants", "", "Only variants whose 'library: variant' this expression matches.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Turns of each variant.", 1)
_TURN = flags.DEFINE_float("turn", 0.1, "Seconds of a turn, which is one step at least.")
_KEEP = flags.DEFINE_integer("keep", 2, "Variants of each library that have all turns.", 1)
_FIRST = flags.DEFINE_bool("first", True, "Measure the time to the first result.")
_STEPS = flags.DEFINE_bool("steps", True, "Measure steps and compare gradients.")
_DOUBLE = flags.DEFINE_bool("double", True, "Compare gradients in float64, too.")
_ONLY_FIRST = flags.DEFINE_bool("only_first", False, "The same as --nosteps --nodouble.")
_OUTPUT = flags.DEFINE_string("output", None, "A CSV file; the rows it has already are kept or replaced.")
_SMALL = flags.DEFINE_bool("small", False, "Nets and tasks of a size to try this script with.")
_IN_DOUBLE = {"ours": "as chosen", "torch": "create_graph, by task", "jax": "mixed, scan, tasks calls"}
_ALWAYS = ("as chosen", "meta_gradient")  # what users get is always measured


def wanted(worker: Worker) -> list[str]:
    """Return the variants to be timed."""
    return [v for v in worker.variants if v != REFERENCE and re.search(_VARIANTS.value, f"{worker.library}: {v}")]


def start(library: str, name: str, path: pathlib.Path, *options: str) -> Worker:
    """Return the process of a library."""
    return Worker(library, name, path, *options, *(["--small"] if _SMALL.value else []))


def first_results(name: str, path: pathlib.Path) -> list[Row]:
    """Return the time to the first result of each variant."""
    rows = []
    for library in _LIBRARIES.value:
        measured, total = 0, 1
        while measured < total:
            with start(library, name, path) as worker:
                total = len(variants := wanted(worker))
                if variants:
                    rows.append(Row(name, library, variants[measured], first=worker.steps(variants[measured])[0]))
                    print(f"{rows[-1].key}: first result after {rows[-1].first:.2f} s", file=sys.stderr)
            measured += 1
    return rows


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """Return |value - reference| / |reference|."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def gradients(workers: list[Worker], folder: pathlib.Path) -> dict[tuple[str, str], np.ndarray]:
    """Return the gradient of every variant, the reference's included; this compiles them."""
    found = {}
    for worker in workers:
        for variant in [*wanted(worker), *(v for v in worker.variants if v == REFERENCE)]:
            found[worker.library, variant], loss = worker.gradient(variant, folder / "gradient.npz")
            print(f"{worker.library}, {variant}: loss {loss:.6f}", file=sys.stderr)
    return found


def kept(worker: Worker) -> list[str]:
    """Return the fastest variants after two steps of each."""
    times = {
        variant: min(t for _ in range(2) for t in worker.steps(variant, _TURN.value)) for variant in wanted(worker)
    }
    fastest = sorted(times, key=times.get)[: _KEEP.value]
    return fastest + [v for v in _ALWAYS if v in times and v not in fastest]


def steps(name: str, path: pathlib.Path, workers: list[Worker]) -> list[Row]:
    """Return times of the steps, taken in turns, and errors."""
    found = gradients(workers, path.parent)
    turns = [(worker, variant) for worker in workers for variant in kept(worker)]
    times = {(worker.library, variant): [] for worker, variant in turns}
    for i in range(_ROUNDS.value):
        for worker, variant in turns[i % len(turns) :] + turns[: i % len(turns)]:
            times[worker.library, variant] += [worker.steps(variant, _TURN.value)]
    reference, ours = found.get(("torch", REFERENCE)), found.get(("ours", "as chosen"))
    rows = []
    for (library, variant), gradient in found.items():
        row = Row(name, library, variant)
        if own := sum(times.get((library, variant), []), []):
            row.median, row.least, row.rounds = statistics.median(own), min(own), _ROUNDS.value
        row.error = None if reference is None else relative(gradient, reference)
        row.to_ours = None if ours is None else relative(gradient, ours)
        rows.append(row)
    return rows


def in_double(name: str, path: pathlib.Path) -> list[Row]:
    """Return how far the libraries are from each other where they compute in float64."""
    rows, reference = [], None
    for library in sorted(_LIBRARIES.value, key="torch".__ne__):
        with start(library, name, path, "--double") as worker:
            gradient, _ = worker.gradient(_IN_DOUBLE[library], path.parent / "gradient.npz")
        reference = gradient if reference is None else reference
        rows.append(Row(name, library, _IN_DOUBLE[library], double=relative(gradient, reference)))
    return rows


def measured_steps(name: str, path: pathlib.Path) -> list[Row]:
    """Start the libraries, measure, and end them."""
    workers = []
    try:
        workers += [start(library, name, path) for library in _LIBRARIES.value]
        return steps(name, path, workers)
    finally:
        for worker in workers:
            worker.__exit__()


def main(argv: list[str]) -> None:
    """Measure workload after workload, print tables, and keep the rows."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes, which may be stopped, are ended
    rows = report.read(pathlib.Path(_OUTPUT.value)) if _OUTPUT.value else []
    for name in _WORKLOADS.value:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "arrays.npz")
            workloads.write(workloads.workload(name, _SMALL.value), path)
            if _FIRST.value or _ONLY_FIRST.value:
                rows = report.merge(rows, first_results(name, path), ("first",))
            if _STEPS.value and not _ONLY_FIRST.value:
                rows = report.merge(rows, measured_steps(name, path), ("median", "least", "rounds", "error", "to_ours"))
            if _DOUBLE.value and not _ONLY_FIRST.value:
                rows = report.merge(rows, in_double(name, path), ("double",))
        if _OUTPUT.value:
            report.write(rows, pathlib.Path(_OUTPUT.value))
        print(report.table(rows, name), flush=True)
    for name in [] if _WORKLOADS.value else dict.fromkeys(row.workload for row in rows):
        print(report.table(rows, name))
    print(report.summary(rows))


if __name__ == "__main__":
    app.run(main)
