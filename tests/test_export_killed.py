"""An export that is killed leaves the old SavedModel or the new one; a reader finds one of them at any moment."""

import pathlib
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from tf_metagrad import _folders

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_export_leaves_the_old_model_or_the_new_one(kills, tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "killed_exports.py", tmp_path / "model", str(kills)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("killed") >= kills / 2, done.stdout
    value = 1.0
    for number in range(kills):
        served = tf.saved_model.load(str(tmp_path / f"after-{number}")).signatures
        found = served["predict"](query_x=tf.zeros([1, 1]))["predictions"].numpy().item()
        values = {v: 400 * v * v + v for v in (value, number + 2.0)}  # weights that are all v predict this at zero
        value = next(v for v, prediction in values.items() if abs(found - prediction) < 1e-3 * prediction)


def folder(path, text):
    path.mkdir()
    (path / "saved_model.pb").write_text(text)
    return str(path)


def test_a_reader_never_finds_nothing(tmp_path):
    path = folder(tmp_path / "model", "0")
    if not _folders.exchange(folder(tmp_path / "one", "a"), folder(tmp_path / "other", "b")):
        pytest.skip("this file system cannot exchange two folders")
    assert [(tmp_path / name / "saved_model.pb").read_text() for name in ("one", "other")] == ["b", "a"]
    missing, ended = [], threading.Event()

    def read():
        while not ended.is_set():
            if not (tmp_path / "model" / "saved_model.pb").exists():
                missing.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(500):
            new = folder(tmp_path / f"new-{number}", str(number))
            _folders.put_in_place(new, path, str(tmp_path / f"old-{number}"))
    finally:
        ended.set()
        reader.join()
    assert not missing and (tmp_path / "model" / "saved_model.pb").read_text() == "499"
