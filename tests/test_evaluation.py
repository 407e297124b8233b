"""Evaluation and adaptation curves against adapting and predicting task by task, in float64."""

import keras
import numpy as np
import pytest

import tf_metagrad as mg
from tf_metagrad.evaluation import Evaluation


def make_learner(execution="vectorize", normalization="batch", linear=False):
    keras.utils.set_random_seed(3)
    hidden = [] if linear else [keras.layers.Dense(6, "tanh"), keras.layers.BatchNormalization()]
    learner = mg.MetaLearner(
        keras.Sequential([keras.Input((3,)), *hidden, keras.layers.Dense(2)]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        mg.inner.GradientDescent(steps=3, learning_rate=0.2),
        execution=execution,
        normalization=normalization,
        jit_compile=False,
    )
    learner.compile(metrics=["accuracy"])
    return learner


def make_tasks(batches=2, meta_batch=2):
    rng = np.random.default_rng(5)
    for _ in range(batches):
        x = rng.normal(size=(meta_batch, 18, 3))
        y = np.tile(np.arange(18) % 2, (meta_batch, 1))
        yield mg.Task(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])


def by_hand(learner, steps, count):
    """Return the loss and accuracy of the first tasks after some inner steps."""
    rows = []
    for batch in make_tasks():
        for xs, ys, xq, yq in zip(*batch, strict=True):
            theta = [v.value for v in learner.model.trainable_variables]
            weights = learner.adapt(xs, ys, steps) if steps else theta
            logits = learner.predict_adapted(weights, xq).numpy()
            losses = -(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(yq)), yq]
            rows.append((losses.mean(), (logits.argmax(-1) == yq).mean()))
    return np.array(rows[:count])


@pytest.mark.parametrize("execution", ["vectorize", "map", "loop"])
def test_curve_is_what_adapting_by_hand_gives(float64, execution):
    learner = make_learner(execution)
    curve = learner.adaptation_curve(make_tasks(), count=3)
    assert len(curve) == learner.inner.steps + 1
    for steps, point in enumerate(curve):
        losses, accuracies = by_hand(learner, steps, 3).T
        assert point.count == 3
        assert abs(point.mean["loss"] - losses.mean()) < 1e-12
        assert abs(point.mean["accuracy"] - accuracies.mean()) < 1e-12
        assert abs(point.confidence["loss"] - 1.96 * losses.std(ddof=1) / np.sqrt(3)) < 1e-12
    assert len({point.mean["loss"] for point in curve}) == len(curve)


@pytest.mark.parametrize("normalization", ["batch", "stored", "per_step"])
def test_evaluation_is_the_end_of_the_curve(float64, normalization):
    learner = make_learner(normalization=normalization)
    end, result = learner.adaptation_curve(make_tasks(), count=4)[-1], learner.evaluate_tasks(make_tasks(), count=4)
    assert result.mean["accuracy"] == end.mean["accuracy"]
    assert abs(result.mean["loss"] - end.mean["loss"]) < 1e-12


def test_a_task_that_diverges_is_left_out_of_every_point(float64):
    learner = make_learner(linear=True)
    batches = [[np.array(part) for part in batch] for batch in make_tasks()]
    batches[0][0][1] *= 1e200
    learner_tasks = [mg.Task(*batch) for batch in batches]
    with pytest.raises(FloatingPointError, match="task 1"):
        learner.adaptation_curve(learner_tasks, count=4)
    curve = learner.adaptation_curve(learner_tasks, count=4, on_nonfinite="skip")
    assert [(point.count, point.skipped) for point in curve] == [(3, 1)] * 4
    losses = by_hand(learner, 2, 4)[[0, 2, 3], 0]
    assert abs(curve[2].mean["loss"] - losses.mean()) < 1e-12


def test_paired_differences_are_those_of_the_tasks_that_both_have():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=50)
    a, b = hard + 0.1 + rng.normal(0, 0.01, 50), hard
    found = evaluation_of([None, *a, 7.0]).minus(evaluation_of([3.0, *b, None]))
    assert found.count == 50 and found.skipped == 2
    assert abs(found.mean["accuracy"] - (a - b).mean()) < 1e-12
    assert abs(found.confidence["accuracy"] - 1.96 * (a - b).std(ddof=1) / 50**0.5) < 1e-12
    assert found.confidence["accuracy"] < evaluation_of(a).confidence["accuracy"] / 50  # tasks differ more
    assert found.values["accuracy"][0] is None and found.values["accuracy"][1] == a[0] - b[0]
    assert "values" not in repr(found) and "values" not in found.summary()


@pytest.mark.parametrize(
    "other, words",
    [([1.0, 2.0], "of 3 tasks and .*of 2"), ([None, None, 1.0], "No task is left"), ([], "the same metrics")],
)
def test_what_cannot_be_paired_is_refused(other, words):
    with pytest.raises(ValueError, match=words):
        evaluation_of([1.0, 2.0, None]).minus(evaluation_of(other))


def test_values_are_those_of_single_tasks(float64):
    learner = make_learner()
    every = learner.evaluate_tasks(make_tasks(), count=3)
    losses, accuracies = by_hand(learner, 3, 3).T
    np.testing.assert_allclose(every.values["loss"], losses, atol=1e-12)
    np.testing.assert_allclose(every.values["accuracy"], accuracies, atol=1e-12)


def test_evaluations_of_other_tasks_are_not_paired(float64):
    learner, other = make_learner(), make_learner("map")
    a, b = (x.evaluate_tasks(make_tasks(), count=3) for x in (learner, other))
    assert a.fingerprint == b.fingerprint == learner.adaptation_curve(make_tasks(), count=3)[-1].fingerprint
    assert a.minus(b).count == 3 and abs(a.minus(b).mean["loss"]) < 1e-12
    going_on = make_tasks(batches=4)
    first, second = (learner.evaluate_tasks(going_on, count=2) for _ in range(2))
    with pytest.raises(ValueError, match="the same tasks.*a new stream each"):
        first.minus(second)
    with pytest.raises(ValueError, match="of 3 tasks and .*of 2"):
        a.minus(learner.evaluate_tasks(make_tasks(), count=2))
    assert np.isnan(learner.evaluate_tasks(make_tasks(), count=1).confidence["loss"])  # one task says nothing of it
    with pytest.raises(ValueError, match="must be an Evaluation.*3.0"):
        a.minus(3.0)


def evaluation_of(values):
    kept = [x for x in values if x is not None]
    named = {"accuracy": tuple(values)} if len(values) else {}
    mean = {"accuracy": float(np.mean(kept))} if kept else {}
    half = {"accuracy": 1.96 * float(np.std(kept, ddof=1)) / len(kept) ** 0.5} if len(kept) > 1 else {}
    return Evaluation(mean, half, len(kept), len(values) - len(kept), named)
