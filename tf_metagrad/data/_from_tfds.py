"""Few-shot tasks from any set of labelled images that TensorFlow Datasets knows."""

import os
from typing import Any

import tensorflow as tf

from tf_metagrad.data import _episodes, _prepared, _splits, _tfds


def from_tfds(
    name: str,
    split: str = "train",
    *,
    ways: int,
    shots: int,
    queries: int,
    meta_batch: int,
    seed: int = 0,
    start: int = 0,
    splits: _splits.Splits = _splits.SHARES,
    split_seed: int = 0,
    examples: str | None = None,
    keys: tuple[str, str] | None = None,
    size: tuple[int, int] | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    in_memory: bool | None = None,
) -> tf.data.Dataset:
    """Few-shot tasks from the images of a dataset of TensorFlow Datasets, its classes divided into splits.

    What TensorFlow Datasets calls a split divides examples: its training examples and its test examples have the same
    classes. Few-shot learning asks for new classes, so `split` names a part of the classes here, and a class has the
    examples of all parts of the dataset, or of those that `examples` names.

    The images are decoded once in a process, and held in memory up to 2 GiB of pixels. Larger sets are decoded into a
    file beside the prepared dataset, once, of which tasks read their images.

    Args:
        name: of the dataset, such as "oxford_flowers102" or "emnist/balanced".
        split: a split of the classes, one of the names in `splits`.
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks.
        start: number of the first batch, for resuming.
        splits: for every split its share of the classes, or a list of their names; no two splits share a class.
        split_seed: names the order of the classes from which shares are taken; the same for every split.
        examples: which examples, as TensorFlow Datasets writes it ("train+test"); None for all.
        keys: names of the features that hold image and label; None for those that the dataset itself names.
        size: height and width to which images of another size are resized, by `tf.image.ResizeMethod.LANCZOS3` with
            antialiasing. Needed where the dataset has images of many sizes.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default.
        download: fetch and prepare the dataset where it is missing.
        in_memory: True to hold the pixels in memory, False to read them from the file; None decides by the size. The
            tasks are the same.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `from_arrays` describes, with images float32 in [0, 1] [..., height,
        width, channels].

    Raises:
        ValueError: the dataset is unknown or holds no such images, or splits or sizes do not fit it; the message says
            what to change.
        FileNotFoundError: the dataset is not in `data_dir` and `download` is False.
        OSError: there is no room for the file of pixels.
        ImportError: the package `tensorflow-datasets` is not installed.

    Example:
        >>> import tf_metagrad as mg
        >>> tasks = mg.data.from_tfds(  # doctest: +SKIP
        ...     "oxford_flowers102", "test", ways=5, shots=1, queries=15, meta_batch=4, size=(84, 84), download=True
        ... )
        >>> print(next(iter(tasks)).query_x.shape)  # doctest: +SKIP
        (4, 75, 84, 84, 3)
    """
    sizes = dict(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    _episodes.check_sizes(**sizes)
    folder = _tfds.find(name, name, data_dir, download)
    info = _tfds.import_tfds(name).builder_from_directory(folder).info
    image, label = _check_keys(info, keys)
    _check_size(info.features[image], size)
    examples = _check_examples(info, examples)
    decoded = _prepared.read(folder, examples, image=image, label=label, size=size, in_memory=in_memory)
    return decoded.tasks(_splits.choose(decoded.names, split, splits, split_seed), **sizes)


def _check_keys(info: Any, keys: tuple[str, str] | None) -> tuple[str, str]:
    """Returns the names of the features that hold an image and its label."""
    tfds = _tfds.import_tfds(info.name)
    keys, known = keys or info.supervised_keys or ("image", "label"), dict(info.features.items())
    found = [known.get(key) for key in keys]
    kinds = tfds.features.Image, tfds.features.Tensor  # ClassLabel and Text are such tensors
    if len(found) != 2 or not all(map(isinstance, found, kinds)) or found[1].shape != ():
        raise ValueError(
            f"keys is {keys!r} and the features of {info.name} are {', '.join(known)}, expected the name of an image "
            "and of its label: pass keys=(image, label), or choose another dataset."
        )
    return keys


def _check_examples(info: Any, examples: str | None) -> str:
    """Returns which examples, as TensorFlow Datasets writes it."""
    examples = examples or "+".join(info.splits)
    try:
        count = info.splits[examples].num_examples
    except (ValueError, KeyError, AttributeError):
        count = 0
    if not count:
        raise ValueError(
            f"examples is {examples!r}, expected parts of {info.name} that are not empty: choose among "
            f"{', '.join(info.splits)}, as in 'train+test'."
        )
    return examples


def _check_size(feature: Any, size: tuple[int, int] | None) -> None:
    if feature.np_dtype != "uint8" or feature.shape[2] not in (1, 3):
        raise ValueError(
            f"The images have type {feature.np_dtype.__name__} and {feature.shape[2]} channels, expected uint8 with 1 "
            "or 3: read them yourself, and pass them to from_arrays."
        )
    if size is not None:
        _episodes.check_shape(size)
    elif None in feature.shape:
        raise ValueError("The images are of many sizes, expected one: pass size=(84, 84), say.")
