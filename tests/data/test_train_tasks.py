"""`train/train.py` on datasets whose files are small copies, or missing."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")
import tiered_imagenet_files

SCRIPT = pathlib.Path(__file__).parents[2] / "train" / "train.py"
TINY = (
    "--estimator=FOMAML --meta_batch=2 --inner_steps=1 --shots=1 --queries=2 --ways=3 --filters=4 --steps=2 "
    "--epoch_steps=2 --validation_tasks=2 --evaluation_tasks=2 --execution=map --jit_compile=false --verbose=0"
).split()


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("task", ["cifar_fs", pytest.param("tiered_imagenet", marks=pytest.mark.slow)])
def test_a_short_run_ends_well(task, cifar100, tmp_path):
    options = [f"--data_dir={cifar100}"]
    if task == "tiered_imagenet":
        options = [f"--data_dir={tmp_path}", f"--manual_dir={tiered_imagenet_files.write(tmp_path / 'files')}"]
    done = run(f"--task={task}", *TINY, *options, f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["count"] == 2
    assert (tmp_path / "out" / "saved_model" / "saved_model.pb").exists()


@pytest.mark.parametrize(
    ("task", "messages"),
    [
        ("tiered_imagenet", ["lacks train_images_png.pkl,", "manual/tiered_imagenet", "github.com/renmengye/few-shot"]),
        ("cifar_fs", ["CIFAR-100, of which CIFAR-FS is made, is not in", "tfds build cifar100 --data_dir="]),
        ("fc100", ["CIFAR-100, of which FC100 is made, is not in", "tfds build cifar100 --data_dir="]),
    ],
)
def test_missing_files_end_in_a_sentence(task, messages, tmp_path):
    done = run(f"--task={task}", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert all(message in done.stderr for message in messages), done.stderr
    assert not (tmp_path / "out").exists()
