"""Figures 3 and 6 of FO-B-MAML: peak memory of a meta-gradient against the size of a network.

ConvNets of 16 to 256 channels on 28x28 images, and a Transformer block (8 heads, feed-forward 512) of width 64 to 512
at length 128, and of length 32 to 512 at width 128. One task, 5-way 1-shot, K = 5. MAML is the mixed mode; the paper's
is `MAML("unrolled")`, the tape over the whole inner loop.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_metagrad as mg
from tf_metagrad import _memory
from tf_metagrad.estimators import parse

_SIZE = {
    "steps": 5, "ways": 5, "queries": 5, "repeats": 3, "seed": 0,
    "estimators": ["FOMAML", "Reptile", "FOBMAML", 'FOBMAML("tangent")', 'IMAML("cg", 5)', "MAML", 'MAML("unrolled")'],
}  # fmt: skip
SIZES = {
    "small": _SIZE | {"channels": [16, 64, 256], "widths": [64, 256, 512], "lengths": [32, 128, 512]},
    "paper": _SIZE | {
        "channels": [16, 32, 64, 128, 256], "widths": [64, 128, 256, 512], "lengths": [32, 64, 128, 256, 512],
    },
}  # fmt: skip
PANELS = {"channels": "ConvNet, channels", "widths": "Transformer, width", "lengths": "Transformer, length"}


def transformer(length: int, width: int, outputs: int) -> keras.Model:
    """Return a block of attention and feed-forward layers over `[length, width]`, its mean classified."""
    x = start = keras.Input((length, width))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(8, width // 8)(x, x))
    hidden = layers.Dense(512, activation="relu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(width)(hidden))
    return keras.Model(start, layers.Dense(outputs)(layers.GlobalAveragePooling1D()(x)))


def networks(settings: dict[str, Any]) -> Iterator[tuple[str, int, keras.Model]]:
    """Yield `(panel, size, model)`."""
    ways = settings["ways"]
    for channels in settings["channels"]:
        yield "channels", channels, mg.models.conv2d(ways, filters=channels)
    for width in settings["widths"]:
        yield "widths", width, transformer(128, width, ways)
    for length in settings["lengths"]:
        yield "lengths", length, transformer(length, 128, ways)


def make_task(model: keras.Model, settings: dict[str, Any]) -> mg.Task:
    """Return a batch of one task with normal inputs."""
    rng, ways, sets = np.random.default_rng(settings["seed"]), settings["ways"], []
    for each in (1, settings["queries"]):
        sets += [rng.normal(size=(1, ways * each, *model.input_shape[1:])).astype("float32")]
        sets += [np.repeat(np.arange(ways), each)[None]]
    return mg.Task(*sets)


def peak(model: keras.Model, text: str, settings: dict[str, Any]) -> float:
    """Return the peak in MiB of one meta-gradient by the estimator."""
    proximal = mg.inner.ProximalGradientDescent(settings["steps"], 0.01, 2.0)
    plain = mg.inner.GradientDescent(settings["steps"], 0.01)
    learner = mg.MetaLearner(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        proximal if text.startswith(("FOB", "IM")) else plain,
        parse(text),
        execution="map",
        jit_compile=False,
        store_activations=False,  # the mixed mode that the paper compares with
    )
    task = make_task(model, settings)
    learner.meta_gradient(task)
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    return _memory.peak_mib(lambda: learner.meta_gradient(task), device, settings["repeats"])


def measure(settings: dict[str, Any], place: Any) -> list[dict[str, Any]]:
    """Return a row for each network and estimator."""
    rows = []
    keras.utils.set_random_seed(settings["seed"])
    for panel, size, model in networks(settings):
        found = {text: peak(model, text, settings) for text in settings["estimators"]}
        rows += [{"panel": panel, "size": size, "estimator": text, "MiB": value} for text, value in found.items()]
        print(f"{PANELS[panel]} {size}: {', '.join(f'{t} {v:.0f}' for t, v in found.items())} MiB", flush=True)
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw the three panels."""
    axes = figure.subplots(1, 3)
    for axis, (panel, label) in zip(axes, PANELS.items(), strict=True):
        for text in settings["estimators"]:
            own = [r for r in rows if r["panel"] == panel and r["estimator"] == text]
            axis.loglog([r["size"] for r in own], [r["MiB"] for r in own], "o-", label=text)
        axis.set(xlabel=label, ylabel="peak MiB")
        axis.xaxis.minorticks_off()
        axis.set_xticks(settings[panel], [str(size) for size in settings[panel]])
    axes[0].legend(fontsize="x-small")
