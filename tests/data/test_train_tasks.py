"""`train/train.py` on datasets whose files are small copies."""

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


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cifar_fs", "tiered_imagenet"])
def test_a_short_run_ends_well(task, cifar100, tmp_path):
    options = [f"--data_dir={cifar100}"]
    if task == "tiered_imagenet":
        options = [f"--data_dir={tmp_path}", f"--manual_dir={tiered_imagenet_files.write(tmp_path / 'files')}"]
    done = run(f"--task={task}", *TINY, *options, f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["count"] == 2
    assert (tmp_path / "out" / "saved_model" / "saved_model.pb").exists()
