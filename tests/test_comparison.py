"""`mg.compare_estimators`: its figures against NumPy, the table and the plot."""

import json
import math
import sys
import time

import keras
import numpy as np
import pytest
from comparison_tables import row as made_row
from comparison_tables import table
from references import Quadratic, binomial_sum

import tf_metagrad as mg
from tf_metagrad import _measure, comparison
from tf_metagrad._table import Row
from tf_metagrad.estimators import FOMAML, MAML, BinomMAML, BinomTruncMAML, Reptile, TruncMAML

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
    bound = comparison._bounds(make_learner(steps), None, alpha_H)
    for estimator, estimate in left_out.items():
        assert bound(estimator) == pytest.approx((exact - estimate).item(), abs=1e-12)
    for estimator in (Reptile(), BinomMAML(1, rescale=True), MAML(step_weights=(1,) * steps)):
        assert bound(estimator) is None


def test_the_bound_is_measured_where_it_is_not_given(float64):
    """One Hessian for all iterates of a linear regression: alpha H is the rate times its largest eigenvalue."""
    learner, batch = make_learner(3), make_batches()[0]
    largest = max(np.linalg.eigvalsh(2 * x.T @ x / len(x)).max() for x in np.asarray(batch.support_x))
    row = mg.compare_estimators(learner, batch, [FOMAML()], repeats=1).rows[1]
    assert row.bound == pytest.approx((1 + learner.inner.learning_rate * largest) ** 3 - 1, rel=1e-8)


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


# The table ------------------------------------------------------------------------------------------------------------


def test_text_is_aligned_and_columns_are_ready_for_json():
    result = table(made_row(MAML(), 0.0, 1234.0), made_row(FOMAML(), math.nan, 0.5, None, bound=2.5))
    first, _, heading, rule, *rows = str(result).splitlines()[:6]
    assert first == "8 batches of 4 tasks, K = 5, on the CPU (vectorize, XLA). Reference: MAML()."
    assert {len(line) for line in (heading, rule, *rows)} == {len(rule)}
    assert rows[0].split() == ["MAML()", "0", "1.0000", "0", "0", "1", "-", "1234", "1", "1", "5", "-"]
    assert rows[1].split()[-3:] == ["-", "0", "2.5"] and rows[1].split()[7] == "0.5"
    columns = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(columns) == list(Row._fields) and {len(column) for column in columns.values()} == {2}
    assert columns["estimator"] == ["MAML()", "FOMAML()"] and columns["error"] == [0.0, None]
    assert mg.estimators.parse(columns["estimator"][0]) == MAML()


def test_plot_is_an_image(tmp_path, monkeypatch):
    result = table(made_row(MAML(), 0.0, 4.0), made_row(FOMAML(), 0.5, 1.0, None), made_row(Reptile(), math.nan, 1.0))
    result.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib. Install it"):
        result.plot(tmp_path / "other.png")
