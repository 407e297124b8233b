"""Prints by how many MiB this process grew while it drew tasks of a folder and of a dataset, streamed and then held.

python memory_process.py FOLDER DATA_DIR
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tf_metagrad.data import from_folder, from_tfds

OPTIONS = {"ways": 2, "shots": 1, "queries": 1, "meta_batch": 2, "splits": {"train": 1.0}, "size": (160, 160)}


def anonymous():
    """MiB of memory that this process holds by itself; the pages of mapped files, which cost none, left out."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def growth(make, *arguments, **options):
    """MiB that stay once tasks have been drawn, and with them the tasks, which must not be freed meanwhile."""
    before = anonymous()
    tasks = make(*arguments, **OPTIONS, **options)
    for _ in tasks.take(5):
        pass
    return anonymous() - before, tasks


def main(folder, data_dir):
    kept = [growth(from_folder, folder, in_memory=False)]  # what TensorFlow itself takes at first
    for in_memory in (False, True):
        kept.append(growth(from_folder, folder, in_memory=in_memory))
        kept.append(growth(from_tfds, "plain", data_dir=data_dir, in_memory=in_memory))
    print(*(grown for grown, _ in kept[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
