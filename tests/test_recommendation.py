"""`mg.recommend`: its rules, its reasons, and the one sentence where nothing fits."""

import math

import pytest
from comparison_tables import row, table

import tf_metagrad as mg
from tf_metagrad.estimators import FOMAML, MAML, BinomMAML, BinomTruncMAML, Reptile, TruncMAML

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
        ({"max_memory": "x"}, "`max_memory` must be a number of at least 0, or None. Received: max_memory='x'."),
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
