"""A small mini-ImageNet in the files that users have."""

import pickle
import zipfile

import numpy as np
import python2
import tensorflow as tf

SPLITS = ("train", "val", "test")
CLASSES = {split: [f"n{i}{k}" for k in range(3)] for i, split in enumerate(SPLITS)}
COUNT = 4
SMALL = {"ways": 3, "shots": 1, "queries": 2, "meta_batch": 2}


def picture(split, label, number, height=84, width=84):
    """Random squares, one picture for every argument."""
    seed = (SPLITS.index(split) * 100 + CLASSES[split].index(label)) * 100 + number
    squares = np.random.RandomState(seed).randint(0, 256, [6, 6, 3], np.uint8)
    return tf.cast(tf.image.resize(squares, [height, width], "nearest"), tf.uint8).numpy()


def jpeg(image):
    return tf.io.encode_jpeg(image, quality=95).numpy()


def png(image):
    return tf.io.encode_png(image).numpy()


def names(split):
    """(class, number, file name) of every picture of a split, in the order of the tables."""
    return [(label, k, f"{label}_{k}.jpg") for label in CLASSES[split] for k in range(COUNT)]


def write_tables(folder):
    for split in SPLITS:
        lines = ["filename,label", *(f"{name},{label}" for label, _, name in names(split))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_images(folder, encode=jpeg, **size):
    (folder / "images").mkdir()
    for split in SPLITS:
        for label, k, name in names(split):
            (folder / "images" / name).write_bytes(encode(picture(split, label, k, **size)))
    return folder


def write_zip(folder, prefix="images/"):
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for split in SPLITS:
            for label, k, name in names(split):
                archive.writestr(prefix + name, jpeg(picture(split, label, k)))
    return folder


def cache(split):
    images = np.stack([picture(split, label, k) for label, k, _ in names(split)])
    order = np.random.RandomState(0).permutation(len(images))
    place = np.argsort(order).reshape(len(CLASSES[split]), COUNT)
    classes = {label: row.tolist() for label, row in zip(CLASSES[split], place, strict=True)}
    return {"image_data": images[order], "class_dict": classes}


def write_caches(folder, protocol=2):
    for split in SPLITS:
        content = cache(split)
        data = python2.dumps(content) if protocol == "Python 2" else pickle.dumps(content, protocol)
        (folder / f"mini-imagenet-cache-{split}.pkl").write_bytes(data)
    return folder
