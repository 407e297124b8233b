"""A small tiered-ImageNet in the files that are published: PNG data and labels, pickled by Python 2."""

import pickle

import numpy as np
import python2
import tensorflow as tf

SPLITS = ("train", "val", "test")
CLASSES = {split: [f"{split} {k}, of several words" for k in (2, 0, 1)] for split in SPLITS}
COUNT = 4
SMALL = {"ways": 3, "shots": 1, "queries": 2, "meta_batch": 2}


def numbers():
    """The class numbers of a split's images, shuffled."""
    return np.random.RandomState(1).permutation(np.repeat(np.arange(3, dtype=np.int32), COUNT))


def picture(split, place):
    """Random squares, one picture for every argument."""
    squares = np.random.RandomState(100 * SPLITS.index(split) + place).randint(0, 256, [6, 6, 3], np.uint8)
    return tf.cast(tf.image.resize(squares, [84, 84], "nearest"), tf.uint8).numpy()


def png(image):
    """As `cv2.imencode` gives it: a column of bytes."""
    return np.frombuffer(tf.io.encode_png(image).numpy(), np.uint8)[:, np.newaxis]


def contents(split):
    """Images and labels of a split. The authors' script numbers categories beyond their names."""
    labels = {
        "label_specific": numbers(),
        "label_general": np.full(3 * COUNT, 9, np.int32),
        "label_specific_str": CLASSES[split],
        "label_general_str": ["category"],
    }
    return {"images_png": [png(picture(split, place)) for place in range(3 * COUNT)], "labels": labels}


def write(folder, protocol="Python 2", **changed):
    """Writes the six files; `changed` replaces contents, as in `val_labels=...`."""
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        for part, content in contents(split).items():
            content = changed.get(f"{split}_{part}", content)
            data = python2.dumps(content) if protocol == "Python 2" else pickle.dumps(content, protocol)
            (folder / f"{split}_{part}.pkl").write_bytes(data)
    return folder
