"""tiered-ImageNet: 84x84 photographs of 608 classes, from files that users fetch by hand."""

import os

import tensorflow as tf

from tf_metagrad.data import _episodes, _prepared, _tfds


def tiered_imagenet(
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
    in_memory: bool | None = None,
) -> tf.data.Dataset:
    """Few-shot tasks from tiered-ImageNet, in the published split: 351, 97 and 160 classes, 779,165 images in all.

    The classes of a split come from 20, 6 and 8 categories that no other split has a class of, so that test classes
    are further from the training classes than mini-ImageNet's are.

    ImageNet asks its users to agree to terms, so nothing is downloaded. Put the six files of the published archive
    into `manual_dir`: `train_images_png.pkl`, `train_labels.pkl`, and the same for `val` and `test`. They are read as
    data: nothing in them is executed.

    The first call prepares them for TensorFlow Datasets, in `data_dir`. It checks every image, which takes minutes,
    and holds the encoded images of one split at a time in memory: some 8 GB for train. A split of more than 2 GiB of
    pixels is then written to a file in `data_dir`, once (9.5 GB for train, 2.6 GB for validation, 4.4 GB for test), of
    which tasks read their images; smaller ones are held in memory.

    Args:
        split: "train", "validation" or "test".
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks; the splits are always the same.
        start: number of the first batch, for resuming.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default. Nothing else is written to.
        manual_dir: the folder of the files; None for `downloads/manual/tiered_imagenet` in `data_dir`. Needed only
            until the dataset is prepared.
        in_memory: True to hold the pixels in memory, False to read them from the file; None decides by the size. The
            tasks are the same.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `from_arrays` describes: support_x float32 in [0, 1] [meta_batch,
        ways * shots, 84, 84, 3], support_y int32 [meta_batch, ways * shots], query_x and query_y alike with `queries`
        for `shots`.

    Raises:
        ValueError: the split is unknown, a size is out of range, or a file is damaged or forged; the message says
            which.
        FileNotFoundError: files are missing; the message says which, where they go, and where they come from.
        OSError: there is no room for the file of pixels.
        ImportError: the package `tensorflow-datasets` is not installed.

    Example:
        >>> import tf_metagrad as mg
        >>> task = next(iter(mg.data.tiered_imagenet("test", manual_dir="tiered-imagenet")))  # doctest: +SKIP
        >>> print(task.support_x.shape, task.query_x.shape)  # doctest: +SKIP
        (4, 5, 84, 84, 3) (4, 75, 84, 84, 3)

    References:
        Ren et al., 2018, Meta-Learning for Semi-Supervised Few-Shot Classification, https://arxiv.org/abs/1803.00676
    """
    _episodes.check_choice("split", split, ("train", "validation", "test"))
    _episodes.check_sizes(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    _tfds.import_tfds("tiered-ImageNet")
    from tf_metagrad.data import _tiered_imagenet_builder as files

    folder = _tfds.prepare_by_hand(files.TieredImagenet, files.find_files, "tiered-ImageNet", data_dir, manual_dir)
    return _prepared.read(folder, split, in_memory=in_memory).tasks(
        ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start
    )
