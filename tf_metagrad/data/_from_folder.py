"""Few-shot tasks from a folder of images, one folder inside for every class."""

import collections
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tf_metagrad.data import _episodes, _manual, _prepared, _splits

SUFFIXES = (".jpg", ".jpeg", ".png")


def from_folder(
    folder: str | os.PathLike,
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
    size: tuple[int, int] = (84, 84),
    channels: int = 3,
    in_memory: bool | None = None,
    check: bool = True,
) -> tf.data.Dataset:
    """Few-shot tasks from your own images: `folder/<class>/<image>`, JPEG or PNG.

    The folders inside `folder` are the classes, and `split` names a part of them. Only files that end in .jpg, .jpeg or
    .png count, whatever the case; names that begin with a dot do not. Images of another size are resized.

    Up to 2 GiB of pixels, the images of the split are decoded at once and held in memory. Of a larger split the drawn
    images are read for every task. Images that have the wanted size already are read far faster than photographs that
    are resized every time.

    Args:
        folder: of the classes.
        split: a split of the classes, one of the names in `splits`.
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks.
        start: number of the first batch, for resuming.
        splits: for every split its share of the classes, or a list of their names; no two splits share a class.
            `{"train": 1.0}` takes all.
        split_seed: names the order of the classes from which shares are taken; the same for every split.
        size: height and width of the examples. Other images are resized by `tf.image.ResizeMethod.LANCZOS3` with
            antialiasing.
        channels: 3 for colours, 1 for grey.
        in_memory: True to hold the pixels in memory, False to read the drawn images; None decides by the size. The
            tasks are the same.
        check: read every image of the split once at the start, also where they are not held, to name one that cannot be
            read. Without it such an image ends the stream, when it is drawn, with a `tf.errors.OpError`.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `from_arrays` describes, with images float32 in [0, 1] [..., height,
        width, channels].

    Raises:
        ValueError: splits or sizes do not fit the classes, or an image cannot be read; the message says which.
        FileNotFoundError: there is no such folder, or no class in it.

    Example:
        >>> import pathlib, tempfile
        >>> import tensorflow as tf
        >>> import tf_metagrad as mg
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("oak", "elm", "ash", "fir"):
        ...     (folder / name).mkdir()
        ...     for k in range(3):
        ...         tf.io.write_file(f"{folder}/{name}/{k}.png", tf.io.encode_png(tf.zeros([8, 8, 3], tf.uint8)))
        >>> tasks = mg.data.from_folder(
        ...     folder, "train", splits={"train": 0.75}, ways=3, shots=1, queries=2, meta_batch=4, size=(8, 8)
        ... )
        >>> print(next(iter(tasks)).query_x.shape)
        (4, 6, 8, 8, 3)
    """
    sizes = dict(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    _episodes.check_sizes(**sizes)
    _episodes.check_shape(size, channels)
    files = _find_files(pathlib.Path(folder))
    names = _splits.choose(list(files), split, splits, split_seed)
    paths = [path for name in names for path in files[name]]
    labels = np.repeat(np.arange(len(names)), [len(files[name]) for name in names])
    shape = (*size, channels)
    if in_memory is None:
        in_memory = len(paths) * math.prod(shape) <= _prepared.IN_MEMORY
    source = dict(labels=labels, names=names, **sizes)
    if in_memory:
        return _episodes.from_source(_hold(paths, shape), **source)
    if check:
        collections.deque(_read_all(paths, shape), maxlen=0)
    with tf.device("CPU:0"):
        files = tf.constant(list(map(str, paths)), tf.string)
    return _episodes.from_source(lambda x: x, load=lambda position: _read_image(files[position], shape), **source)


def _find_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the images of every class, in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r}, expected one that holds a folder for every class."
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise FileNotFoundError(
            f"The folder {str(folder)!r} holds no folder, expected one for every class, with its images: give the "
            "folder above the images."
        )
    files = {path.name: sorted(filter(_is_image, path.iterdir())) for path in classes}
    empty = [name for name, images in files.items() if not images]
    if empty:
        raise FileNotFoundError(
            f"The folder {str(folder / empty[0])!r} of a class holds no image, expected files ending in "
            f"{', '.join(SUFFIXES)}: add images, or remove the folder."
        )
    return files


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _hold(paths: list[pathlib.Path], shape: tuple[int, int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from positions to images, which it holds in memory."""
    images, done = np.empty([len(paths), *shape], np.uint8), 0
    for part in _read_all(paths, shape):
        images[done : done + len(part)] = part
        done += len(part)
    with tf.device("CPU:0"):
        held = tf.convert_to_tensor(images)
    return lambda index: tf.gather(held, index)


def _read_image(path: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    return _manual.decode_sized(tf.io.read_file(path), shape)


def _read_all(paths: list[pathlib.Path], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Yields all images, uint8 [some, height, width, channels].

    Raises:
        ValueError: one cannot be read; the message names it.
    """
    load = functools.partial(_read_image, shape=shape)
    images = tf.data.Dataset.from_tensor_slices(tf.constant(list(map(str, paths)), tf.string))
    images = images.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(64)
    done = 0
    try:
        for part in images.prefetch(1).as_numpy_iterator():
            done += len(part)
            yield part
    except tf.errors.OpError as error:  # it does not say which file
        for path in paths[done : done + 64]:
            _check_image(path, shape[2])
        raise ValueError(f"The images cannot be read ({error.message[:200]}), expected JPEG or PNG files.") from error


def _check_image(path: pathlib.Path, channels: int) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The image {str(path)!r} cannot be read ({error.strerror}), expected a file.") from error
    _manual.decode_image(data, str(path), channels)
