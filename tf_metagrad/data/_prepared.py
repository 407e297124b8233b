"""Images that TensorFlow Datasets prepared: decoded once, into memory, or into a file of which tasks read their part.

Both give the same numbers. The file holds plain pixels, so that an image is one copy; PNG would have to be decoded
again for every task.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad.data import _manual

IN_MEMORY = 2**31  # bytes of pixels; a larger set is read from a file, unless asked otherwise


class Decoded(NamedTuple):
    """Images uint8 [n, height, width, channels], a tensor or a file; the class number of each; the classes' names."""

    images: tf.Tensor | np.memmap
    labels: np.ndarray
    names: list[str]

    def fetch(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the images at these positions, in a `tf.data` pipeline."""
        if isinstance(self.images, tf.Tensor):
            return tf.gather(self.images, index)
        images = tf.numpy_function(self.images.__getitem__, [index], tf.uint8, stateful=False)
        return tf.ensure_shape(images, [*index.shape, *self.images.shape[1:]])


def import_tfds(title: str) -> types.ModuleType:
    """Returns the module `tensorflow_datasets`, which takes seconds to import and which few datasets need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{title} is read by the package tensorflow-datasets, not found: "
            "pip install tensorflow-datasets importlib_resources."
        ) from error
    return tfds


def find(name: str, title: str, data_dir: str | os.PathLike | None, download: bool) -> str:
    """Returns the folder of a dataset of TensorFlow Datasets, after preparing it if asked to.

    Raises:
        ValueError: there is no dataset of this name.
        FileNotFoundError: it is not in `data_dir`, and `download` is False.
        ImportError: the package `tensorflow-datasets` is not installed.
    """
    tfds = import_tfds(title)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"name is {name!r}, expected a dataset of TensorFlow Datasets: `tfds.list_builders()` lists them; "
            "one of your own is found by its data_dir."
        ) from error
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"{title} is not in {builder.data_path}, expected it as TensorFlow Datasets prepares it: "
            f"run `tfds build {name} --data_dir={builder.data_path.parents[len(name.split('/'))]}`, "
            "pass another data_dir, or pass download=True."
        )
    return os.fspath(builder.data_path)


def prepare_by_hand(
    builder_class: type,
    find_files: Callable[[pathlib.Path], list[pathlib.Path]],
    title: str,
    data_dir: str | os.PathLike | None,
    manual_dir: str | os.PathLike | None,
) -> str:
    """Returns the folder of a dataset made from files that users fetch, after preparing it where it is not.

    Args:
        builder_class: the builder, whose metadata names the files with their sizes.
        find_files: maps the manual folder to the files, or raises FileNotFoundError.
        title: the dataset's name in messages.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default.
        manual_dir: the folder of the files; None for `downloads/manual/<name>` in `data_dir`.

    Raises:
        FileNotFoundError: it is not prepared, and files are missing.
        ValueError: a file is damaged or forged, or the dataset was prepared from others.
    """
    tfds = import_tfds(title)
    builder = builder_class(data_dir=data_dir)
    default = pathlib.Path(builder.data_path).parents[1] / "downloads" / "manual" / builder.name
    manual = default if manual_dir is None else pathlib.Path(manual_dir)
    if not builder.is_prepared():
        logging.info("Preparing %s in %s, once.", title, builder.data_path)
        find_files(manual)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    elif manual_dir is not None and builder.info.metadata["files"] != _manual.fingerprint(find_files(manual)):
        raise ValueError(
            f"{title} in {str(builder.data_path)!r} was prepared from other files than those in {str(manual)!r}, "
            "expected the same: delete the former to prepare it again, pass another data_dir, or leave manual_dir out."
        )
    return os.fspath(builder.data_path)


def read(
    folder: str,
    split: str,
    *,
    image: str = "image",
    label: str = "class_name",
    size: tuple[int, int] | None = None,
    in_memory: bool | None = None,
) -> Decoded:
    """Reads images of a prepared dataset, in order, once per process; where they are large, once per folder.

    Args:
        folder: of the prepared dataset.
        split: which examples, such as "train+test".
        image: name of the feature that holds the image.
        label: name of the feature that holds the class, a number or a text.
        size: height and width to resize to; None where all have the size that the dataset states.
        in_memory: whether the pixels are held in memory; False for a file in `folder`, None for memory up to
            `IN_MEMORY` bytes.

    Raises:
        OSError: the file cannot be written.
    """
    info = import_tfds("The dataset").builder_from_directory(folder).info
    shape = (info.splits[split].num_examples, *(size or info.features[image].shape[:2]), info.features[image].shape[2])
    if in_memory is None:
        in_memory = math.prod(shape) <= IN_MEMORY
    return _read(folder, split, image, label, shape, in_memory)


@functools.cache
def _read(folder: str, split: str, image: str, label: str, shape: tuple[int, ...], in_memory: bool) -> Decoded:
    logging.info("Reading %s of %s, once per process.", split, folder)
    batches = functools.partial(_batches, folder, split, image, label, shape)
    if not in_memory:
        place = pathlib.Path(folder, "decoded", f"{split}-{image}-{label}-{shape[1]}x{shape[2]}")
        if not place.exists():
            with _new_folder(place, math.prod(shape)) as partial:
                _write(partial, shape, batches())
        values = json.loads((place / "names.json").read_text())
        return Decoded(np.load(place / "images.npy", mmap_mode="r"), np.load(place / "labels.npy"), values)
    images, values = np.empty(shape, np.uint8), []
    for part, of_part in batches():
        images[len(values) : len(values) + len(part)] = part
        values += of_part
    with tf.device("CPU:0"):
        return Decoded(tf.convert_to_tensor(images), *_number(values))


def _batches(folder: str, split: str, image: str, label: str, shape: tuple[int, ...]) -> Iterator:
    """Yields images uint8 [some, height, width, channels], and the list of their labels' names."""
    tfds = import_tfds("The dataset")
    builder = tfds.builder_from_directory(folder)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    examples = builder.as_dataset(split, decoders={image: tfds.decode.SkipDecoding()}, read_config=in_order)

    def decode(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = _manual.decode(example[image], shape[3])
        fits = tf.reduce_all(tf.shape(pixels)[:2] == shape[1:3])
        pixels = tf.cond(fits, lambda: pixels, lambda: _manual.resize(pixels, shape[1:3]))
        return tf.ensure_shape(pixels, shape[1:]), example[label]

    name = _namer(builder.info.features[label])
    decoded = examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(512).prefetch(1)
    for part, labels in decoded.as_numpy_iterator():
        yield part, [name(value) for value in labels.tolist()]


def _namer(feature: Any) -> Callable[[Any], str]:
    """Returns the function from a label, as NumPy gives it, to the name of its class."""
    if hasattr(feature, "int2str"):  # ClassLabel
        return feature.int2str
    return bytes.decode if feature.np_dtype == np.object_ else str


def _number(values: list[str]) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(values))
    numbers = {name: number for number, name in enumerate(names)}
    return np.fromiter((numbers[value] for value in values), np.int32, len(values)), names


def _write(folder: pathlib.Path, shape: tuple[int, ...], batches: Iterator) -> None:
    values = []
    with (folder / "images.npy").open("wb") as file:  # not np.memmap, which a full disk ends by a signal
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part, of_part in batches:
            file.write(part.tobytes())
            values += of_part
    labels, names = _number(values)
    np.save(folder / "labels.npy", labels)
    (folder / "names.json").write_text(json.dumps(names))


@contextlib.contextmanager
def _new_folder(place: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """Gives a folder that becomes `place` when the block ends well, unless another process was faster."""
    partial = None
    try:
        place.parent.mkdir(exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{place.name}.partial", dir=place.parent))
        yield partial
        try:
            partial.rename(place)
        except OSError:
            if not place.exists():
                raise
    except OSError as error:
        raise OSError(
            f"The images cannot be written to {str(place)!r} ({error.strerror or error}), expected room for {size} "
            "bytes: make room, prepare the dataset in another data_dir, or pass in_memory=True."
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
