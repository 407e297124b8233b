"""The figures of the papers: their references hold, and each writes what reproduce.py promises."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tf_metagrad as mg

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "train")


def call(*flags):
    command = [sys.executable, ROOT / "train" / "reproduce.py", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_name_has_a_figure_with_both_sizes():
    import reproduce
    from figures import FIGURES

    assert set(reproduce.NAMES) == set(FIGURES)
    for module in FIGURES.values():
        assert set(module.SIZES) == {"small", "paper"}
        assert json.dumps(module.SIZES["small"]) != json.dumps(module.SIZES["paper"])


def test_a_figure_writes_numbers_picture_and_settings_and_is_left_alone_afterwards(tmp_path):
    first = call("--figure=binom_figure_2", f"--results={tmp_path}")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "binom_figure_2-small"
    rows = list(csv.DictReader((folder / "numbers.csv").read_text().splitlines()))
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    about = json.loads((folder / "settings.json").read_text())
    assert about["command"] == "python train/reproduce.py --figure=binom_figure_2 --size=small"
    assert len(rows) == len(about["settings"]["alphas"]) * 3 * 3 * (about["settings"]["steps"] + 1)
    assert all(float(r["found"]) <= float(r["corrected"]) + 1e-5 for r in rows)
    assert any(float(r["found"]) > float(r["printed"]) + 0.1 for r in rows)  # what docs/results.md says of (12a), (12b)
    changed = (folder / "numbers.csv").stat().st_mtime_ns
    assert "is there already" in call("--figure=binom_figure_2", f"--results={tmp_path}").stdout
    assert (folder / "numbers.csv").stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Nothing to do. Give --all or --figure"),
        (["--figure=binom_figure_9"], "binom_figure_9"),
        (["extra"], "takes flags only"),
    ],
)
def test_bad_flags_end_in_a_sentence(flags, message):
    done = call(*flags)
    assert done.returncode == 1
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_quadratic_tasks_are_what_their_closed_forms_say(float64):
    """Three ways to the meta-gradient: the paper's formula, central differences of F, the library near the solution."""
    from figures.quadratic import draw_quadratics, make_learner

    problem, weight = draw_quadratics(tasks=3, size=4, eigenvalues=(2.0, 50.0), seed=1), 2.0
    theta = np.random.default_rng(2).normal(size=4)
    exact = problem.meta_gradient(theta, weight)
    for index, unit in enumerate(np.eye(4)):
        ends = [problem.outer_loss(theta + sign * 1e-5 * unit, weight) for sign in (1, -1)]
        assert abs((ends[0] - ends[1]) / 2e-5 - exact[index]) < 1e-8 * np.linalg.norm(exact)
    inner = mg.inner.ProximalGradientDescent(400, 1 / 52, weight)
    learner = make_learner(4, inner, mg.estimators.FOBMAML("tangent"))
    learner.model.trainable_variables[0].assign(theta[:, None])
    found = np.ravel(learner.meta_gradient(problem.tasks()).gradients[0])
    assert np.linalg.norm(found - exact) < 1e-6 * np.linalg.norm(exact)
    assert np.linalg.norm(problem.meta_gradient(problem.best(weight), weight)) < 1e-10


def test_runs_that_are_finished_are_not_trained_again(tmp_path, capsys):
    from figures.place import Place
    from figures.training import row, trained

    flags = {"task": "mnist1d", "steps": 2, "epoch_steps": 2, "validation_tasks": 4, "evaluation_tasks": 4, "ways": 2}
    flags |= {"estimator": "FOMAML", "inner_steps": 2, "execution": "map", "jit_compile": "false"}
    run = trained("tiny", flags, Place(tmp_path, []))
    assert row(run)["tasks"] == 4 and len(run.history) == 1 and len(run.result["curve"]) == 3
    before = (tmp_path / "runs" / "tiny" / "result.json").stat().st_mtime_ns
    assert trained("tiny", flags, Place(tmp_path, [])) == run
    assert (tmp_path / "runs" / "tiny" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="The run 'bad' failed: .*--estimator|The run 'bad' failed: .*NoSuch"):
        trained("bad", flags | {"estimator": "NoSuch"}, Place(tmp_path, []))
