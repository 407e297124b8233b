"""A task that diverges is named and counted, and stops the run or is kept out of the mean; never averaged in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg
from tf_metagrad import _tree
from tf_metagrad.estimators import (
    ESMAML,
    FOBMAML,
    FOMAML,
    IMAML,
    MAML,
    BinomMAML,
    BinomTruncMAML,
    Estimator,
    Reptile,
    TruncMAML,
)  # fmt: skip

PROXIMAL = mg.inner.ProximalGradientDescent(2, 0.1, 2.0)
CASES = {
    MAML(): None, MAML(mode="unrolled"): None, MAML(step_weights=(0.5, 0.5)): None, FOMAML(): None, Reptile(): None,
    TruncMAML(1): None, BinomMAML(1): None, BinomTruncMAML(1, 2): None, ESMAML(pairs=2): None, IMAML(): PROXIMAL,
    FOBMAML(): PROXIMAL, FOBMAML("tangent"): PROXIMAL,
}  # fmt: skip
COUNT, SEED = 4, tf.constant(7, tf.int64)


MARK = -77.0


def marked_loss(y, p):
    """The squared error, but where targets are MARK: 1, with a derivative that is not a number."""
    marked = tf.reduce_all(y == MARK, axis=-1)
    total = tf.reduce_sum(p, -1)
    odd = 1 + tf.sqrt(tf.where(marked, 0 * total, tf.ones_like(total)))
    return tf.where(marked, odd, tf.reduce_mean(tf.square(tf.where(y == MARK, tf.zeros_like(y), y) - p), -1))


def make(estimator, inner=None, execution="vectorize", loss="mse", layers=(), **options):
    keras.utils.set_random_seed(1)
    net = [keras.Input((2,)), *layers, keras.layers.Dense(1, kernel_initializer="glorot_normal")]
    inner = inner or mg.inner.GradientDescent(2, 0.1)
    learner = mg.MetaLearner(
        keras.Sequential(net), loss, inner, estimator, execution=execution, jit_compile=False, **options
    )
    learner.compile(keras.optimizers.SGD(1.0), metrics=["mae"])
    return learner


def batch(count=COUNT, step=0):
    rng = np.random.default_rng(step)
    return mg.Task(*[tf.constant(rng.normal(size=[count, 3, width])) for width in (2, 1, 2, 1)])


def spoil(tasks, bad, part, value):
    """The tasks, with `value` in every number of a part of the bad ones."""
    out = tf.reshape([i in bad for i in range(COUNT)], [-1, 1, 1])
    return tasks._replace(**{part: tf.where(out, tf.constant(value, tf.float64), getattr(tasks, part))})


def only(tasks, good):
    return tf.nest.map_structure(lambda t: tf.gather(t, good), tasks)


def state(learner):
    return [np.array(v) for v in [*learner.meta_variables, *learner.optimizer.variables, *learner.step_statistics]]


def assert_close(learner, other):
    for one, two in zip(state(learner), state(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)


def assert_untouched(learner, before):
    for one, two in zip(state(learner), before, strict=True):
        np.testing.assert_array_equal(one, two)


# The bad task is the last one in these: the others draw what they draw without it.


def test_every_estimator_is_here():
    kinds = {value for value in vars(mg.estimators).values() if isinstance(value, type)}
    kinds = {value for value in kinds if issubclass(value, Estimator)}
    assert kinds - {Estimator} == {type(estimator) for estimator in CASES}


@pytest.mark.parametrize("estimator", CASES, ids=str)
def test_a_bad_task_stops_every_estimator_or_is_left_out(estimator, float64):
    learner, reference = make(estimator, CASES[estimator]), make(estimator, CASES[estimator])
    tasks, before = spoil(batch(), [3], "query_y", 1e200), state(learner)
    with pytest.raises(FloatingPointError, match="inner loop of task 3 diverged here: the .* is not finite|weights"):
        learner.update(tasks, SEED, "raise", " here")
    assert_untouched(learner, before)
    updated = learner.update(tasks, SEED, "skip")
    expected = reference.update(only(tasks, range(3)), SEED)
    assert list(updated.skipped) == [3] and not expected.skipped
    np.testing.assert_allclose(updated.losses, expected.losses, rtol=1e-12)
    assert float(updated.metrics["mae"]) == pytest.approx(float(expected.metrics["mae"]), rel=1e-12)
    assert_close(learner, reference)
    assert any((one != two).any() for one, two in zip(state(learner), before, strict=True))


@pytest.mark.parametrize("execution", mg._execution.WAYS)
@pytest.mark.parametrize("learn", [None, "per_layer_and_step"])
def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is_finite(execution, learn, float64):
    inner = mg.inner.GradientDescent(2, 0.1, learn)
    learner, reference = (make(MAML(), inner, execution, marked_loss) for _ in range(2))
    tasks, before = spoil(batch(), [1], "query_y", MARK), state(learner)
    with pytest.raises(FloatingPointError, match=r"The meta-gradient of task 1 is not finite here.*Lower the inner"):
        learner.update(tasks, SEED, "raise", " here")
    with pytest.raises(FloatingPointError, match="The meta-gradient of task 1 is not finite with MAML"):
        learner.meta_gradient(tasks)
    assert_untouched(learner, before)
    updated = learner.update(tasks, SEED, "skip")
    reference.update(only(tasks, [0, 2, 3]), SEED)
    assert list(updated.skipped) == [1] and len(updated.losses) == 3
    assert_close(learner, reference)


def test_several_kinds_in_one_batch(float64):
    learner, reference = (make(MAML(), loss=marked_loss) for _ in range(2))
    tasks = spoil(spoil(batch(), [0], "query_y", MARK), [2], "support_y", 1e200)
    updated = learner.update(tasks, SEED, "skip")
    reference.update(only(tasks, [1, 3]), SEED)
    assert list(updated.skipped) == [0, 2]
    assert (
        updated.skipped[0].startswith("The meta-gradient of task 0")
        and "loss of task 2 is not finite before" in updated.skipped[2]
    )
    assert_close(learner, reference)


def test_weights_that_a_layer_hides_are_not_finite(float64):
    """ReLU turns the features of weights that are minus infinity into zeros, and the loss is finite again."""

    def loss(y, p):
        return tf.reduce_mean(y * p)

    learner = make(FOMAML(), mg.inner.GradientDescent(1, 1e200), loss=loss, layers=[keras.layers.Dense(2, "relu")])
    learner.model.weights[0].assign(np.ones([2, 2]))
    learner.model.weights[2].assign(np.ones([2, 1]))
    ones = tf.ones([COUNT, 3, 2], tf.float64)
    tasks = mg.Task(ones, tf.zeros([COUNT, 3, 1], tf.float64), ones, tf.ones([COUNT, 3, 1], tf.float64))
    learner.update(tasks, SEED)
    tasks = spoil(tasks, [1], "support_y", 1e150)
    with pytest.raises(FloatingPointError, match="task 1 diverged: the weights after all 1 inner steps are not finite"):
        learner.update(tasks, SEED)


def test_averages_of_each_step_leave_it_out(float64):
    def with_averages():
        return make(FOMAML(), layers=[keras.layers.BatchNormalization()], normalization="per_step")

    learner, reference = with_averages(), with_averages()
    tasks = spoil(batch(), [1], "query_y", 1e200)
    learner.update(tasks, SEED, "skip")
    reference.update(only(tasks, [0, 2, 3]), SEED)
    assert_close(learner, reference)


def test_nothing_changes_where_no_task_is_left(float64):
    learner = make(MAML())
    learner.update(batch(), SEED)
    before, metric = state(learner), float(learner.running_metrics()["mae"])
    updated = learner.update(spoil(batch(), range(COUNT), "query_y", 1e200), SEED, "skip")
    assert list(updated.skipped) == list(range(COUNT)) and updated.losses.shape == (0,)
    assert_untouched(learner, before)
    assert float(learner.running_metrics()["mae"]) == metric


# In a run -------------------------------------------------------------------------------------------------------------


def stream(bad, count=COUNT):
    """Batches 0, 1, 2 ...; `bad` maps a step to the tasks that are spoiled there."""

    def draw():
        for step in range(100):
            yield spoil(batch(count, step), bad.get(step, []), "query_y", 1e200)

    spec = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), batch(count))
    return tf.data.Dataset.from_generator(draw, output_signature=spec)


def train(learner, tasks, steps, **options):
    learner.optimizer.learning_rate = 0.01
    return mg.train(learner, tasks, steps, **{"verbose": 0, "epoch_steps": 2, **options}).history


def test_a_run_that_skips_counts_names_and_averages_the_others(float64, caplog):
    learner, reference = make(FOMAML()), make(FOMAML())
    bad = {1: [0, 2], 2: range(COUNT), 3: [3]}
    history = train(learner, stream(bad), 4, on_nonfinite="skip", seed=10)
    losses, reference.optimizer.learning_rate = [], 0.01
    for step in (0, 1, 3):
        good = [i for i in range(COUNT) if i not in bad.get(step, [])]
        losses.append(np.mean(reference.update(only(batch(step=step), good), SEED).losses))
    assert_close(learner, reference)
    np.testing.assert_allclose(history["loss"], [(losses[0] + losses[1]) / 2, losses[2]], rtol=1e-12)
    assert history["skipped_tasks"] == [2, 5]
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 7
    assert "task 0 diverged at step 1 with FOMAML(), seed 11" in named[0] and "task 2 diverged at step 1" in named[1]


def test_a_run_that_raises_names_task_step_and_seed_and_changes_nothing(float64):
    learner, reference = make(FOMAML()), make(FOMAML())
    with pytest.raises(
        FloatingPointError, match=r"task 2 diverged at step 1 with FOMAML\(\), seed 11.*Tasks 2, 3 alike"
    ):
        train(learner, stream({1: [2, 3]}), 4, seed=10)
    train(reference, stream({}), 1)
    assert_untouched(learner, state(reference))


def test_an_epoch_without_a_finite_task_ends_the_run(float64):
    with pytest.raises(FloatingPointError, match="No task was finite from step 2 to 3"):
        train(make(FOMAML()), stream({2: range(COUNT), 3: range(COUNT)}), 4, on_nonfinite="skip")


def test_validation_and_evaluation_leave_it_out_and_count_it(float64):
    learner, bad = make(FOMAML()), {0: [1]}
    history = train(learner, stream({}), 2, on_nonfinite="skip", validation=stream(bad), validation_count=6)
    result = learner.evaluate_tasks(stream(bad), 6, on_nonfinite="skip")
    assert (result.count, result.skipped) == (5, 1) and "(5 tasks, 1 that diverged left out)" in str(result)
    assert history["val_skipped_tasks"] == [1] and history["val_loss"] == [result.mean["loss"]]
    one = [learner.evaluate_tasks([only(batch(step=s), [i])], 1).mean["loss"] for s, i in [(0, 0), (0, 2), (0, 3)]]
    two = learner.evaluate_tasks([only(batch(step=1), [0, 1])], 2).mean["loss"]
    assert result.mean["loss"] == pytest.approx((sum(one) + 2 * two) / 5, rel=1e-12)
    with pytest.raises(FloatingPointError, match="task 1 diverged in batch 0 of the evaluation"):
        learner.evaluate_tasks(stream(bad), 6)
    with pytest.raises(FloatingPointError, match="All 4 tasks of the evaluation diverged"):
        learner.evaluate_tasks(stream({0: range(COUNT)}), COUNT, on_nonfinite="skip")


# Before the first step ------------------------------------------------------------------------------------------------


class Never(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("training began")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(support_x=tf.zeros([COUNT, 3, 5])),
            r"`support_x` must have the shape of the model's inputs, \(2,\). Rec",
        ),
        (dict(query_x=tf.zeros([COUNT, 3, 2, 2])), r"`query_x` must have .* Received: \(2, 2\), in a batch"),
        (dict(query_x=tf.fill([COUNT, 3, 2], "a")), "`query_x` must hold numbers. Received: dtype string"),
        (dict(query_y=tf.zeros([COUNT, 3, 4])), r"`query_y` must have the shape of the model's outputs, \(1,\)"),
        (dict(support_y=tf.fill([COUNT, 3, 1], np.nan)), "`support_y` must be finite"),
        (dict(support_y=tf.zeros([COUNT, 2, 1])), "as many targets as inputs"),
    ],
)
@pytest.mark.parametrize("where", ["tasks", "validation"])
def test_what_does_not_fit_is_refused_before_the_first_step(change, message, where, float64):
    good, wrong = batch(), batch()._replace(**change)
    data = {"tasks": good, "validation": good} | {where: wrong}
    data = {name: tf.data.Dataset.from_tensors(value).repeat() for name, value in data.items()}
    with pytest.raises(ValueError, match=message):
        mg.train(make(FOMAML()), steps=2, verbose=0, callbacks=[Never()], **data)


def test_labels_are_refused_before_the_first_step():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1), FOMAML(), execution="loop")
    learner.compile()
    x, y = tf.zeros([COUNT, 3, 2]), tf.tile([[0, 1, 2]], [COUNT, 1])
    for wrong, message in [
        (tf.one_hot(y, 3), r"`support_y` must have the shape of class labels, \(\). Received: \(3,\)"),
        (tf.cast(y, tf.float32) + 0.5, "must be in 0 .. 2|must be class labels, whole numbers"),
        (y + 1, "`support_y` must be in 0 .. 2, the model's 3 outputs. Received: 3"),
    ]:
        data = tf.data.Dataset.from_tensors(mg.Task(x, wrong, x, y)).repeat()
        with pytest.raises(ValueError, match=message):
            mg.train(learner, data, 2, verbose=0, callbacks=[Never()])


def test_an_estimator_that_cannot_run_later_is_found_before_the_first_step(float64):
    class Broken(FOMAML):
        def estimate(self, problem):
            raise NotImplementedError("no second derivative")

    learner = make(FOMAML())
    with pytest.raises(NotImplementedError, match="no second derivative"):
        mg.train(learner, stream({}), 9, schedule={5: Broken()}, verbose=0, callbacks=[Never()])
    assert learner.estimator == FOMAML()


def test_another_answer_is_refused():
    with pytest.raises(ValueError, match='`on_nonfinite` must be "raise" or "skip". Received: \'ignore\''):
        mg.train(make(FOMAML()), stream({}), 1, on_nonfinite="ignore")


@pytest.mark.parametrize("size, joined", [(2**14, True), (2**14 + 1, False)])
def test_only_few_numbers_are_joined_to_be_checked(size, joined):
    """A joined copy of a large net's weights, and a vector as long, are memory."""
    parts = [tf.TensorSpec([size - 5]), tf.TensorSpec([5])]
    check = tf.function(lambda *a: _tree.all_finite(a, joined=True)).get_concrete_function(*parts)
    largest = max(t.shape.num_elements() or 0 for op in check.graph.get_operations() for t in op.outputs)
    assert largest == (size if joined else size - 5)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not check(tf.zeros([size - 5]), tf.constant([0, 0, bad, 0, 0]))
    assert check(tf.fill([size - 5], 3e38), tf.zeros([5]))
