"""A set larger than memory streams: what a process holds does not grow with the set."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

tfds = pytest.importorskip("tensorflow_datasets")

CLASSES, COUNT, SIDE = 4, 700, 160
PIXELS = CLASSES * COUNT * SIDE * SIDE * 3 / 2**20  # 205 MiB
SCRIPT = pathlib.Path(__file__).with_name("memory_process.py")


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory by kind is Linux's")
def test_what_streams_is_not_held(quiet, tmp_path):
    """A plain image is some 600 bytes as PNG, and 75 KiB of pixels."""

    def examples():
        for label in range(CLASSES):
            data = tf.io.encode_png(np.full([SIDE, SIDE, 3], 10 * label, np.uint8)).numpy()
            (tmp_path / "folder" / str(label)).mkdir(parents=True)
            for number in range(COUNT):
                (tmp_path / "folder" / str(label) / f"{number}.png").write_bytes(data)
                yield f"{label}_{number}", {"image": io.BytesIO(data), "label": label}

    features = {
        "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
        "label": tfds.features.ClassLabel(num_classes=CLASSES),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="plain",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples()},
    )
    command = [sys.executable, str(SCRIPT), str(tmp_path / "folder"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    streamed_folder, streamed_file, held_folder, held_dataset = map(float, run.stdout.split())
    assert held_folder > PIXELS and held_dataset > PIXELS
    assert streamed_folder < PIXELS / 4 and streamed_file < PIXELS / 4
