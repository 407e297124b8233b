"""Time to make a batch of tasks beside the time of the training step that it feeds, dataset after dataset.

python benchmarks/pipeline.py --manual_dir=MINI_IMAGENET --data_dir=TFDS [--rounds=5] [--only=sinusoid,omniglot]

Batches are counted as fast as the pipeline makes them, while nothing else runs; steps are exact MAML, K = 5, on one
batch. Rounds of the two alternate, and medians are shown. Datasets whose files are not given are left out.
mini-ImageNet is read from memory, from the file of pixels, and as a folder of JPEG files of which the drawn ones are
decoded.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import csv
import pathlib
import statistics
import tempfile
import time
import zipfile

import keras
import tensorflow as tf
from absl import app, flags

import tf_metagrad as mg

_MANUAL = flags.DEFINE_string("manual_dir", None, "mini-ImageNet's files: images.zip and three CSVs.")
_DATA = flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps Omniglot.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of batches and steps.", 1)
_ONLY = flags.DEFINE_list("only", [], "Names of datasets; all where empty.")
FEW_SHOT = {"ways": 5, "shots": 1, "queries": 15}


def classifier(model: keras.Model, rate: float) -> mg.MetaLearner:
    """Return a learner of labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return mg.MetaLearner(model, loss, mg.inner.GradientDescent(5, rate), mg.estimators.MAML())


def sinusoid():
    """Return the learner and the tasks of `train/train.py --task=sinusoid`; so do the next ones for theirs."""
    inner = mg.inner.GradientDescent(5, 0.01)
    learner = mg.MetaLearner(mg.models.mlp(), "mse", inner, mg.estimators.MAML())
    return learner, mg.data.sinusoid(meta_batch=25)


def mnist1d():
    """See `sinusoid`."""
    return classifier(mg.models.conv1d(3), 0.1), mg.data.mnist1d(meta_batch=4)


def omniglot():
    """See `sinusoid`."""
    tasks = mg.data.omniglot(**FEW_SHOT, meta_batch=8, data_dir=_DATA.value)
    return classifier(mg.models.conv2d(5), 0.1), tasks


def mini_imagenet(in_memory: bool, scratch: str):
    """See `sinusoid`."""
    tasks = mg.data.mini_imagenet(
        **FEW_SHOT, meta_batch=4, data_dir=scratch, manual_dir=_MANUAL.value, in_memory=in_memory
    )
    return classifier(mg.models.conv2d(5, (84, 84, 3), filters=32), 0.01), tasks


def folder(scratch: str):
    """Return the same, from a folder of the validation classes: 16 classes, JPEG, 84x84."""
    place = pathlib.Path(scratch, "folder")
    manual = pathlib.Path(_MANUAL.value)
    with zipfile.ZipFile(manual / "images.zip") as archive, (manual / "val.csv").open() as table:
        members = {pathlib.PurePosixPath(name).name: name for name in archive.namelist()}
        for row in csv.DictReader(table):
            (place / row["label"]).mkdir(parents=True, exist_ok=True)
            (place / row["label"] / row["filename"]).write_bytes(archive.read(members[row["filename"]]))
    tasks = mg.data.from_folder(place, splits={"train": 1.0}, in_memory=False, **FEW_SHOT, meta_batch=4)
    return classifier(mg.models.conv2d(5, (84, 84, 3), filters=32), 0.01), tasks


def seconds(call, least: float = 0.5) -> float:
    """Return the time of a call, the mean over as many as take `least` seconds."""
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < least:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def measure(learner: mg.MetaLearner, tasks: tf.data.Dataset) -> tuple[float, float]:
    """Return the medians of the seconds that a batch and a step take."""
    learner.compile(keras.optimizers.Adam(1e-3))
    batch, seed = learner.check_tasks(next(iter(tasks))), tf.constant(0, tf.int64)
    learner.update(batch, seed)
    batches, steps = [], []
    for _ in range(_ROUNDS.value):
        source = iter(tasks)
        for _ in range(20):  # what was made ahead, while the dataset started
            next(source)
        batches.append(seconds(lambda source=source: next(source)))
        del source
        steps.append(seconds(lambda: learner.update(batch, seed)[0].numpy()))
    return statistics.median(batches), statistics.median(steps)


def main(argv: list[str]) -> None:
    """Measure dataset after dataset."""
    with tempfile.TemporaryDirectory() as scratch:
        made = {"sinusoid": sinusoid, "mnist1d": mnist1d}
        if _DATA.value:
            made["omniglot"] = omniglot
        if _MANUAL.value:
            made["mini_imagenet, in memory"] = lambda: mini_imagenet(True, scratch)
            made["mini_imagenet, from the file"] = lambda: mini_imagenet(False, scratch)
            made["folder of JPEG files"] = lambda: folder(scratch)
        print("| tasks | batch (ms) | step (ms) | ratio |\n|---|---|---|---|", flush=True)
        for name, make in made.items():
            if not _ONLY.value or any(name.startswith(only) for only in _ONLY.value):
                batch, step = measure(*make())
                print(f"| {name} | {1e3 * batch:.2f} | {1e3 * step:.1f} | {step / batch:.0f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
