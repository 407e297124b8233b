"""A CIFAR-100 of three images a class, in the files of TensorFlow Datasets, and its tasks' images told apart."""

import numpy as np
import tensorflow_datasets as tfds

from tf_metagrad.data import _cifar100

NAMES = sorted(_cifar100.CLASSES)  # the order of fine_label_names.txt


def picture(label, number):
    """The class in every red, the number in every green; blue is noise, which a lossy copy would lose."""
    image = np.random.RandomState(3 * int(label) + int(number)).randint(0, 256, [32, 32, 3], np.uint8)
    image[..., 0], image[..., 1] = label, number
    return image


def write(folder, names=NAMES):
    """Two images a class for training, one for testing, in shuffled order."""

    def examples(numbers):
        for label in np.random.RandomState(0).permutation(len(names)):
            for number in numbers:
                yield (
                    f"{label}_{number}",
                    {"image": picture(label, number), "label": label, "coarse_label": 0, "id": ""},
                )

    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar100",
        version="3.0.2",
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=names),
                "coarse_label": tfds.features.ClassLabel(num_classes=20),
            }
        ),
        split_datasets={"train": examples((0, 1)), "test": examples((2,))},
    )
    return folder


def drawn(tasks, count):
    """Names of the classes [tasks, ways] of `count` checked batches of 1 shot and 2 queries; which images were seen."""
    classes, seen = [], set()
    for task in tasks.take(count).unbatch():
        images = np.round(np.concatenate([task.support_x, task.query_x]) * 255).astype(np.uint8)
        for image in images:
            np.testing.assert_array_equal(image, picture(image[0, 0, 0], image[0, 0, 1]))
        labels, numbers = images[:, 0, 0, 0], images[:, 0, 0, 1]
        ways = len(task.support_y)
        np.testing.assert_array_equal(labels[ways:], labels[:ways][task.query_y])
        assert len({*zip(labels, numbers, strict=True)}) == len(images)
        classes.append([NAMES[label] for label in labels[:ways]])
        seen |= {*zip(labels.tolist(), numbers.tolist(), strict=True)}
    return np.array(classes), seen
