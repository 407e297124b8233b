"""`mg.compare_estimators`, `mg.recommend` and `train/compare.py`: figures against NumPy, and its rules."""

import csv
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from references import Quadratic, binomial_sum

import tf_metagrad as mg
from tf_metagrad import _measure, _memory, comparison
from tf_metagrad._table import Row
from tf_metagrad.estimators import FOMAML, MAML, BinomMAML, BinomTruncMAML, Reptile, TruncMAML

ROOT = pathlib.Path(__file__).parents[1]
STEPS, WEIGHTS, TASKS, RATE, BATCHES = 4, 3, 2, 0.15, 3


def make_batches():
    rng = np.random.default_rng(3)
    return [mg.Task(*(rng.normal(size=[TASKS, 6, size]) for size in (WEIGHTS, 1, WEIGHTS, 1))) for _ in range(BATCHES)]


def make_learner(steps=STEPS, learn=None, **options):
    model = keras.Sequential([keras.Input((WEIGHTS,)), keras.layers.Dense(1, use_bias=False)])
    inner = mg.inner.GradientDescent(steps, RATE, learn)
    return mg.MetaLearner(model, "mse", inner, **{"execution": "vectorize", "jit_compile": False, **options})


CLOSED = {
    MAML(): lambda q: q.binomial(STEPS),
    FOMAML(): lambda q: q.g,
    Reptile(): lambda q: (q.w0 - q.path[-1]) / (STEPS * RATE),
    TruncMAML(2): lambda q: q.binomial(2, first=STEPS - 2),
    BinomMAML(1): lambda q: q.binomial(1),
}


def closed_forms(learner, batches):
    """Return `{estimator: [batches, weights]}`."""
    w0, rates = learner.model.trainable_variables[0].numpy()[:, 0], np.full((STEPS, WEIGHTS), RATE)
    problems = [
        [Quadratic((xs, ys[:, 0]), (xq, yq[:, 0]), w0, rates) for xs, ys, xq, yq in zip(*batch, strict=True)]
        for batch in batches
    ]
    return {e: np.array([np.mean([f(q) for q in batch], axis=0) for batch in problems]) for e, f in CLOSED.items()}


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [MAML(), TruncMAML(2)], ids=str)
def test_figures_agree_with_numpy(float64, reference):
    learner, batches = make_learner(estimator=FOMAML()), make_batches()
    before = [v.numpy() for v in learner.variables]
    estimates = closed_forms(learner, batches)
    result = mg.compare_estimators(learner, iter(batches), list(CLOSED), reference, repeats=1, alpha_H=0.5)
    exact, norm = estimates[reference], np.linalg.norm
    noise = np.sqrt(np.sum((exact - exact.mean(0)) ** 2) / (BATCHES - 1))
    assert [row.estimator for row in result.rows] == list(CLOSED)
    for row in result.rows:
        own = estimates[row.estimator]
        bias = norm(own.mean(0) - exact.mean(0))
        expected = {
            "error": bias / norm(exact.mean(0)),
            "cosine": own.mean(0) @ exact.mean(0) / norm(own.mean(0)) / norm(exact.mean(0)),
            "batch_error": np.mean(norm(own - exact, axis=1) / norm(exact, axis=1)),
            "bias": bias,
            "noise": np.sqrt(np.sum((own - own.mean(0)) ** 2) / (BATCHES - 1)),
            "bias_to_noise": bias / noise,
        }
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-9, abs=1e-12), (row.estimator, name)
        assert row.seconds > 0 and row.first_seconds > 0 and row.hvps == row.estimator.hvps(STEPS)
    own = next(row for row in result.rows if row.estimator == reference)
    assert own.error == own.bias == own.batch_error == 0 and own.cosine == pytest.approx(1)
    assert (result.steps, result.batches, result.tasks, result.execution) == (STEPS, BATCHES, TASKS, "vectorize")
    assert learner.estimator == FOMAML()
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, learner.variables, strict=True))


def test_the_reference_has_a_row_and_one_batch_has_no_noise(float64):
    learner, (batch, *_) = make_learner(), make_batches()
    result = mg.compare_estimators(learner, batch, [FOMAML(), FOMAML()], repeats=1)
    assert [row.estimator for row in result.rows] == [MAML(), FOMAML()] and result.batches == 1
    assert all(row.noise is None and row.bias_to_noise is None for row in result.rows)
    estimates = closed_forms(learner, [batch])
    error = np.linalg.norm(estimates[FOMAML()] - estimates[MAML()]) / np.linalg.norm(estimates[MAML()])
    assert result.rows[1].error == result.rows[1].batch_error == pytest.approx(error, rel=1e-9)


def test_a_seed_is_the_same_for_all_estimators():
    """With Dropout two ways to the same gradient agree only on the same random numbers."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((WEIGHTS,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    learner = mg.MetaLearner(model, "mse", mg.inner.GradientDescent(2, 0.05), execution="map", jit_compile=False)
    rows = mg.compare_estimators(learner, make_batches(), [MAML(), BinomMAML(2)], repeats=1, batches=2).rows
    assert rows[1].batch_error < 1e-5 and rows[0].noise > 0.01


def test_estimators_take_turns_and_the_median_counts():
    turns = []
    clock = {"a": [0.0, 0.1, 0.0], "b": [0.0, 0.0, 0.0]}
    steps = {
        name: lambda batch, seed, name=name: (turns.append((name, batch, seed)), time.sleep(clock[name][seed]))
        for name in clock
    }
    seconds = _measure.median_seconds(steps, ["x", "y"], repeats=3, seed=0)
    assert turns == [(name, batch, seed) for seed, batch in enumerate("xyx") for name in "ab"]
    assert seconds["a"] < 0.1 and seconds.keys() == clock.keys()


def test_an_estimate_that_is_not_finite_is_not_known():
    target, run = _measure.Running(), _measure.Running()
    for vector in ([1.0, 2.0], [3.0, 4.0]):
        target.add(np.array(vector))
        run.add(np.array([np.nan, 1.0]))
    accuracy = _measure._accuracy(run, math.nan, target)
    row = Row(FOMAML(), *accuracy, 1.0, 1.0, None, 0)
    columns = table(row).to_dict()
    assert columns["error"] == columns["noise"] == [None] and "nan" in str(table(row))


@pytest.mark.parametrize("order", range(6))
def test_the_bound_is_attained_where_every_hessian_is_minus_H(order):
    """Theorem 3.6: with H^k = -H I each product of l Hessians is (alpha H)^l, the worst case."""
    steps, alpha_H = 5, 0.3
    factors, one = [np.array([[alpha_H]])] * steps, np.ones(1)
    exact = binomial_sum(factors, steps, one)
    left_out = {
        FOMAML(): one,
        MAML(): exact,
        TruncMAML(order): binomial_sum(factors[:order], order, one),
        BinomMAML(order): binomial_sum(factors, order, one),
        BinomTruncMAML(min(order, 3), 4): binomial_sum(factors[:4], min(order, 3), one),
    }
    for estimator, estimate in left_out.items():
        assert comparison._bound(estimator, steps, alpha_H) == pytest.approx((exact - estimate).item(), abs=1e-12)
    for estimator in (Reptile(), BinomMAML(1, rescale=True)):
        assert comparison._bound(estimator, steps, alpha_H) is None
    assert comparison._bound(BinomMAML(4), 5, 1e-4) == pytest.approx(1e-20)
    assert comparison._bound(MAML(), 5, None) is None


def test_learned_rates_have_no_bound_and_are_compared_too(float64):
    learner = make_learner(2, learn="scalar")
    rows = mg.compare_estimators(learner, make_batches(), [FOMAML()], repeats=1, batches=1, alpha_H=0.5).rows
    assert [row.bound for row in rows] == [None, None]
    learner.estimator = MAML()
    exact = learner.meta_gradient(make_batches()[0]).gradients
    learner.estimator = FOMAML()
    first_order = learner.meta_gradient(make_batches()[0]).gradients
    both = [np.concatenate([np.ravel(g) for g in gradients]) for gradients in (exact, first_order)]
    assert rows[1].bias == pytest.approx(np.linalg.norm(both[1] - both[0]), rel=1e-9)


def test_the_librarys_choice_fits_the_inner_optimiser():
    chosen = comparison.default_estimators(make_learner(4))
    assert {MAML(), FOMAML(), Reptile(), TruncMAML(2), BinomMAML(1), BinomMAML(2)} <= set(chosen)
    assert BinomMAML(2) not in comparison.default_estimators(make_learner(1))
    assert Reptile() not in comparison.default_estimators(make_learner(4, learn="scalar"))
    assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batches": 0}, "`batches` must be a whole number of at least 1. Received: batches=0."),
        ({"repeats": True}, "`repeats` must be a whole number of at least 1. Received: repeats=True."),
        ({"tasks": []}, "`tasks` must hold at least one batch of tasks."),
        ({"tasks": [np.zeros(3)]}, "must be a `Task`"),
        ({"estimators": []}, "`estimators` must hold at least one estimator"),
        ({"estimators": ["MAML"]}, "`estimator` must be a value such as"),
        ({"estimators": [BinomMAML(9)]}, "Received: truncation=9 with steps=4."),
        ({"reference": TruncMAML(9)}, "Received: truncation=9 with steps=4."),
    ],
)
def test_bad_input(change, message):
    arguments = {"tasks": make_batches(), "estimators": [FOMAML()], **change}
    with pytest.raises(ValueError) as error:
        mg.compare_estimators(make_learner(), **arguments)
    assert message in str(error.value)


def test_a_reference_that_is_not_finite_ends_in_a_sentence():
    batches = [mg.Task(*(1e25 * np.float32(part) for part in batch)) for batch in make_batches()]
    with pytest.raises(FloatingPointError, match="The reference MAML.* is not finite on batch 0. Lower the inner"):
        mg.compare_estimators(make_learner(), batches, [FOMAML()], repeats=1)


# Memory ---------------------------------------------------------------------------------------------------------------

allocator = pytest.mark.skipif(
    "allocator" not in str(_memory.source("CPU:0")), reason="this TensorFlow counts no CPU memory"
)


def test_rounding_is_that_of_the_peak():
    events = [
        (True, 1, 32, 17),
        (False, 1, 32, 17),
        (True, 1, 40, 40),
        (False, 9, 8, 8),
        (True, 2, 8, 5),
        (False, 2, 8, 5),
    ]
    assert _memory.rounding(events) == 48 - 45
    assert _memory.rounding([]) == 0


@allocator
@pytest.mark.parametrize("mib", [5, 9, 17])  # 9 and 17 MiB are rounded up by the allocator
def test_the_allocator_knows_what_a_call_needs(mib):
    ones = tf.function(lambda x: tf.reduce_sum(tf.random.stateless_normal([mib, 2**18], [0, 1]) + x))
    ones(tf.constant(1.0))
    assert _memory._allocated(lambda: ones(tf.constant(1.0)), "CPU:0") == pytest.approx(mib * 2**20, rel=0.01)
    assert mib - 1 < _memory.peak_mib(lambda: ones(tf.constant(1.0)), "CPU:0", repeats=3) < mib + 5
    assert _memory._allocated(lambda: None, "CPU:0") == 0


@allocator
def test_the_unrolled_tape_needs_more_memory_than_mixed_mode():
    keras.utils.set_random_seed(0)
    inner = mg.inner.GradientDescent(8, 1e-3)
    learner = mg.MetaLearner(mg.models.mlp(hidden=(32, 32)), "mse", inner, execution="map", jit_compile=False)
    rng = np.random.default_rng(0)
    batch = mg.Task(*(rng.normal(size=[1, count, 1]).astype("float32") for count in (16384, 16384, 16, 16)))
    rows = mg.compare_estimators(learner, batch, [MAML(), MAML("unrolled"), FOMAML()], repeats=1).rows
    mixed, unrolled, first = (row.peak_mib for row in rows)
    assert unrolled > 2 * mixed > 2 * first > 1
    assert rows[1].error < 1e-4


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="no /proc")
def test_resident_memory_is_sampled_while_the_call_runs():
    def call():
        block = np.ones(2**23)
        time.sleep(0.05)
        return block

    assert 60 < _memory._resident(call, "CPU:0") / 2**20 < 80


def test_memory_that_cannot_be_measured_is_none(monkeypatch):
    monkeypatch.setattr(_memory, "_STATM", "/nowhere")
    assert _memory.source("TPU:0") is None and _memory.peak_mib(lambda: None, "TPU:0") is None


# The table ------------------------------------------------------------------------------------------------------------


def row(estimator, error, ms, mib=1.0, ratio=None, steps=5, **changes):
    values = Row(estimator, error, 1 - error, error, error, 1.0, ratio, ms / 1e3, 1.0, mib, estimator.hvps(steps))
    return values._replace(**changes)


def table(*rows, device="CPU", steps=5):
    return mg.Comparison(rows, MAML(), steps, 8, 4, device, "vectorize, XLA", "allocator")


def test_text_is_aligned_and_columns_are_ready_for_json():
    result = table(row(MAML(), 0.0, 1234.0), row(FOMAML(), math.nan, 0.5, None, bound=2.5))
    first, _, heading, rule, *rows = str(result).splitlines()[:6]
    assert first == "8 batches of 4 tasks, K = 5, on the CPU (vectorize, XLA). Reference: MAML(mode='mixed')."
    assert {len(line) for line in (heading, rule, *rows)} == {len(rule)}
    assert rows[0].split() == ["MAML(mode='mixed')", "0", "1.0000", "0", "0", "1", "-", "1234", "1", "1", "5", "-"]
    assert rows[1].split()[-3:] == ["-", "0", "2.5"] and rows[1].split()[7] == "0.5"
    columns = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(columns) == list(Row._fields) and {len(column) for column in columns.values()} == {2}
    assert columns["estimator"] == ["MAML(mode='mixed')", "FOMAML()"] and columns["error"] == [0.0, None]
    assert mg.estimators.parse(columns["estimator"][0]) == MAML()


def test_plot_is_an_image(tmp_path, monkeypatch):
    result = table(row(MAML(), 0.0, 4.0), row(FOMAML(), 0.5, 1.0, None), row(Reptile(), math.nan, 1.0))
    result.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib. Install it"):
        result.plot(tmp_path / "other.png")


# Recommending ---------------------------------------------------------------------------------------------------------

MANY = table(
    row(MAML(), 0.0, 10.0, 8.0, 0.0),
    row(FOMAML(), 0.4, 2.0, 1.0, 0.9),
    row(Reptile(), math.nan, 1.0, 1.0, math.nan),
    row(TruncMAML(2), 0.2, 5.0, 2.0, 0.5),
    row(TruncMAML(3), 0.09, 7.0, 4.0, 0.2),
)


@pytest.mark.parametrize(
    "budgets, expected",
    [
        ({}, TruncMAML(3)),
        ({"max_error": 0.05}, MAML()),
        ({"max_error": 0.0}, MAML()),
        ({"max_error": 0.3}, TruncMAML(2)),
        ({"max_error": 0.2}, TruncMAML(2)),  # a budget may be used up
        ({"max_error": math.inf}, FOMAML()),  # what is not a number never fits a budget
        ({"max_error": None, "max_bias_to_noise": 0.4}, TruncMAML(3)),
        ({"max_error": None, "max_memory": 1.0}, Reptile()),
        ({"max_error": 0.5, "max_memory": 1.5}, FOMAML()),
    ],
)
def test_the_fastest_inside_the_budgets_is_recommended(budgets, expected):
    result = mg.recommend(MANY, **budgets)
    assert result.estimator == expected and result.reason == str(result)


def test_the_reason_has_the_figures():
    assert mg.recommend(MANY, max_error=0.3, max_memory=5).reason == (
        "TruncMAML(truncation=2) takes 5 ms a step, and is the fastest of the 2 estimators inside the budget (relative "
        "error at most 0.3, peak memory at most 5 MiB). Its relative error is 0.2, its cosine 0.8000, its cost 2 HVPs "
        "a task, its peak memory 2 MiB."
    )
    assert "and is the only estimator inside the budget" in mg.recommend(MANY, max_error=0.01).reason


@pytest.mark.parametrize(
    "rows, expected, why",
    [
        ((row(TruncMAML(3), 0.01, 5.0), row(TruncMAML(2), 0.02, 5.4)), TruncMAML(2), "and costs fewer HVPs"),
        ((row(TruncMAML(3), 0.01, 5.0), row(TruncMAML(2), 0.02, 5.6)), TruncMAML(3), "is the fastest of the 2"),
        ((row(Reptile(), 0.09, 5.0), row(FOMAML(), 0.02, 5.4)), FOMAML(), "and is more accurate"),
    ],
)
def test_times_within_a_tenth_are_a_tie(rows, expected, why):
    result = mg.recommend(table(*rows))
    assert result.estimator == expected and why in result.reason


RULED_OUT = [
    (BinomMAML(1), 5), (BinomMAML(2), 5), (BinomMAML(4), 5), (BinomMAML(5), 5), (BinomTruncMAML(2, 4), 5),
    (BinomMAML(1), 20), (BinomTruncMAML(2, 12), 20),
]  # fmt: skip


@pytest.mark.parametrize("binomial, steps", RULED_OUT, ids=str)
def test_on_a_cpu_binomial_forms_that_save_no_hvp_are_ruled_out(binomial, steps):
    rows = row(MAML(), 0.0, 10.0, steps=steps), row(binomial, 0.01, 2.0, steps=steps)
    result = mg.recommend(table(*rows, steps=steps))
    hvps = binomial.hvps(steps)
    assert result.estimator == MAML() and hvps >= steps
    assert f"{binomial} (2 ms) is ruled out: on a CPU its {hvps} HVPs" in result.reason
    assert f"over the {steps} of exact MAML" in result.reason
    on_gpu = mg.recommend(table(*rows, device="GPU", steps=steps))
    assert on_gpu.estimator == binomial and "ruled out" not in on_gpu.reason
    with pytest.raises(ValueError, match="No estimator fits. .* is ruled out"):
        mg.recommend(table(row(MAML(), 0.0, 10.0, 9.0, steps=steps), rows[1], steps=steps), max_memory=2)
    with pytest.raises(ValueError, match="No estimator fits. .* is ruled out"):
        mg.recommend(table(rows[1], steps=steps))


def test_the_rule_is_silent_where_it_changes_nothing():
    binomial = row(BinomMAML(2), 0.01, 9.0)
    assert "ruled out" not in mg.recommend(table(row(MAML(), 0.0, 5.0), binomial)).reason
    result = mg.recommend(table(row(MAML(), 0.0, 5.0), row(BinomTruncMAML(1, 3), 0.01, 2.0)))
    assert result.estimator == BinomTruncMAML(1, 3)  # 3 HVPs are fewer than 5
    assert mg.recommend(table(row(MAML(), 0.0, 5.0), row(BinomMAML(0), 0.01, 2.0))).estimator == BinomMAML(0)


@pytest.mark.parametrize(
    "budgets, message",
    [
        (
            {"max_error": 0.3, "max_memory": 1.2},
            "No estimator fits. FOMAML() comes nearest: its relative error is 0.4, against max_error=0.3.",
        ),
        (
            {"max_error": 0.1, "max_memory": 3.5},
            "No estimator fits. TruncMAML(truncation=3) comes nearest: its peak memory is 4 MiB, against "
            "max_memory=3.5 MiB.",
        ),
        ({"max_error": -1}, "`max_error` must be a number of at least 0, or None. Received: max_error=-1."),
        ({"max_memory": math.nan}, "`max_memory` must be a number of at least 0, or None. Received: max_memory=nan."),
    ],
)
def test_nothing_fits(budgets, message):
    with pytest.raises(ValueError) as error:
        mg.recommend(MANY, **budgets)
    assert str(error.value) == message


def test_a_budget_for_what_was_not_measured():
    unknown = table(row(MAML(), 0.0, 5.0, None))
    with pytest.raises(ValueError, match="`max_memory` cannot be judged: memory cannot be measured on this system."):
        mg.recommend(unknown, max_memory=3)
    with pytest.raises(ValueError, match="`max_bias_to_noise` cannot be judged: noise needs several batches."):
        mg.recommend(unknown, max_bias_to_noise=1)
    assert mg.recommend(unknown).estimator == MAML()


# train/compare.py -----------------------------------------------------------------------------------------------------

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
        "MAML(mode='mixed')",
        "FOMAML()",
        "Reptile()",
        "TruncMAML(truncation=1)",
        "BinomMAML(truncation=1, rescale=False)",
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
        (["--inner_learning_rate=1e25", "--estimators=FOMAML"], "The reference MAML(mode='mixed') is not finite"),
    ],
)
def test_bad_input_of_the_script_ends_in_a_sentence(script, tmp_path, arguments, message):
    sentence = script(*TINY, *arguments, f"--output={tmp_path / 'out'}")
    assert sentence.startswith("compare.py") and message in sentence and "\n" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_nothing_fits_still_leaves_the_table(script, tmp_path, capsys):
    arguments = ["--estimators=FOMAML", "--batches=1", "--repeats=1", "--max_memory=0", f"--output={tmp_path}"]
    sentence = script(*TINY, *arguments)
    assert sentence.startswith("compare.py: ") and "max_memory" in sentence and "\n" not in sentence
    assert {path.name for path in tmp_path.iterdir()} == RESULTS and "FOMAML()" in capsys.readouterr().out


def test_an_output_that_is_a_file_is_left_alone(script, tmp_path):
    (tmp_path / "out").write_text("mine")
    sentence = script(*TINY, f"--output={tmp_path / 'out'}")
    assert sentence.startswith("compare.py: The output folder ") and sentence.endswith("Choose another --output.")
    assert (tmp_path / "out").read_text() == "mine"
