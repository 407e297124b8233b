"""Omniglot: 1,623 handwritten characters, each drawn once by 20 people."""

import functools
import os

import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad.data import _arrays, _episodes, _tfds

CHARACTERS = 1623
SIZE = 28
SPLITS = {"train": (0, 1200), "validation": (1200, 1300), "test": (1300, CHARACTERS)}


def omniglot(
    split: str = "train",
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch: int = 16,
    seed: int = 0,
    start: int = 0,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    rotations: bool = True,
) -> tf.data.Dataset:
    """Few-shot tasks from Omniglot, under the usual protocol.

    All 1,623 characters are shuffled once, whatever the `seed`, without regard to their alphabets: 1,200 for
    training, 100 for validation, 323 for testing. Drawings are averaged down to 28x28, with ink 1 and background 0.
    Rotations by 90, 180 and 270 degrees count as further classes: 4,800, 400 and 1,292. They do so in every split:
    Santoro et al. introduced the rotations, Snell et al. state 4,800 classes for training "and the remaining classes,
    including rotations, for test", and the code published with MAML rotates in testing too. `rotations=False` keeps
    the upright characters only.

    The images come from TensorFlow Datasets, prepared before or with `download=True`. Reading takes several seconds
    and 25 MB, once per process; the rotations four times the split.

    Args:
        split: "train", "validation" or "test".
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class; `shots + queries` is at most 20.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks; the splits are always the same.
        start: number of the first batch, for resuming.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default.
        download: fetch and prepare the dataset where it is missing.
        rotations: whether rotated characters are further classes.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `from_arrays` describes: support_x float32 in [0, 1] [meta_batch,
        ways * shots, 28, 28, 1], support_y int32 [meta_batch, ways * shots], query_x and query_y alike with `queries`
        for `shots`.

    Raises:
        ValueError: the split is unknown or a size is out of range; the message says which.
        FileNotFoundError: the dataset is not in `data_dir` and `download` is False.
        ImportError: the package `tensorflow-datasets` is not installed.

    Example:
        >>> import tf_metagrad as mg
        >>> task = next(iter(mg.data.omniglot("test", download=True)))  # doctest: +SKIP
        >>> print(task.support_x.shape, task.query_x.shape)  # doctest: +SKIP
        (16, 5, 28, 28, 1) (16, 75, 28, 28, 1)

    References:
        Lake et al., 2015, Human-level concept learning through probabilistic program induction, Science 350.
        Santoro et al., 2016, Meta-Learning with Memory-Augmented Neural Networks, ICML.
        Vinyals et al., 2016, Matching Networks for One Shot Learning, https://arxiv.org/abs/1606.04080
        Finn et al., 2017, Model-Agnostic Meta-Learning, https://arxiv.org/abs/1703.03400
        Snell et al., 2017, Prototypical Networks for Few-shot Learning, https://arxiv.org/abs/1703.05175
    """
    _episodes.check_choice("split", split, tuple(SPLITS))
    _episodes.check_sizes(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    images, labels = load_drawings(_tfds.find("omniglot", "Omniglot", data_dir, download))
    x, y = select_classes(images, labels, split, rotations)
    return _arrays.from_arrays(
        x, y, ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start
    )


def select_classes(
    images: np.ndarray, labels: np.ndarray, split: str, rotations: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the drawings of a split, with rotated copies as classes `CHARACTERS * quarter_turns + label`."""
    first, end = SPLITS[split]
    shuffled = np.random.RandomState(0).permutation(CHARACTERS)  # the one NumPy generator whose stream is frozen
    kept = np.isin(labels, shuffled[first:end])
    turns = range(4 if rotations else 1)
    x = np.concatenate([np.rot90(images[kept], k, axes=(1, 2)) for k in turns])
    y = np.concatenate([labels[kept] + CHARACTERS * k for k in turns])
    return x, y


@functools.cache
def load_drawings(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads all drawings: uint8 [drawings, 28, 28, 1], ink 255 on background 0, and the character of each."""
    import tensorflow_datasets as tfds

    logging.info("Reading Omniglot from %s, once per process.", folder)
    files = tfds.builder_from_directory(folder).as_dataset(
        split="train+test", decoders={"image": tfds.decode.SkipDecoding()}
    )
    drawings = files.map(_decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(512)
    drawings = drawings.map(_shrink, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    images, labels = (np.concatenate(parts) for parts in zip(*drawings.as_numpy_iterator(), strict=True))
    found = len(np.unique(labels))
    if found != CHARACTERS:
        raise ValueError(
            f"Omniglot in {folder} holds {found} characters, expected {CHARACTERS}: "
            "this copy is incomplete, delete it and prepare it again."
        )
    return images, labels


def _decode(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.ensure_shape(tf.io.decode_png(example["image"], channels=1), [105, 105, 1]), example["label"]


def _shrink(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    paper = tf.image.resize(images, [SIZE, SIZE], method="area")
    return tf.cast(tf.round(255.0 - paper), tf.uint8), labels
