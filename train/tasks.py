"""The tasks that `train.py` knows: the network, loss and metrics of each, and its streams of tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

import tf_metagrad as mg

SEEDS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # streams of tasks never share a seed


class TaskKind(NamedTuple):
    """`make_model(settings) -> (model, loss, metrics)`, and `make_tasks(split, sizes, options) -> dataset`.

    `sizes` names the settings that `make_tasks` takes; seed and start come with them. `looped`: on a CPU the tasks of
    this net are looped over.
    """

    make_model: Callable
    make_tasks: Callable
    sizes: tuple[str, ...]
    looped: bool = True


def _classifier(model: keras.Model):
    return model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]


def _cifar100(make_tasks: Callable) -> TaskKind:
    return TaskKind(
        lambda s: _classifier(mg.models.conv2d(s["ways"], (32, 32, 3), filters=s["filters"], pool=s["pool"])),
        lambda split, sizes, options: make_tasks(
            split, **sizes, data_dir=options["data_dir"], download=options["download"]
        ),
        ("ways", "shots", "queries", "meta_batch"),
    )


TASKS = {
    "mnist1d": TaskKind(
        lambda s: _classifier(mg.models.conv1d(s["ways"])),
        # validation draws its own tasks of the training examples
        lambda split, sizes, options: mg.data.mnist1d("test" if split == "test" else "train", **sizes),
        ("ways", "shots", "queries", "meta_batch"),
        looped=False,
    ),
    "sinusoid": TaskKind(
        lambda s: (mg.models.mlp(), "mse", None),
        lambda split, sizes, options: mg.data.sinusoid(**sizes),
        ("shots", "queries", "meta_batch"),
        looped=False,
    ),
    "omniglot": TaskKind(
        lambda s: _classifier(mg.models.conv2d(s["ways"], filters=s["filters"], pool=s["pool"])),
        lambda split, sizes, options: mg.data.omniglot(
            split, **sizes, data_dir=options["data_dir"], download=options["download"]
        ),
        ("ways", "shots", "queries", "meta_batch"),
    ),
    "mini_imagenet": TaskKind(
        lambda s: _classifier(mg.models.conv2d(s["ways"], (84, 84, 3), filters=s["filters"], pool=s["pool"])),
        lambda split, sizes, options: mg.data.mini_imagenet(
            split, **sizes, data_dir=options["data_dir"], manual_dir=options["manual_dir"]
        ),
        ("ways", "shots", "queries", "meta_batch"),
    ),
    "tiered_imagenet": TaskKind(
        lambda s: _classifier(mg.models.conv2d(s["ways"], (84, 84, 3), filters=s["filters"], pool=s["pool"])),
        lambda split, sizes, options: mg.data.tiered_imagenet(
            split, **sizes, data_dir=options["data_dir"], manual_dir=options["manual_dir"]
        ),
        ("ways", "shots", "queries", "meta_batch"),
    ),
    "cifar_fs": _cifar100(mg.data.cifar_fs),
    "fc100": _cifar100(mg.data.fc100),
}


def stream(split: str, settings: dict[str, Any], options: dict[str, Any], start: int = 0):
    """Return the dataset of the split's tasks, from batch `start` on."""
    kind = TASKS[settings["task"]]
    sizes = {name: settings[name] for name in kind.sizes}
    return kind.make_tasks(split, sizes | {"seed": settings["seed"] + SEEDS[split], "start": start}, options)
