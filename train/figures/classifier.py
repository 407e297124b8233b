"""A start for meta-training that two CPU cores can afford: the features of a classifier of all training classes.

Keras trains the network, with a head for every class of the training split, on single images; then the head of a task's
ways is set to zero, so that adaptation begins from equal scores. Its weights are left as a run of train.py leaves them,
for --initial_weights, with its learning curve beside them.
"""

import json
from typing import Any

import keras
import numpy as np
import run_folder
import tensorflow as tf

import tf_metagrad as mg
from figures.place import Place
from tf_metagrad.data import _mini_imagenet, _prepared


def images(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Return the images `[n, 84, 84, 3]` of mini-ImageNet's training classes, and their classes `[n]`."""
    given = dict(flag.removeprefix("--").split("=", 1) for flag in place.flags)
    folder = _mini_imagenet._prepare(given.get("data_dir"), given.get("manual_dir"))
    found = _prepared.read(folder, "train")
    return np.asarray(found.images), found.labels


def batches(x: np.ndarray, y: np.ndarray, size: int, seed: int) -> tf.data.Dataset:
    """Return an epoch of shuffled batches, images in [0, 1], each flipped or not."""

    def prepare(number, batch):
        flipped = tf.image.stateless_random_flip_left_right(batch[0], tf.stack([tf.constant(seed, tf.int64), number]))
        return tf.cast(flipped, tf.float32) / 255, batch[1]

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed).batch(size, drop_remainder=True)
    return data.enumerate().map(prepare).prefetch(2)


def pretrain(model: keras.Model, x: np.ndarray, y: np.ndarray, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Train all of the model but its head, which is zero at the end; return Keras' history.

    It runs eagerly, operation by operation: a graph that runs several at once adds up gradients in the order in which
    they are ready, so that two trainings of the same seed would part after a few steps. It takes no longer.

    Args:
        model: a network whose last layer is the head.
        x: `[n, ...]`, images of 8 bits.
        y: `[n]`, their classes.
        settings: `epochs`, `batch`, `rate` (Adam's, at the start of a half cosine) and `seed`.
    """
    scores = keras.layers.Dense(int(y.max()) + 1)(model.layers[-2].output)
    classifier, steps = keras.Model(model.input, scores), settings["epochs"] * (len(x) // settings["batch"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    decay = keras.optimizers.schedules.CosineDecay(settings["rate"], steps)
    classifier.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"], run_eagerly=True)
    history = classifier.fit(
        batches(x, y, settings["batch"], settings["seed"]), epochs=settings["epochs"], shuffle=False, verbose=2
    ).history
    for weight in model.layers[-1].weights:
        weight.assign(tf.zeros_like(weight))
    return history


def start(name: str, settings: dict[str, Any], place: Place) -> list[dict[str, Any]]:
    """Leave the weights in the run of that name, where they are not there yet; return a row for each epoch."""
    run = place.folder / "runs" / name
    if not (run / "history.json").exists():
        others = [str(path) for path in run.parent.glob("*/result.json")]
        if others:
            raise ValueError(
                f"Runs are there, such as {others[0]!r}, and the classifier {str(run)!r} that they began from is not "
                "whole. Give another --results."
            )
        keras.utils.set_random_seed(settings["seed"])
        model = mg.models.conv2d(5, (84, 84, 3), settings["filters"], pool=settings["pool"])
        history = pretrain(model, *images(place), settings)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        checkpoint = tf.train.Checkpoint(model=model)
        tf.train.CheckpointManager(checkpoint, str(run / "checkpoints"), max_to_keep=1).save()
        run_folder.write_json(run / "history.json", history)
    history = json.loads((run / "history.json").read_text())
    rows = zip(history["accuracy"], history["loss"], strict=True)
    return [{"iteration": i + 1, "train_accuracy": a, "train_loss": b} for i, (a, b) in enumerate(rows)]
