"""Two worker processes on this machine: the update of one device, and runs that survive the loss of a worker."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from killable_runs import Runs, latest, saved, variables, wait_for
from two_workers import addresses

import tf_metagrad as mg

HERE = pathlib.Path(__file__).parent
FLAGS = (
    "--task=sinusoid --meta_batch=2 --inner_steps=1 --shots=3 --queries=3 --validation_tasks=2 --evaluation_tasks=4 "
    "--execution=map --jit_compile=false --verbose=0 --epoch_steps=10 --steps=40 --checkpoint_steps=4 "
    "--estimator=FOMAML --distribution=multi_worker"
).split()


def tf_configs():
    cluster = {"worker": addresses()}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in (0, 1)]


# Meta-updates ---------------------------------------------------------------------------------------------------------


def results(tmp_path, *names):
    """Run the script on two workers; return what each found."""
    paths = [tmp_path / f"worker{i}.npz" for i in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "two_workers.py", path, *names],
            env=os.environ | {"PYTHONPATH": str(HERE.parent), "TF_CONFIG": config},
            stderr=subprocess.PIPE,
            text=True,
        )
        for path, config in zip(paths, tf_configs(), strict=True)
    ]
    try:
        said = [process.communicate(timeout=1800)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return [dict(np.load(path)) for path in paths]


def check(found):
    for worker in found:
        assert worker.pop("numbers").tolist() == [10, 11]
    one = {key: value for worker in found for key, value in worker.items() if key.startswith("one")}
    for worker in found:
        for key in [key for key in worker if key.startswith("two")]:
            expected = one[key.replace("two", "one", 1)]
            difference = np.linalg.norm(worker[key] - expected) / np.linalg.norm(expected)
            assert difference < 1e-12, (key, difference)
    return {key[4:] for key in one}


def test_two_workers_give_the_update_of_one_device(tmp_path):
    """Losses, metric, weights, slots and averages of each step after two updates, of SNGDM and of Adam."""
    assert check(results(tmp_path, "per_step", "adam")) == {"per_step", "adam"}


@pytest.mark.slow
def test_two_workers_give_the_update_of_one_device_for_every_estimator(tmp_path):
    names = check(results(tmp_path, "all"))
    assert len(names) >= len(mg.estimators.__all__) - 1 and "sngdm" in names


# Runs of train.py -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes that fork runs of train.py, each run a worker of one cluster."""
    folder = tmp_path_factory.mktemp("pair")
    with (folder / "0").open("w") as first, (folder / "1").open("w") as second:
        runs = [Runs(e, TF_CONFIG=config) for e, config in zip((first, second), tf_configs(), strict=True)]
        for number, run in enumerate(runs):
            run.errors = folder / str(number)
        yield runs
        for run in runs:
            run.stop()


def start(pair, *flags):
    return [run.start(*FLAGS, *flags) for run in pair]


def said(pair):
    return [run.errors.read_text().splitlines()[-1] for run in pair]


def finish(pair, folder, *flags):
    start(pair, f"--output={folder}", *flags)
    assert [run.wait() for run in pair] == [0, 0], said(pair)
    files = {name: (folder / name).read_bytes() for name in ("config.json", "history.csv", "result.json")}
    return variables(folder) | files


@pytest.mark.slow
def test_a_worker_killed_and_all_restarted_ends_as_an_undisturbed_run(pair, tmp_path):
    undisturbed, folder = finish(pair, tmp_path / "undisturbed"), tmp_path / "killed"
    for victim, goal in ((1, 8), (0, 20)):
        processes = start(pair, f"--output={folder}")
        wait_for(processes[0], lambda: latest(folder / "checkpoints") >= goal)  # noqa: B023
        os.kill(processes[victim], signal.SIGKILL)
        status = [run.wait() for run in pair]
        assert status[victim] == -signal.SIGKILL and status[1 - victim] == 1
        assert said(pair)[1 - victim].startswith("train.py: Another worker was lost")
    assert finish(pair, folder) == undisturbed


@pytest.mark.slow
def test_sigterm_to_one_worker_stops_all_with_a_checkpoint(pair, tmp_path):
    processes = start(pair, f"--output={tmp_path}", "--steps=10000", "--epoch_steps=10000", "--checkpoint_steps=10000")
    wait_for(processes[0], lambda: (tmp_path / "logs").exists())
    os.kill(processes[1], signal.SIGTERM)
    assert [run.wait() for run in pair] == [128 + signal.SIGTERM] * 2
    assert said(pair) == ["train.py: terminated; the same command goes on from the last checkpoint."] * 2
    (step,) = saved(tmp_path / "checkpoints")
    assert 0 < step < 10000


@pytest.mark.slow
def test_workers_with_other_flags_or_other_folders_are_refused(pair, tmp_path):
    for number, run in enumerate(pair):
        run.start(*FLAGS, f"--output={tmp_path / 'run'}", f"--seed={number}")
    assert [run.wait() for run in pair] == [1, 1]
    assert all("must be started with the same flags" in sentence for sentence in said(pair))
    finish(pair, tmp_path / "run", "--steps=4")
    for number, run in enumerate(pair):
        run.start(*FLAGS, f"--output={tmp_path / ('run' if number == 0 else 'elsewhere')}", "--steps=4")
    assert [run.wait() for run in pair] == [1, 1]
    assert all("found those of the steps [4, 0]" in sentence for sentence in said(pair)), said(pair)


# TF_CONFIG ------------------------------------------------------------------------------------------------------------

TWO = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    "config",
    [
        None, "", "{", "[]", "3", {}, {"cluster": TWO}, {"cluster": TWO, "task": {"type": "worker", "index": 2}},
        {"cluster": TWO, "task": {"type": "worker", "index": "0"}},
        {"cluster": TWO, "task": {"type": "chief", "index": 0}},
        {"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a", "b:1"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a:0", "b:1"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a:65536", "b:1"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}},
    ],
)  # fmt: skip
def test_a_wrong_tf_config_is_a_sentence(monkeypatch, config):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(
        ValueError, match="needs TF_CONFIG in the environment.*Received: .*; on the second the index is 1"
    ):
        mg.make_strategy("multi_worker")
