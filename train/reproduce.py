"""Measure the figures and tables of the two papers anew.

  python train/reproduce.py --figure=binom_figure_2            one of them
  python train/reproduce.py --all --size=small                 all, sized for two CPU cores
  python train/reproduce.py --figure=fob_table_2 --size=paper  at the paper's own settings, for a GPU

Each writes a folder <output>/<figure>-<size> with figure.png, numbers.csv and settings.json: settings, versions, time
taken, command. Those that train keep their runs in it, and go on from there when they are started again; what is
finished is left alone unless --again is given. docs/results.md holds our numbers beside the papers'.
"""

import csv
import io
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import settings
from absl import app, flags, logging

import train

REPRODUCTION = "Reproduction"
NAMES = (
    "binom_figure_2", "binom_figure_3", "binom_figure_4", "binom_table_1", "fob_figure_1", "fob_figure_2",
    "fob_figures_3_6", "fob_figures_4_5", "fob_table_2",
)  # fmt: skip

flags.DEFINE_multi_enum("figure", [], NAMES, "What to measure; may be given more than once.", module_name=REPRODUCTION)
flags.DEFINE_bool("all", False, "Measure everything.", module_name=REPRODUCTION)
flags.DEFINE_enum(
    "size", "small", ["small", "paper"], "Settings for two CPU cores, or the paper's.", module_name=REPRODUCTION
)
flags.DEFINE_string("results", "runs/reproduce", "Output folder.", module_name=REPRODUCTION)
flags.DEFINE_bool("again", False, "Measure anew what is there already.", module_name=REPRODUCTION)


def versions() -> dict[str, str]:
    """Return what the numbers were made with."""
    import keras
    import numpy
    import tensorflow as tf

    device = tf.config.list_physical_devices()[-1].device_type
    packages = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": numpy.__version__}
    return packages | {"python": platform.python_version(), "device": device}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV, numbers to six digits; the columns are the keys in the order of their first use."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def picture(module: Any, rows: list[dict[str, Any]], chosen: dict[str, Any], path: pathlib.Path) -> None:
    """Draw the figure into a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 7), layout="constrained")
    module.draw(rows, chosen, figure)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def reproduce(name: str, size: str, output: pathlib.Path, data_flags: list[str], again: bool) -> None:
    """Measure one figure and write its folder; settings.json is written last."""
    import run_folder
    from figures import FIGURES, Place

    folder, module = output / f"{name}-{size}", FIGURES[name]
    if (folder / "settings.json").exists() and not again:
        print(f"{name}: {folder} is there already; --again measures it anew.")
        return
    chosen, command = module.SIZES[size], f"python train/reproduce.py --figure={name} --size={size}"
    print(f"{command}: {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    rows = module.measure(chosen, Place(folder, data_flags))
    run_folder.write_whole(folder / "numbers.csv", table(rows))
    picture(module, rows, chosen, folder / "figure.png")
    about = {"settings": chosen, "command": command, "versions": versions(), "seconds": round(time.time() - start)}
    run_folder.write_json(folder / "settings.json", about)


def every(names: Sequence[str], measure: Callable[[str], None]) -> None:
    """Call `measure` for each; one that fails does not keep the others from being measured.

    Raises:
        ValueError: some failed; the reasons are printed, or where only one was asked for in the message.
    """
    failed = []
    for name in names:
        try:
            measure(name)
        except (ValueError, FloatingPointError, OSError) as error:
            if len(names) == 1:
                raise
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    if failed:
        raise ValueError(f"Not measured: {', '.join(failed)}, for the reasons above. The others are.")


def run() -> None:
    """Measure what the flags name."""
    values = flags.FLAGS
    names = NAMES if values.all else values.figure
    if not names:
        raise ValueError(f"Nothing to do. Give --all or --figure, one of {', '.join(NAMES)}.")
    train.load()
    logging.set_verbosity(logging.ERROR)  # solvers that fall short are what some figures show
    given = (flags.FLAGS[name] for name in ("data_dir", "manual_dir", "download"))
    data_flags = [f"--{flag.name}={flag.value}" for flag in given if flag.present]
    every(names, lambda name: reproduce(name, values.size, pathlib.Path(values.results), data_flags, values.again))


def main(argv: list[str]) -> None:
    """Run what the flags say; bad input ends in one sentence and exit status 1."""
    if len(argv) > 1:
        sys.exit(f"reproduce.py takes flags only. Received: {' '.join(argv[1:])}. See --help.")
    try:
        run()
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"reproduce.py: {error}")
    except KeyboardInterrupt:
        sys.exit("reproduce.py: interrupted; what was measured is kept.")


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: settings.parse(argv, __doc__, (REPRODUCTION, settings.FILES)))
