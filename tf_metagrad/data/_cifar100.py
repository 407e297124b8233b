"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, split for few-shot learning at random and by superclass."""

import os

import tensorflow as tf

from tf_metagrad.data import _episodes, _prepared, _tfds

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CLASSES = frozenset(" ".join(SUPERCLASSES.values()).split())
HELD_BACK = {
    "validation": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea "
    "shark television tractor",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
    "telephone wardrobe whale woman worm",
}
CIFAR_FS = {split: frozenset(names.split()) for split, names in HELD_BACK.items()}
CIFAR_FS["train"] = CLASSES.difference(*CIFAR_FS.values())
FC100_HELD_BACK = {
    "validation": "large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals",
    "test": "aquatic_mammals insects medium_mammals people",
}
FC100 = {
    split: frozenset(" ".join(SUPERCLASSES[name] for name in names.split()).split())
    for split, names in FC100_HELD_BACK.items()
}
FC100["train"] = CLASSES.difference(*FC100.values())


def cifar_fs(
    split: str = "train",
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch: int = 4,
    seed: int = 0,
    start: int = 0,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
) -> tf.data.Dataset:
    """Few-shot tasks from CIFAR-FS: CIFAR-100 in the random split of Bertinetto et al., 64, 16 and 20 classes.

    A class has all its 600 images, those for training and those for testing in CIFAR-100. They come from TensorFlow
    Datasets, prepared before or with `download=True`. Reading takes seconds and 184 MB, once per process.

    Args:
        split: "train", "validation" or "test".
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks; the splits are always the same.
        start: number of the first batch, for resuming.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default.
        download: fetch and prepare CIFAR-100 where it is missing.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `from_arrays` describes: support_x float32 in [0, 1] [meta_batch,
        ways * shots, 32, 32, 3], support_y int32 [meta_batch, ways * shots], query_x and query_y alike with `queries`
        for `shots`.

    Raises:
        ValueError: the split is unknown or a size is out of range; the message says which.
        FileNotFoundError: CIFAR-100 is not in `data_dir` and `download` is False.
        ImportError: the package `tensorflow-datasets` is not installed.

    Example:
        >>> import tf_metagrad as mg
        >>> task = next(iter(mg.data.cifar_fs("test", download=True)))  # doctest: +SKIP
        >>> print(task.support_x.shape, task.query_x.shape)  # doctest: +SKIP
        (4, 5, 32, 32, 3) (4, 75, 32, 32, 3)

    References:
        Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images.
        Bertinetto et al., 2019, Meta-learning with differentiable closed-form solvers, https://arxiv.org/abs/1805.08136
    """
    sizes = dict(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    return _tasks("CIFAR-FS", CIFAR_FS, split, sizes, data_dir, download)


def fc100(
    split: str = "train",
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch: int = 4,
    seed: int = 0,
    start: int = 0,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
) -> tf.data.Dataset:
    """Few-shot tasks from FC100: CIFAR-100 split by superclass as in TADAM, 12, 4 and 4 of five classes each.

    No split has a class of another's superclasses, which makes it harder than CIFAR-FS. The rest is as in `cifar_fs`.

    Args:
        split: "train", "validation" or "test": 60, 20 and 20 classes of 600 images.
        ways: classes in a task, of whatever superclasses.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream of tasks; the splits are always the same.
        start: number of the first batch, for resuming.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default.
        download: fetch and prepare CIFAR-100 where it is missing.

    Returns:
        An infinite `tf.data.Dataset` of `Task`, as `cifar_fs` describes.

    Raises:
        ValueError: the split is unknown or a size is out of range; the message says which.
        FileNotFoundError: CIFAR-100 is not in `data_dir` and `download` is False.
        ImportError: the package `tensorflow-datasets` is not installed.

    Example:
        >>> import tf_metagrad as mg
        >>> task = next(iter(mg.data.fc100("test", download=True)))  # doctest: +SKIP
        >>> print(task.support_x.shape, task.query_x.shape)  # doctest: +SKIP
        (4, 5, 32, 32, 3) (4, 75, 32, 32, 3)

    References:
        Oreshkin et al., 2018, TADAM: Task dependent adaptive metric for improved few-shot learning,
        https://arxiv.org/abs/1805.10123
    """
    sizes = dict(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    return _tasks("FC100", FC100, split, sizes, data_dir, download)


def _tasks(
    title: str,
    splits: dict[str, frozenset[str]],
    split: str,
    sizes: dict[str, int],
    data_dir: str | os.PathLike | None,
    download: bool,
) -> tf.data.Dataset:
    _episodes.check_choice("split", split, ("train", "validation", "test"))
    _episodes.check_sizes(**sizes)
    folder = _tfds.find("cifar100", f"CIFAR-100, of which {title} is made,", data_dir, download)
    decoded = _prepared.read(folder, "train+test", label="label", in_memory=True)
    if CLASSES.symmetric_difference(decoded.names):
        raise ValueError(
            f"CIFAR-100 in {folder!r} holds {len(decoded.names)} classes, {len(CLASSES & {*decoded.names})} of them "
            f"known by name, expected all {len(CLASSES)}: this copy is incomplete, delete it and prepare it again."
        )
    return decoded.tasks(splits[split], **sizes)
