"""mini-ImageNet: 84x84 photographs of 100 classes, from files that users fetch by hand."""

import os

import tensorflow as tf

from tf_metagrad.data import _episodes, _prepared, _tfds


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
    in_memory: bool | None = None,
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
        in_memory: False to read the drawn images from a file of pixels, made once in `data_dir`; the tasks are the
            same.

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
    folder = _prepare(data_dir, manual_dir)
    return _prepared.read(folder, split, in_memory=in_memory).tasks(
        ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start
    )


def _prepare(data_dir: str | os.PathLike | None, manual_dir: str | os.PathLike | None) -> str:
    _tfds.import_tfds("mini-ImageNet")
    from tf_metagrad.data import _mini_imagenet_builder as files

    return _tfds.prepare_by_hand(files.MiniImagenet, files.find_files, "mini-ImageNet", data_dir, manual_dir)
