"""mini-ImageNet: 84x84 photographs of 100 classes, from files that users fetch by hand."""

import functools
import os
import pathlib

import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad.data import _arrays, _episodes

SIZE = 84


def mini_imagenet(
    split: str = "train",
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch: int = 4,
    seed: int = 0,
    start: int = 0,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Few-shot tasks from mini-ImageNet, in the split of Ravi and Larochelle: 64, 16 and 20 classes of 600 images.

    ImageNet asks its users to agree to terms, so nothing is downloaded. Put the files into `manual_dir`, in one of the
    two forms in which they are shared:

    * `train.csv`, `val.csv` and `test.csv`, with the columns `filename,label`, beside the folder `images/` or the
      archive `images.zip` of JPEG or PNG files. Those of another size than 84x84 are resized by
      `tf.image.ResizeMethod.LANCZOS3` with antialiasing, the filter of the script published with MAML;
    * `mini-imagenet-cache-train.pkl`, `-val.pkl` and `-test.pkl`. They are read as data: nothing in them is executed.

    The first call prepares them for TensorFlow Datasets, in `data_dir`: a minute or two. Every process then reads a
    split once, into host memory: 813 MB for the whole of train, and as much again for a moment. Classes may hold fewer
    images than 600, and be fewer.

    Args:
        split: "train", "validation" or "test".
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks; the splits are always the same.
        start: number of the first batch, for resuming.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default. Nothing else is written to.
        manual_dir: the folder of the files; None for `downloads/manual/mini_imagenet` in `data_dir`. Needed only until
            the dataset is prepared.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `from_arrays` describes: support_x float32 in [0, 1] [meta_batch,
        ways * shots, 84, 84, 3], support_y int32 [meta_batch, ways * shots], query_x and query_y alike with `queries`
        for `shots`.

    Raises:
        ValueError: the split is unknown, a size is out of range, or a file is damaged or forged; the message says
            which.
        FileNotFoundError: files are missing; the message says which, where they go, and where they come from.
        ImportError: the package `tensorflow-datasets` is not installed.

    Example:
        >>> import tf_metagrad as mg
        >>> task = next(iter(mg.data.mini_imagenet("test", manual_dir="mini_imagenet")))  # doctest: +SKIP
        >>> print(task.support_x.shape, task.query_x.shape)  # doctest: +SKIP
        (4, 5, 84, 84, 3) (4, 75, 84, 84, 3)

    References:
        Vinyals et al., 2016, Matching Networks for One Shot Learning, https://arxiv.org/abs/1606.04080
        Ravi and Larochelle, 2017, Optimization as a Model for Few-Shot Learning, ICLR.
        Finn et al., 2017, Model-Agnostic Meta-Learning, https://arxiv.org/abs/1703.03400
        Ren et al., 2018, Meta-Learning for Semi-Supervised Few-Shot Classification, https://arxiv.org/abs/1803.00676
    """
    _episodes.check_choice("split", split, ("train", "validation", "test"))
    _episodes.check_sizes(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    images, classes = load_images(_prepare(data_dir, manual_dir), split)
    names, labels, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if counts.min() < shots + queries:
        raise ValueError(
            f"The class {str(names[counts.argmin()])!r} of mini-ImageNet's {split} split has {counts.min()} images, "
            f"expected at least shots + queries = {shots + queries}: lower shots or queries, or complete the class."
        )
    return _arrays.from_arrays(
        images, labels, ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start
    )


def _prepare(data_dir: str | os.PathLike | None, manual_dir: str | os.PathLike | None) -> str:
    """Returns the folder of the prepared dataset, after preparing it where it is not."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "mini-ImageNet is read by the package tensorflow-datasets, not found: "
            "pip install tensorflow-datasets importlib_resources."
        ) from error
    from tf_metagrad.data import _mini_imagenet_builder as files

    builder = files.MiniImagenet(data_dir=data_dir)
    default = pathlib.Path(builder.data_path).parents[1] / "downloads" / "manual" / builder.name
    manual = default if manual_dir is None else pathlib.Path(manual_dir)
    if not builder.is_prepared():
        logging.info("Preparing mini-ImageNet in %s, once.", builder.data_path)
        files.find_files(manual)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    elif manual_dir is not None:
        _check_same(builder, files.fingerprint(files.find_files(manual)), manual)
    return os.fspath(builder.data_path)


def _check_same(builder, found: dict[str, int], manual: pathlib.Path) -> None:
    if builder.info.metadata["files"] != found:
        raise ValueError(
            f"mini-ImageNet in {str(builder.data_path)!r} was prepared from other files than those in {str(manual)!r}, "
            "expected the same: delete the former to prepare it again, pass another data_dir, or leave manual_dir out."
        )


@functools.cache
def load_images(folder: str, split: str) -> tuple[tf.Tensor, np.ndarray]:
    """Reads a split of the prepared dataset: uint8 [images, 84, 84, 3] in host memory, and the class name of each."""
    import tensorflow_datasets as tfds

    logging.info("Reading mini-ImageNet's %s split from %s, once per process.", split, folder)
    builder = tfds.builder_from_directory(folder)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    examples = builder.as_dataset(split, decoders={"image": tfds.decode.SkipDecoding()}, read_config=in_order)
    images = np.empty([builder.info.splits[split].num_examples, SIZE, SIZE, 3], np.uint8)
    classes = []
    decoded = examples.map(_decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(512)
    for part, names in decoded.prefetch(1).as_numpy_iterator():
        images[len(classes) : len(classes) + len(part)] = part
        classes += [name.decode() for name in names]
    with tf.device("CPU:0"):
        return tf.convert_to_tensor(images), np.array(classes)


def _decode(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    image = tf.io.decode_jpeg(example["image"], channels=3, dct_method="INTEGER_ACCURATE")  # and PNG, says its page
    return tf.ensure_shape(image, [SIZE, SIZE, 3]), example["class_name"]
