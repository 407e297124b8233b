"""Training runs behind a figure: each is a call of train.py in a process of its own, kept and gone on from."""

import csv
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from figures.place import Place
from tf_metagrad.evaluation import Evaluation

_SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "train.py"


class Trained(NamedTuple):
    """What a run left: result.json, the rows of history.csv, the flags that made it."""

    result: dict[str, Any]
    history: list[dict[str, float]]
    flags: str


def trained(name: str, flags: Mapping[str, Any], place: Place, start: str | None = None) -> Trained:
    """Return the run of that name in the figure's folder, after training what is left of it.

    Args:
        name: name of the run.
        flags: flags of train.py.
        place: the figure's place.
        start: name of the run whose weights are its first ones.

    Raises:
        ValueError: train.py refused the flags, or failed.
    """
    folder = place.folder / "runs" / name
    given = [f"--{key}={value}" for key, value in flags.items()]
    if not (folder / "result.json").exists():
        first = [] if start is None else [f"--initial_weights={place.folder / 'runs' / start}"]
        command = [sys.executable, str(_SCRIPT), *given, *first, *place.flags, f"--output={folder}", "--verbose=0"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise ValueError(f"The run {name!r} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    with (folder / "history.csv").open() as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    result = json.loads((folder / "result.json").read_text())
    if "values" not in result:
        raise ValueError(
            f"The run {str(folder)!r} was made by an earlier version and lacks the numbers of single tasks. Remove it, "
            "or give another --results."
        )
    print(f"{name}: accuracy {result['mean']['accuracy']:.4f} +/- {result['confidence']['accuracy']:.4f}", flush=True)
    return Trained(result, history, " ".join(given if start is None else [*given, f"--initial_weights=runs/{start}"]))


def row(run: Trained) -> dict[str, Any]:
    """Return the columns that every table of results has."""
    mean, half = run.result["mean"]["accuracy"], run.result["confidence"]["accuracy"]
    return {"accuracy": mean, "confidence": half, "tasks": run.result["count"], "flags": run.flags}


def difference(run: Trained, reference: Trained) -> dict[str, float]:
    """Return the columns of a run's mean difference to another, task by task."""
    own, other = (
        Evaluation(**{name: r.result[name] for name in Evaluation._fields if name in r.result})
        for r in (run, reference)
    )
    found = own.minus(other)
    return {"difference": found.mean["accuracy"], "difference_confidence": found.confidence["accuracy"]}


def bars(figure: Any, panels: Mapping[str, Sequence[dict[str, Any]]], paper: Mapping[tuple[str, str], float]) -> None:
    """Draw a panel of horizontal bars for each table: our accuracy with its interval, the paper's as a line."""
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        names = [r["method"] for r in rows]
        axis.barh(names, [100 * r["accuracy"] for r in rows], xerr=[100 * r["confidence"] for r in rows], alpha=0.6)
        for position, name in enumerate(names):
            if (title, name) in paper:
                axis.plot([paper[title, name]] * 2, [position - 0.4, position + 0.4], "k-")
        axis.set(title=f"{title} (line: the paper)", xlabel="test accuracy, %")
        axis.invert_yaxis()
