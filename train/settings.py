"""The tasks that `train.py` knows: data, network, loss, and default settings of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

import tf_metagrad as mg

Settings = dict[str, Any]


class TaskSettings(NamedTuple):
    """One kind of task: defaults of the flags, `make_model(settings)`, `make_tasks(settings, options)`."""

    defaults: Settings
    make_model: Callable
    make_tasks: Callable


# 400 steps of 4 tasks take about a minute on two CPU cores.
MNIST1D = dict(
    steps=400,
    meta_batch=4,
    ways=3,
    shots=5,
    queries=10,
    inner_steps=5,
    inner_learning_rate=0.1,
    meta_learning_rate=3e-3,
)
SINUSOID = dict(
    steps=2000, meta_batch=25, ways=2, shots=10, queries=10, inner_steps=5, inner_learning_rate=0.01,
    meta_learning_rate=1e-3,
)  # fmt: skip
OMNIGLOT = dict(
    steps=4000, meta_batch=8, ways=5, shots=1, queries=15, inner_steps=5, inner_learning_rate=0.1,
    meta_learning_rate=2e-3,
)  # fmt: skip

SEEDS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # streams of tasks never share a seed


def _episode(settings: Settings, *names: str) -> Settings:
    return {name: settings[name] for name in names}


def _classifier(model: keras.Model):
    return model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]


def mnist1d_tasks(settings: Settings, options: Settings) -> Callable:
    """Return `stream(split, start)`; validation draws its own tasks of the training examples."""

    def stream(split: str, start: int):
        part = "test" if split == "test" else "train"
        sizes = _episode(settings, "ways", "shots", "queries", "meta_batch")
        return mg.data.mnist1d(part, **sizes, seed=settings["seed"] + SEEDS[split], start=start)

    return stream


def sinusoid_tasks(settings: Settings, options: Settings) -> Callable:
    """Return `stream(split, start)`."""

    def stream(split: str, start: int):
        sizes = _episode(settings, "shots", "queries", "meta_batch")
        return mg.data.sinusoid(**sizes, seed=settings["seed"] + SEEDS[split], start=start)

    return stream


def omniglot_tasks(settings: Settings, options: Settings) -> Callable:
    """Return `stream(split, start)`."""

    def stream(split: str, start: int):
        sizes = _episode(settings, "ways", "shots", "queries", "meta_batch")
        where = {"data_dir": options["data_dir"], "download": options["download"]}
        return mg.data.omniglot(split, **sizes, **where, seed=settings["seed"] + SEEDS[split], start=start)

    return stream


TASKS = {
    "mnist1d": TaskSettings(MNIST1D, lambda s: _classifier(mg.models.conv1d(s["ways"])), mnist1d_tasks),
    "sinusoid": TaskSettings(SINUSOID, lambda s: (mg.models.mlp(), "mse", None), sinusoid_tasks),
    "omniglot": TaskSettings(
        OMNIGLOT,
        lambda s: _classifier(mg.models.conv2d(s["ways"], filters=s["filters"], pool=s["pool"])),
        omniglot_tasks,
    ),
}


def settings_of(given: Settings) -> Settings:
    """Return the settings of a run: the flags that were given, and the task's defaults for the others."""
    defaults = TASKS[given["task"]].defaults
    return {name: defaults[name] if value is None else value for name, value in given.items()}
