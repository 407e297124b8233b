"""Where an experiment finds its data and keeps its training runs."""

import pathlib
from typing import NamedTuple


class Place(NamedTuple):
    """`folder` is the figure's own; `flags` are those of train.py that say where data lies."""

    folder: pathlib.Path
    flags: list[str]
