"""Images that say which they are, in folders and in datasets of TensorFlow Datasets."""

import numpy as np
import tensorflow as tf

NAMES = ["ash", "elm", "fir", "oak", "yew"]
COUNTS = [4, 3, 5, 4, 6]
SMALL = {"ways": 2, "shots": 1, "queries": 2, "meta_batch": 3}


def picture(label, number, height=8, width=8, channels=3):
    """Noise, one picture for every argument."""
    return np.random.RandomState(100 * label + number).randint(0, 256, [height, width, channels], np.uint8)


def write_folder(folder, **size):
    for label, (name, count) in enumerate(zip(NAMES, COUNTS, strict=True)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            data = tf.io.encode_png(picture(label, number, **size)).numpy()
            (folder / name / f"{number}.{['png', 'PNG'][number % 2]}").write_bytes(data)
    return folder


def write_dataset(folder, name="trees", shape=(8, 8, 3), labels=range(5), feature=None, key="image", **size):
    """Examples with odd numbers are for testing, the others for training."""
    import tensorflow_datasets as tfds

    def examples(odd):
        for label, count in enumerate(COUNTS):
            for number in range(odd, count, 2):
                yield f"{label}_{number}", {key: picture(label, number, **size), "label": labels[label]}

    tfds.disable_progress_bar()
    label = tfds.features.ClassLabel(names=NAMES) if feature is None else feature
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict({key: tfds.features.Image(shape=shape), "label": label}),
        split_datasets={"train": examples(0), "test": examples(1)},
    )
    return folder


def drawn(tasks, count, **size):
    """Classes [tasks, ways] of `count` checked batches of one shot; which images were seen."""
    known = {picture(k, n, **size).tobytes(): (k, n) for k, total in enumerate(COUNTS) for n in range(total)}
    classes, seen = [], set()
    for task in tasks.take(count).unbatch():
        images = np.round(np.concatenate([task.support_x, task.query_x]) * 255).astype(np.uint8)
        found = [known[image.tobytes()] for image in images]
        labels, ways = np.array([label for label, _ in found]), len(task.support_y)
        np.testing.assert_array_equal(labels[ways:], labels[:ways][task.query_y])
        assert len({*found}) == len(found)
        classes.append([NAMES[label] for label in labels[:ways]])
        seen |= {*found}
    return np.array(classes), seen


def same(left, right, count=4):
    """The two streams agree bit for bit."""
    for task, other in zip(left.take(count), right.take(count), strict=True):
        for part, again in zip(task, other, strict=True):
            np.testing.assert_array_equal(part, again, strict=True)
