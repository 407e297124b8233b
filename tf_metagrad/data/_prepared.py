"""Images that TensorFlow Datasets prepared: decoded once, into memory, or into a file of which tasks read their part.

Both give the same numbers. The file holds plain pixels, so that an image is one copy; PNG would have to be decoded
again for every task.
"""

import contextlib
import functools
import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad.data import _episodes, _manual, _tfds

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

    def tasks(self, classes: Collection[str] | None = None, **sizes: int) -> tf.data.Dataset:
        """Returns the tasks of some classes, None for all, as `_episodes.from_source` describes them."""
        positions = None
        if classes is not None:
            kept = np.array([name in classes for name in self.names])
            positions = np.flatnonzero(kept[self.labels])
        labels = self.labels if positions is None else self.labels[positions]
        return _episodes.from_source(self.fetch, labels, positions=positions, names=self.names, **sizes)


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
    info = _tfds.import_tfds("The dataset").builder_from_directory(folder).info
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
    tfds = _tfds.import_tfds("The dataset")
    builder = tfds.builder_from_directory(folder)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    examples = builder.as_dataset(split, decoders={image: tfds.decode.SkipDecoding()}, read_config=in_order)

    def decode(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return _manual.decode_sized(example[image], shape[1:]), example[label]

    name = _namer(builder.info.features[label])
    decoded = examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(64).prefetch(1)
    for part, labels in decoded.as_numpy_iterator():
        yield part, [name(value) for value in labels.tolist()]


def _namer(feature: Any) -> Callable[[Any], str]:
    """Returns the function from a label, as NumPy gives it, to the name of its class."""
    if not hasattr(feature, "int2str"):  # no ClassLabel
        return bytes.decode if feature.np_dtype == np.object_ else str

    def name(value: int) -> str:
        if value < 0:
            raise ValueError(
                f"An example has the label {value}, which means that it has none, expected a class for all: pass "
                "examples=... to leave the others out."
            )
        return feature.int2str(value)

    return name


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
