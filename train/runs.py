"""What a run leaves in its output folder."""

import csv
import json
import os
import pathlib
import tempfile
from typing import Any


class RunError(Exception):
    """An output folder that this run must not touch."""


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON; the file is whole or not there."""
    handle, scratch = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
    os.replace(scratch, path)


def prepare(output: pathlib.Path, settings: dict[str, Any]) -> None:
    """Make the output folder, or accept one that a run with the same settings left.

    Raises:
        RunError: the folder holds something else; the message names the settings that differ.
    """
    config = output / "config.json"
    if config.exists():
        before = json.loads(config.read_text())
        differing = [
            f"{name} was {before.get(name)!r}, now {settings.get(name)!r}"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if differing:
            raise RunError(
                f"The output folder {str(output)!r} holds a run with other settings: {'; '.join(differing)}. "
                "Choose another --output, or give the same settings to go on."
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"The output {str(output)!r} exists and is not a run of train.py. Choose another --output.")
    output.mkdir(parents=True, exist_ok=True)
    write_json(config, settings)


def load_rows(path: pathlib.Path) -> list[dict[str, float]]:
    """Return the epochs of a history.csv; where a resumed run wrote an epoch again, its later row counts."""
    with path.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return list({row["epoch"]: row for row in rows}.values())


def plot(rows: list[dict[str, float]], path: pathlib.Path) -> None:
    """Draw the learning curve: one panel for each metric, training and validation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in rows[0] if name != "epoch" and not name.startswith("val_")]
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in rows[0]:
                axis.plot([row["epoch"] + 1 for row in rows], [row[key] for row in rows], marker=".", label=label)
        axis.set(xlabel="epoch", ylabel=f"query {name} after adaptation")
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
