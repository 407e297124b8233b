"""`train/compare.py`: what it leaves, what it prints, and the one sentence it ends with on bad input."""

import csv
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[1]
TINY = (
    "--task=sinusoid --meta_batch=2 --inner_steps=2 --shots=2 --queries=2 --execution=map --jit_compile=false".split()
)
RESULTS = {"comparison.csv", "comparison.json", "comparison.png"}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "train"))
        compare, settings = (importlib.import_module(name) for name in ("compare", "settings"))

        def call(*arguments):
            """Return the sentence that the script exits with; None where it ends well."""
            with flagsaver.flagsaver():
                try:
                    compare.main(settings.parse(["compare.py", *arguments], compare.__doc__, compare.GROUPS))
                except SystemExit as exit:
                    return exit.code
            return None

        yield call


def shell(*arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, str(ROOT / "train" / "compare.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_script_leaves_a_table_a_plot_and_a_recommendation(tmp_path):
    estimators = "--estimators=MAML; FOMAML; Reptile; TruncMAML(1); BinomMAML(1);"
    done = shell(*TINY, estimators, "--batches=2", "--repeats=2", "--max_error=inf", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 batches of 2 tasks, K = 2, on the " in done.stdout and "\nRecommended: " in done.stdout
    output = tmp_path / "runs" / "compare-sinusoid"
    assert {path.name for path in output.iterdir()} == RESULTS
    saved = json.loads((output / "comparison.json").read_text())
    rows = list(csv.DictReader((output / "comparison.csv").read_text().splitlines()))
    names = [
        "MAML()",
        "FOMAML()",
        "Reptile()",
        "TruncMAML(truncation=1)",
        "BinomMAML(truncation=1)",
    ]
    assert saved["columns"]["estimator"] == [row["estimator"] for row in rows] == names
    assert saved["settings"]["inner_steps"] == 2 and saved["settings"]["batches"] == 2
    assert [float(row["error"]) for row in rows] == saved["columns"]["error"] and saved["columns"]["error"][0] == 0


def test_help_shows_the_flags_of_comparing_and_no_others(tmp_path):
    done = shell("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(flag in done.stdout for flag in ("--estimators:", "--max_memory:", "--meta_batch:", "--output:"))
    assert "--schedule:" not in done.stdout and "--epoch_steps:" not in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sinusoid"], "compare.py takes flags only. Received: sinusoid. See --help."),
        (["--schedule=0: MAML"], "--schedule means nothing to compare.py, which does not train. Leave it out."),
        (["--verbose=0"], "--verbose means nothing to compare.py"),
        (["--ways=3"], "--ways means nothing to --task=sinusoid."),
        (["--estimators=MAMLL"], "Unknown estimator. Received: 'MAMLL'."),
        (["--estimators=FOMAML; BinomMAML(9)"], "Received: truncation=9 with steps=2."),
        (["--estimators=;"], "`estimators` must hold at least one estimator"),
        (["--reference=TruncMAML(7)"], "Received: truncation=7 with steps=2."),
        (["--inner_learning_rate=1e25", "--estimators=FOMAML"], "The reference MAML() is not finite"),
    ],
)
def test_bad_input_of_the_script_ends_in_a_sentence(script, tmp_path, arguments, message):
    sentence = script(*TINY, *arguments, f"--output={tmp_path / 'out'}")
    assert sentence.startswith("compare.py") and message in sentence and "\n" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_nothing_fits_still_leaves_the_table(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tf_metagrad._measure.peaks_mib", lambda steps, *_: dict.fromkeys(steps, 5.0))
    arguments = ["--estimators=FOMAML", "--batches=1", "--repeats=1", "--max_memory=4", f"--output={tmp_path}"]
    sentence = script(*TINY, *arguments)
    assert sentence.startswith("compare.py: ") and "max_memory" in sentence and "\n" not in sentence
    assert {path.name for path in tmp_path.iterdir()} == RESULTS and "FOMAML()" in capsys.readouterr().out


def test_an_output_that_is_a_file_is_left_alone(script, tmp_path):
    (tmp_path / "out").write_text("mine")
    sentence = script(*TINY, f"--output={tmp_path / 'out'}")
    assert sentence.startswith("compare.py: The output folder ") and sentence.endswith("Choose another --output.")
    assert (tmp_path / "out").read_text() == "mine"
