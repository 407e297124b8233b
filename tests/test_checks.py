"""Bad input from Python: one `ValueError` that says what was received, what was expected, and what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg
from tf_metagrad import _execution
from tf_metagrad.estimators import FOMAML, MAML, BinomMAML, BinomTruncMAML, Reptile, TruncMAML, parse
from tf_metagrad.estimators._spec import parse_schedule

WAYS = 3


def make_learner(model=None, inner=None, **options):
    model = model or keras.Sequential([keras.Input((4,)), keras.layers.Dense(WAYS, name="head")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return mg.MetaLearner(model, loss, inner or mg.inner.GradientDescent(2, 0.1), **options)


@pytest.fixture(scope="module")
def learner():
    learner = make_learner()
    learner.compile(metrics=["accuracy"])
    return learner


def good_batch():
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(WAYS, dtype="int32"), 2)
    x = rng.normal(size=[2, 2 * WAYS, 4]).astype("float32")
    return mg.Task(x, np.stack([labels, labels[::-1]]), x[:, :4].copy(), np.tile(labels[:4], [2, 1]))


def changed(part, index, value):
    batch = good_batch()
    getattr(batch, part)[index] = value
    return batch


BAD_BATCHES = {
    "nan": (
        changed("support_x", (1, 2, 3), np.nan),
        r"`support_x` must be finite. Received: nan at index \(1, 2, 3\). Remove or fill",
    ),
    "infinity": (
        changed("query_x", (0, 0, 1), -np.inf),
        r"`query_x` must be finite. Received: -inf at index \(0, 0, 1\)",
    ),
    "label too large": (
        changed("query_y", (1, 0), WAYS),
        "`query_y` must be in 0 .. 2, the model's 3 outputs. Received: 3. Relabel",
    ),
    "label negative": (changed("support_y", (0, 1), -1), "`support_y` must be in 0 .. 2.* Received: -1"),
    "class missing": (
        changed("support_y", (1, slice(None)), [0, 0, 1, 1, 0, 1]),
        r"at least one example of each of the 3 classes. Received: task 1 of the batch without class \[2\]. Draw",
    ),
    "targets missing": (
        good_batch()._replace(query_y=good_batch().query_y[:, :3]),
        r"as many targets as inputs. Received: .* query_x \(2, 4, 4\), query_y \(2, 3\)",
    ),
    "task missing": (
        good_batch()._replace(query_x=good_batch().query_x[:1], query_y=good_batch().query_y[:1]),
        r"same number of tasks.* Received: support_x \(2, 6, 4\), .* query_x \(1, 4, 4\)",
    ),
    "a single task": (
        mg.Task(*(part[0] for part in good_batch())),
        r"shapes \[tasks, examples, ...\].* support_y \(6,\)",
    ),
    "no targets": (
        good_batch()[:2],
        r"must be a `Task`, \(support_x, support_y, query_x, query_y\). Received: .*tuple",
    ),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
@pytest.mark.parametrize("use", ["meta_gradient", "evaluate_tasks", "train"])
def test_bad_batches_are_refused_wherever_they_come_in(learner, name, use):
    batch, message = BAD_BATCHES[name]
    weights = learner.model.get_weights()
    with pytest.raises(ValueError, match=message) as error:
        if use == "meta_gradient":
            learner.meta_gradient(batch)
        elif use == "evaluate_tasks":
            learner.evaluate_tasks([batch], count=2)
        else:
            batch = tf.nest.map_structure(lambda a: np.asarray(a)[None], batch)
            mg.train(learner, tf.data.Dataset.from_tensor_slices(batch), steps=1, verbose=0)
    assert "\n" not in str(error.value)
    for before, after in zip(weights, learner.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_adapt_checks_its_support_set(learner):
    x, y, *_ = good_batch()
    for labels, message in (([0, 0, 1, 1, 0, 1], "without class"), ([0, 1, 2, 3, 0, 1], "must be in 0 .. 2")):
        with pytest.raises(ValueError, match=message):
            learner.adapt(x[0], np.array(labels))
    with pytest.raises(ValueError, match="`support_x` must be finite"):
        learner.adapt(x[0] * np.nan, y[0])


def test_good_batches_pass(learner):
    plain = tuple(tf.constant(part) for part in good_batch())
    for batch in (good_batch(), plain, good_batch()._replace(support_y=good_batch().support_y.astype("int64"))):
        assert np.isfinite(float(learner.meta_gradient(batch).loss))


def test_other_targets_are_not_taken_for_labels():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    learner = mg.MetaLearner(model, "mse", mg.inner.GradientDescent(1), FOMAML(), jit_compile=False)
    batch = good_batch()
    batch = batch._replace(support_y=batch.support_y[..., None] - 9.0, query_y=batch.query_y[..., None] * 100.0)
    assert np.isfinite(float(learner.meta_gradient(batch).loss))


def unbuilt():
    return keras.Sequential([keras.layers.Dense(2)], name="later")


def without_weights():
    return keras.Sequential([keras.Input((4,)), keras.layers.ReLU()], name="empty")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_learner(unbuilt()), "`model` must be built.* Received: 'later', which is not built. Give it"),
        (lambda: make_learner(without_weights()), "`model` must have trainable weights. Received: 'empty'"),
        (lambda: make_learner(keras.layers.Dense(1)), "`model` must be a keras.Model. Received: Dense"),
        (lambda: make_learner(adapt=["nolayer"]), "Received: 'nolayer'. The model 'sequential.*' has: head"),
        (lambda: make_learner(adapt="tail"), "Received: 'tail'. The model 'sequential.*' has: head"),
        (lambda: make_learner(adapt=3), '`adapt` must be "all" or names of layers. Received: adapt=3'),
        (lambda: make_learner(adapt=[]), r"`adapt` must be .* Received: adapt=\[\]"),
        (lambda: make_learner(normalization="none"), "`normalization` must be .* Received: 'none'"),
        (lambda: make_learner(inner=0.1), "`inner` must be an inner optimiser of `mg.inner`. Received: 0.1"),
        (lambda: make_learner(estimator="MAML"), "`estimator` must be a value such as .* Received: 'MAML'"),
        (lambda: make_learner(estimator=MAML), "`estimator` must be a value such as .* Received: <class"),
        (
            lambda: make_learner(estimator=BinomMAML(3)),
            "`truncation` must be at most the number of inner steps. Received: truncation=3 with steps=2. Lower",
        ),
        (lambda: make_learner(estimator=TruncMAML(3)), "truncation=3 with steps=2"),
        (lambda: make_learner(estimator=BinomTruncMAML(1, 3)), "`horizon` must be at most .* horizon=3 with steps=2"),
        (lambda: BinomTruncMAML(2, 1), "`horizon` must be at least `truncation`. Received: truncation=2, horizon=1"),
        (lambda: BinomMAML(-1), "`truncation` must be a whole number of at least 0. Received: truncation=-1"),
        (lambda: BinomMAML(1.5), "Received: truncation=1.5"),
        (lambda: MAML(mode="tape"), "`mode` must be one of .* Received: mode='tape'"),
        (
            lambda: make_learner(inner=mg.inner.GradientDescent(1, learn="scalar"), estimator=Reptile()),
            "Reptile has no gradient for a learned hyperparameter. Received: learn='scalar'",
        ),
        (lambda: mg.inner.GradientDescent(0), "`steps` must be a whole number of at least 1. Received: steps=0"),
        (lambda: mg.inner.GradientDescent(1, -1.0), "must be a positive number. Received: learning_rate=-1.0"),
        (lambda: mg.inner.GradientDescent(1, float("nan")), "must be a positive number. Received: learning_rate=nan"),
        (lambda: mg.inner.GradientDescent(1, 0.1, "all"), "`learn` must be one of .* Received: learn='all'"),
        (lambda: make_learner(execution="fast"), "`execution` must be .* Received: execution='fast'"),
        (lambda: make_learner(jit_compile="yes"), "`jit_compile` must be .* Received: jit_compile='yes'"),
    ],
)
def test_bad_parts_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_deterministic_max_pooling_goes_without_xla(monkeypatch):
    """Its gradient under XLA has no deterministic form; other nets keep XLA."""
    monkeypatch.setattr(_execution.config, "is_op_determinism_enabled", lambda: True)
    pooled, plain = mg.models.conv1d(WAYS, 8, filters=2, blocks=1), mg.models.mlp()
    assert not make_learner(pooled).execution.jit_compile
    assert make_learner(plain).execution.jit_compile
    with pytest.raises(ValueError, match="no deterministic gradient of max-pooling. Received: jit_compile=True .* Use"):
        make_learner(pooled, jit_compile=True)
    monkeypatch.undo()
    assert make_learner(pooled).execution.jit_compile


def test_an_estimator_that_does_not_fit_is_not_taken_over(learner):
    before = learner.estimator
    with pytest.raises(ValueError, match="truncation=3 with steps=2"):
        learner.estimator = BinomMAML(3)
    assert learner.estimator == before


def test_too_few_tasks_to_evaluate(learner):
    with pytest.raises(ValueError, match="at least count=5 tasks. Received: 2. Lower `count`"):
        learner.evaluate_tasks([good_batch()], count=5)


# Text -----------------------------------------------------------------------------------------------------------------


def test_text_is_parsed_as_python_reads_it():
    assert parse(" MAML ") == parse("MAML()") == MAML()
    assert parse("MAML(mode='unrolled')") == MAML(mode="unrolled")
    assert parse("BinomTruncMAML(1, horizon=4)") == BinomTruncMAML(1, 4)
    schedule = parse_schedule("0: FOMAML, 1000: BinomMAML(1), 2000: BinomTruncMAML(1, 4)")
    assert schedule == {0: FOMAML(), 1000: BinomMAML(1), 2000: BinomTruncMAML(1, 4)}
    assert list(schedule) == [0, 1000, 2000]
    assert parse_schedule("") == {}
    assert parse_schedule("0:FOMAML,\n 5:MAML(mode='mixed'),") == {0: FOMAML(), 5: MAML()}


@pytest.mark.parametrize(
    "text, message",
    [
        ("MAMLL", "Unknown estimator. Received: 'MAMLL'. Known: BinomMAML, BinomTruncMAML, ESMAML, FOBMAML, FOMAML"),
        ("Estimator", "Unknown estimator"),
        ("__import__('os')", "Unknown estimator"),
        ("BinomMAML(order=2)", r"BinomMAML has the arguments: truncation, rescale. Received: 'BinomMAML\(order=2\)'"),
        ("BinomMAML(-1)", "Received: truncation=-1"),
        ("BinomMAML(two)", r"a name with plain arguments.* Received: 'BinomMAML\(two\)'"),
        ("BinomMAML(1", "a name with plain arguments"),
        ("mg.estimators.MAML()", "a name with plain arguments"),
        ("BinomMAML(1)(2)", "a name with plain arguments"),
        ("5", "a name with plain arguments"),
        ("", "a name with plain arguments"),
    ],
)
def test_text_that_names_no_estimator(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("FOMAML", "A schedule is steps with estimators, such as .* Received: 'FOMAML'"),
        ("0: FOMAML; 9: MAML", "A schedule is steps with estimators"),
        ("0 FOMAML", "A schedule is steps with estimators"),
        ("zero: FOMAML", "A schedule is steps with estimators"),
        ("-1: FOMAML", "A schedule is steps with estimators"),
        ("0: FOMAML}, {1: MAML", "A schedule is steps with estimators"),
        ("0: FOMAML, **rest", "A schedule is steps with estimators"),
        ("1.5: FOMAML", "must be whole numbers, each once. Received: '1.5: FOMAML'"),
        ("True: FOMAML", "must be whole numbers, each once"),
        ("0: FOMAML, 0: MAML", "must be whole numbers, each once"),
        ("0: FOMAML, 9: MAMLL", "Unknown estimator. Received: 'MAMLL'"),
        ("0: FOMAML, 9: BinomMAML(-1)", "Received: truncation=-1"),
    ],
)
def test_text_that_is_no_schedule(text, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize(
    "metric, message",
    [
        ("mse", "`metrics` must fit targets and predictions"),
        (keras.metrics.Precision(), "`metrics` must fit targets and predictions"),
        ("categorical_accuracy", "`metrics` must be of class labels"),
        (keras.metrics.TopKCategoricalAccuracy(2), "`metrics` must be of class labels"),
    ],
)
def test_metrics_that_do_not_fit_are_refused_in_a_sentence(metric, message):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 0.1), execution="loop")
    x, y = np.zeros([1, 5, 2]), np.array([[0, 1, 2, 0, 1]])
    stream = tf.data.Dataset.from_tensors((x, y, x, y)).repeat()
    with pytest.raises(ValueError, match=message) as raised:
        learner.compile("sgd", metrics=[metric])
        mg.train(learner, stream, steps=1, verbose=0)
    assert "\n" not in str(raised.value)


def test_a_metric_of_the_users_own_may_have_any_name(learner):
    def categorical_accuracy(y_true, y_pred):
        return keras.metrics.sparse_categorical_accuracy(y_true, y_pred)

    learner.compile(metrics=[categorical_accuracy])
    assert "categorical_accuracy" in learner.meta_gradient(good_batch()).metrics
    learner.compile(metrics=["accuracy"])


def test_counts_of_numpy_are_pythons():
    inner = mg.inner.ProximalGradientDescent(np.int64(2), 0.1, weight=1.0)
    for value in (inner, mg.inner.GradientDescent(np.int32(2), 0.1)):
        assert type(value.steps) is int
    assert type(mg.estimators.IMAML(iterations=np.int64(3)).iterations) is int
    learner = mg.MetaLearner(mg.models.mlp(hidden=(2,)), "mse", inner, mg.estimators.IMAML(), execution="loop")
    x = np.linspace(0, 1, 4)[:, None]
    assert all(np.array_equal(a, b) for a, b in zip(learner.adapt(x, x), learner.adapt(x, x, np.int64(2)), strict=True))
