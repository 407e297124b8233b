"""What a run leaves in its output folder."""

import contextlib
import csv
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import keras


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write a file that is whole or not there.

    Raises:
        OSError: it cannot be written; what was there before is intact.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(
            f"{str(path)!r} could not be written: {error.strerror}. What was there before is intact; make room, then "
            "the same command goes on."
        ) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON, null for NaN and infinity; the file is whole or not there."""
    value = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def output_folder(output: pathlib.Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or enter one that a run with the same settings left.

    A folder that was made here goes again where the run ends in an error before its first checkpoint.

    Raises:
        ValueError: the folder holds something else (the message names the settings that differ), or cannot be made.
    """
    made = _prepare(output, settings)
    try:
        yield
    except BaseException:
        if made and not any(output.glob("checkpoints/*.index")):
            shutil.rmtree(output, ignore_errors=True)
        raise


def _prepare(output: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Return True where the folder was made, False where it holds a run with these settings."""
    config = output / "config.json"
    if config.exists():
        _compare(config, settings)
        return False
    if output.exists() and not (output.is_dir() and all(path.suffix == ".partial" for path in output.iterdir())):
        raise ValueError(f"The output {str(output)!r} exists and is not a run of train.py. Choose another --output.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(config, settings)
    except OSError as error:
        raise ValueError(
            f"The output folder {str(output)!r} cannot be written: {error.strerror or error}. Choose another --output."
        ) from error
    return True


def _compare(config: pathlib.Path, settings: dict[str, Any]) -> None:
    try:
        before = dict(json.loads(config.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(config)!r} does not hold the settings of a run. Choose another --output.") from error
    differing = [
        f"{name} was {before.get(name)!r}, now {settings.get(name)!r}"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"The output folder {str(config.parent)!r} holds a run with other settings: {'; '.join(differing)}. "
            "Choose another --output, with --initial_weights to begin from these, or give the same settings to go on."
        )


class HistoryFile(keras.callbacks.Callback):
    """Keeps history.csv, one row for each epoch; an epoch that a resumed run does again replaces its row."""

    def __init__(self, path: pathlib.Path):
        """Read the rows of earlier calls."""
        super().__init__()
        self.path, self.rows = path, {}
        with contextlib.suppress(FileNotFoundError), path.open() as file:
            for row in csv.DictReader(file):
                epoch = int(row.pop("epoch"))
                self.rows[epoch] = {"epoch": epoch, **{name: float(value) for name, value in row.items()}}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """See `keras.callbacks.Callback`."""
        self.rows[epoch] = {"epoch": epoch, **(logs or {})}
        table = io.StringIO()
        writer = csv.DictWriter(table, self.rows[epoch].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[number] for number in sorted(self.rows))
        write_whole(self.path, table.getvalue())

    def plot(self, path: pathlib.Path) -> None:
        """Draw the learning curve: one panel for each metric, training and validation."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        epochs = sorted(self.rows)
        names = [name for name in self.rows[epochs[0]] if name != "epoch" and not name.startswith("val_")]
        figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False, layout="constrained")
        for axis, name in zip(axes[0], names, strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                axis.plot([e + 1 for e in epochs], [self.rows[e][key] for e in epochs], marker=".", label=label)
            axis.set(xlabel="epoch", ylabel=f"query {name} after adaptation")
            axis.legend()
        figure.savefig(path, dpi=120)
        plt.close(figure)
