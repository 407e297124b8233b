"""`mg.train`: what it computes, where it goes on after an interruption, what it tells callbacks, what it refuses."""

import csv
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tf_metagrad as mg
from tf_metagrad.estimators import FOMAML, MAML, BinomMAML

SCHEDULE = {0: FOMAML(), 3: BinomMAML(1), 5: MAML()}
STEPS, EPOCH = 8, 3


def make_learner():
    """A net whose batch normalisation and dropout would show state that is carried along where it should not be."""
    layers = keras.layers
    net = [layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.2), layers.ReLU(), layers.Dense(1)]
    learner = mg.MetaLearner(
        keras.Sequential([keras.Input((1,)), *net]),
        loss="mse",
        inner=mg.inner.GradientDescent(2, 0.05, learn="per_layer_and_step"),
        estimator=FOMAML(),
        execution="loop",
    )
    learner.compile(keras.optimizers.Adam(0.01), metrics=["mae"])
    return learner


def tasks(start=0):
    return mg.data.sinusoid(shots=3, queries=4, meta_batch=2, start=start)


def variables(learner):
    """All but the model's own seeds, which a learner does not use: its seeds are functions of the step."""
    return [*learner.model.weights, *learner.hyperparameters, *learner.optimizer.variables]


def snapshot(learner):
    return [np.array(variable) for variable in variables(learner)]


def put_back(learner, values):
    for variable, value in zip(variables(learner), values, strict=True):
        variable.assign(value)


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def train(learner, steps=STEPS, stream=tasks, **options):
    return mg.train(learner, stream, steps, **{"epoch_steps": EPOCH, "verbose": 0, **options})


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches, self.epochs, self.calls = [], [], []

    def on_train_begin(self, logs=None):
        self.calls.append("train_begin")

    def on_train_end(self, logs=None):
        self.calls.append("train_end")

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self.began = batch

    def on_train_batch_end(self, batch, logs=None):
        assert batch == self.began
        self.batches[-1].append((batch, logs["loss"], type(self.model.estimator).__name__))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, logs))


class At(keras.callbacks.Callback):
    """Does something after the given number of batches."""

    def __init__(self, count, action):
        super().__init__()
        self.count, self.action = count, action

    def on_train_batch_end(self, batch, logs=None):
        self.count -= 1
        if self.count == 0:
            self.action(self.model)


@pytest.fixture(scope="module")
def shared():
    """One learner, so that its steps are compiled once, and its state at the beginning."""
    keras.utils.set_random_seed(0)
    learner = make_learner()
    return learner, snapshot(learner)


@pytest.fixture
def learner(shared):
    learner, initial = shared
    put_back(learner, initial)
    learner.estimator = FOMAML()
    return learner


@pytest.fixture(scope="module")
def undisturbed(shared):
    """What a run from the first step to the last gives: state, history, recorded calls."""
    learner, initial = shared
    put_back(learner, initial)
    learner.estimator = MAML()
    recorder = Recorder()
    history = train(learner, schedule=SCHEDULE, callbacks=[recorder])
    return snapshot(learner), history, recorder


def test_scheduled_run_is_the_loop_written_by_hand(learner, undisturbed):
    state, history, recorder = undisturbed
    losses = []
    for step, batch in enumerate(tasks().take(STEPS)):
        learner.estimator = FOMAML() if step < 3 else BinomMAML(1) if step < 5 else MAML()
        estimate = learner.meta_gradient(batch, seed=step)
        learner.optimizer.apply(estimate.gradients, learner.meta_variables)
        losses.append(float(estimate.loss))
    for one, other in zip(state, snapshot(learner), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    epochs = [np.mean(losses[start : start + EPOCH]) for start in (0, 3, 6)]
    np.testing.assert_allclose(history.history["loss"], epochs, rtol=1e-5)
    assert [name for epoch in recorder.batches for _, _, name in epoch] == [
        "FOMAML", "FOMAML", "FOMAML", "BinomMAML", "BinomMAML", "MAML", "MAML", "MAML",
    ]  # fmt: skip


def test_estimators_of_the_schedule_differ(learner):
    """So that the comparison by hand means something: another estimator gives another update."""
    batch = next(iter(tasks()))
    vectors = []
    for estimator in (FOMAML(), BinomMAML(1), MAML()):
        learner.estimator = estimator
        vectors.append(np.concatenate([np.ravel(g) for g in learner.meta_gradient(batch).gradients]))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.linalg.norm(vectors[one] - vectors[other]) > 1e-3 * np.linalg.norm(vectors[other])


def test_interrupted_run_ends_bit_equal_to_an_undisturbed_one(learner, undisturbed, tmp_path):
    def interrupt(model):
        raise KeyboardInterrupt

    def stop(model):
        model.stop_training = True

    options = {"schedule": SCHEDULE, "directory": tmp_path, "validation": tasks().skip(100), "validation_count": 2}
    with pytest.raises(KeyboardInterrupt):  # in the second epoch: its steps are done again
        train(learner, callbacks=[At(4, interrupt)], **options)
    first, second = Recorder(), Recorder()
    train(learner, callbacks=[first, At(2, stop)], **options)  # at step 5, where MAML begins
    assert [batch for batch, *_ in first.batches[0]] == [0, 1]
    fresh = make_learner()  # as in a new process, with other weights
    history = train(fresh, callbacks=[second], **options)
    assert_same(undisturbed[0], snapshot(fresh))
    assert [[batch for batch, *_ in epoch] for epoch in second.batches] == [[2], [0, 1]]
    assert [epoch for epoch, _ in second.epochs] == history.epoch == [1, 2]
    assert [name for epoch in second.batches for *_, name in epoch] == ["MAML"] * 3
    np.testing.assert_allclose(history.history["loss"][1], undisturbed[1].history["loss"][2], rtol=1e-6)


def test_longer_run_goes_on_from_a_last_epoch_that_was_cut_short(learner, undisturbed, tmp_path):
    train(learner, steps=4, schedule=SCHEDULE, directory=tmp_path)
    recorder = Recorder()
    train(learner, stream=tasks(), schedule=SCHEDULE, directory=tmp_path, callbacks=[recorder])
    assert_same(undisturbed[0], snapshot(learner))
    assert [[batch for batch, *_ in epoch] for epoch in recorder.batches] == [[1, 2], [0, 1]]


def test_schedule_puts_the_learners_own_estimator_back(learner, tmp_path):
    train(learner, steps=2, schedule={1: MAML()}, directory=tmp_path)
    assert learner.estimator == FOMAML()
    recorder = Recorder()
    train(learner, steps=4, schedule={3: MAML()}, directory=tmp_path, callbacks=[recorder])
    assert [name for epoch in recorder.batches for *_, name in epoch] == ["FOMAML", "MAML"]


def test_finished_run_is_left_as_it_is(learner, tmp_path):
    train(learner, steps=3, directory=tmp_path)
    state, files = snapshot(learner), sorted((tmp_path / "checkpoints").iterdir())
    recorder = Recorder()
    for steps in (3, 2):
        history = train(learner, steps=steps, directory=tmp_path, callbacks=[recorder])
        assert history.history == {} and recorder.epochs == []
    assert recorder.calls == ["train_begin", "train_end"] * 2
    assert_same(state, snapshot(learner))
    assert sorted((tmp_path / "checkpoints").iterdir()) == files


def test_nothing_but_the_meta_optimizer_changes_the_model(learner):
    before, own_state = snapshot(learner), [np.array(v) for v in learner.model.non_trainable_variables]
    batch = next(iter(tasks()))
    learner.meta_gradient(batch)
    learner.adapt(batch.support_x[0], batch.support_y[0])
    learner.predict_adapted([v + 1.0 for v in learner.model.trainable_variables], batch.query_x[0])
    learner.evaluate_tasks(tasks(), count=2)
    assert_same(before, snapshot(learner))
    train(learner, steps=2)
    assert_same(own_state, [np.array(v) for v in learner.model.non_trainable_variables])
    initial = {id(variable): value for variable, value in zip(variables(learner), before, strict=True)}
    assert all((np.array(variable) != initial[id(variable)]).any() for variable in learner.meta_variables)


# Callbacks and logs ---------------------------------------------------------------------------------------------------


def test_callbacks_are_told_batches_epochs_and_metrics(learner, tmp_path):
    csv_file, recorder = tmp_path / "log.csv", Recorder()
    callbacks = [recorder, keras.callbacks.CSVLogger(csv_file)]
    history = train(learner, steps=5, validation=tasks(50), validation_count=2, callbacks=callbacks)
    assert [[batch for batch, *_ in epoch] for epoch in recorder.batches] == [[0, 1, 2], [0, 1]]
    assert [epoch for epoch, _ in recorder.epochs] == history.epoch == [0, 1]
    assert set(history.history) == {"loss", "mae", "val_loss", "val_mae"}
    assert recorder.epochs[1][1] == {name: values[1] for name, values in history.history.items()}
    rows = list(csv.DictReader(csv_file.read_text().splitlines()))
    assert [float(row["val_mae"]) for row in rows] == history.history["val_mae"]


def test_validation_is_the_learners_evaluation(learner):
    history = train(learner, steps=3, validation=tasks(50), validation_count=3, seed=5)
    result = learner.evaluate_tasks(tasks(50), count=3, seed=5)
    assert {name: values[-1] for name, values in history.history.items() if name.startswith("val_")} == {
        f"val_{name}": value for name, value in result.mean.items()
    }


def test_a_callback_sets_the_learning_rate_and_a_checkpoint_remembers_it(learner, tmp_path):
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 2

    train(learner, steps=3, callbacks=[Halve()], directory=tmp_path)
    learner.optimizer.learning_rate.assign(7.0)
    train(learner, steps=3, directory=tmp_path)
    assert float(learner.optimizer.learning_rate) == pytest.approx(0.005)
    weights = [np.array(variable) for variable in learner.meta_variables]
    train(learner, steps=6, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)], directory=tmp_path)
    assert_same(weights, [np.array(variable) for variable in learner.meta_variables])


def test_early_stopping_stops(learner):
    learner.optimizer.learning_rate.assign(0.0)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=2)
    history = train(learner, steps=100, epoch_steps=1, validation=tasks(50), validation_count=2, callbacks=[stopping])
    assert history.epoch == [0, 1, 2]


def test_tensorboard_shows_the_history(learner, tmp_path):
    history = train(learner, steps=5, validation=tasks(50), validation_count=2, directory=tmp_path)
    for folder, prefix in (("train", ""), ("validation", "val_")):
        events = EventAccumulator(str(tmp_path / "logs" / folder))
        events.Reload()
        for name in ("loss", "mae"):
            scalars = events.Tensors(f"epoch_{name}")
            assert [scalar.step for scalar in scalars] == [0, 1]
            values = [float(tf.make_ndarray(scalar.tensor_proto)) for scalar in scalars]
            np.testing.assert_allclose(values, history.history[prefix + name], rtol=1e-6)


def test_profile_window_is_traced(learner, tmp_path):
    train(learner, steps=3, directory=tmp_path, profile_steps=(2, 3))
    assert list(tmp_path.glob("logs/train/plugins/profile/*/*.xplane.pb"))


def test_progress_bar_counts_the_steps_of_each_epoch(learner, capsys):
    train(learner, steps=5, verbose=1)
    shown = capsys.readouterr().out
    assert "Epoch 1/2" in shown and "Epoch 2/2" in shown
    last = shown.rpartition("Epoch 2/2")[2]
    assert "3/3" in shown and "2/2" in last and "/3" not in last
    assert "loss:" in shown and "mae:" in shown


def test_checkpoints_beyond_keep_are_removed(learner, tmp_path):
    train(learner, steps=9, directory=tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.index")) == ["ckpt-6.index", "ckpt-9.index"]


def test_without_a_directory_nothing_is_written(learner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(learner, steps=1)
    assert list(tmp_path.iterdir()) == []


# What is refused ------------------------------------------------------------------------------------------------------


def spoiled(step, change):
    """The tasks, with `change` done to the batch of one step."""

    def stream(start):
        good = tasks(start)
        return good.enumerate(start).map(lambda i, t: tf.cond(i == step, lambda: mg.Task(*change(t)), lambda: t))

    return stream


def test_a_loss_that_is_not_finite_ends_the_run_and_the_checkpoint_is_intact(learner, tmp_path):
    train(learner, steps=3, directory=tmp_path)
    good = snapshot(learner)
    stream = spoiled(4, lambda task: task._replace(query_y=task.query_y + 1e30))
    with pytest.raises(
        FloatingPointError,
        match=r"task 0 diverged at step 4 with FOMAML.*loss after all 2 inner steps.*`learning_rate`, 0.05",
    ):
        train(learner, stream=stream, directory=tmp_path)
    train(learner, steps=3, directory=tmp_path)
    assert_same(good, snapshot(learner))


def test_weights_that_are_not_finite_are_not_saved(learner, tmp_path):
    learner.optimizer.learning_rate.assign(np.inf)
    with pytest.raises(FloatingPointError, match="sum of the weights is .* at step 0"):
        train(learner, steps=1, directory=tmp_path)
    assert not list(tmp_path.glob("checkpoints/*.index"))


def test_a_large_inner_learning_rate_is_named():
    learner = mg.MetaLearner(
        mg.models.mlp(hidden=(4,)), "mse", mg.inner.GradientDescent(3, 1e20), FOMAML(), jit_compile=False
    )
    learner.compile()
    with pytest.raises(
        FloatingPointError, match=r"task 0 diverged at step 0 with FOMAML\(\).*`learning_rate`, now 1e\+20"
    ):
        train(learner)


def test_nan_in_the_data_is_refused_before_it_is_learned_from(learner):
    before = snapshot(learner)
    stream = spoiled(0, lambda task: task._replace(support_x=task.support_x * np.nan))
    with pytest.raises(ValueError, match=r"`support_x` must be finite. Received: nan at index \(0, 0, 0\)"):
        train(learner, stream=stream)
    assert_same(before, snapshot(learner))


def test_a_stream_that_ends_too_early_is_refused(learner):
    with pytest.raises(ValueError, match="a stream that ended at step 2.*repeat"):
        train(learner, stream=tasks().take(2))


@pytest.mark.parametrize("kind", ["dataset", "list"])
def test_too_few_tasks_of_validation_are_refused_before_the_first_step(learner, kind):
    validation = tasks().take(2) if kind == "dataset" else list(tasks().take(2))
    before = snapshot(learner)
    with pytest.raises(ValueError, match="`validation` must hold validation_count=5 tasks. Received: 4"):
        train(learner, validation=validation, validation_count=5)
    assert_same(before, snapshot(learner))


def test_batches_of_validation_may_differ_in_size(learner):
    one = mg.data.sinusoid(shots=3, queries=4, meta_batch=1).take(1)
    for validation in (one.concatenate(tasks().take(2)), [*one, *tasks().take(2)]):
        history = train(learner, 1, validation=validation, validation_count=5)
        assert "val_loss" in history.history


def test_an_epoch_whose_validation_fails_is_kept(learner, undisturbed, tmp_path):
    def short():
        yield from tasks().take(1)

    validation = tf.data.Dataset.from_generator(short, output_signature=tasks().element_spec)
    with pytest.raises(ValueError, match="at least count=3 tasks"):
        train(learner, directory=tmp_path, schedule=SCHEDULE, validation=validation, validation_count=3)
    assert tf.train.latest_checkpoint(tmp_path / "checkpoints").endswith(f"-{EPOCH}")
    train(learner, directory=tmp_path, schedule=SCHEDULE)
    assert_same(undisturbed[0], snapshot(learner))


def damage(folder, number):
    for path in (folder / "checkpoints").glob(f"ckpt-{number}.data*"):
        path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_checkpoint_is_passed_over(learner, undisturbed, tmp_path, caplog):
    train(learner, directory=tmp_path, schedule=SCHEDULE)
    damage(tmp_path, STEPS)
    with caplog.at_level("WARNING"):
        train(learner, directory=tmp_path, schedule=SCHEDULE)
    assert "cannot be read" in caplog.text
    assert_same(undisturbed[0], snapshot(learner))
    for number in (EPOCH, 2 * EPOCH, STEPS):
        damage(tmp_path, number)
    with pytest.raises(OSError, match="None of the checkpoints in"):
        train(learner, directory=tmp_path, schedule=SCHEDULE)


@pytest.mark.parametrize("content", [None, b"", b"model_checkp"], ids=["gone", "empty", "cut"])
def test_a_lost_list_of_checkpoints_is_made_anew(learner, undisturbed, tmp_path, caplog, content):
    train(learner, 6, directory=tmp_path, schedule=SCHEDULE)
    state = tmp_path / "checkpoints" / "checkpoint"
    state.unlink() if content is None else state.write_bytes(content)
    recorder = Recorder()
    with caplog.at_level("WARNING"):
        train(learner, directory=tmp_path, schedule=SCHEDULE, callbacks=[recorder])
    assert "it is made anew" in caplog.text and sum(map(len, recorder.batches)) == STEPS - 6
    assert_same(undisturbed[0], snapshot(learner))


def test_a_checkpoint_of_other_types_is_another_learners(learner, tmp_path, float64):
    train(learner, 2, directory=tmp_path)
    other = make_learner()
    with pytest.raises(ValueError, match="must be new or hold checkpoints of this learner"):
        train(other, 4, directory=tmp_path)


def test_a_run_on_replicas_goes_on(tmp_path, caplog):
    def after(*stops, directory=None):
        for steps in stops:
            keras.utils.set_random_seed(0)
            with mg.make_strategy("mirrored").scope():
                learner = make_learner()
            train(learner, steps, directory=directory)
        return snapshot(learner)

    assert_same(after(4), after(2, 4, directory=tmp_path))
    assert "learning rate" not in caplog.text


def test_a_learning_rate_that_the_checkpoint_overrides_is_said(learner, tmp_path, caplog):
    train(learner, 2, directory=tmp_path)
    learner.optimizer.learning_rate = 0.5
    with caplog.at_level("WARNING"):
        train(learner, 4, directory=tmp_path)
    assert "learning rate, 0.01, not with 0.5" in caplog.text


def test_another_learners_checkpoint_is_refused(learner, tmp_path):
    train(learner, steps=1, directory=tmp_path)
    other = mg.MetaLearner(mg.models.mlp(hidden=(3,)), "mse", mg.inner.GradientDescent(1))
    other.compile()
    with pytest.raises(ValueError, match="the same settings. .*inner was .* and is .*Choose another `directory`"):
        train(other, directory=tmp_path)


def test_a_learner_must_be_compiled():
    learner = mg.MetaLearner(mg.models.mlp(hidden=(3,)), "mse", mg.inner.GradientDescent(1))
    with pytest.raises(ValueError, match=r"must be compiled. Call learner.compile\(optimizer=...\)"):
        train(learner)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        ({"steps": 2.5}, "`steps` must be a whole number"),
        ({"epoch_steps": -1}, "`epoch_steps` must be .* Received: epoch_steps=-1"),
        ({"stream": [1, 2]}, "`tasks` must be a tf.data.Dataset.* Received: list"),
        ({"schedule": {-1: MAML()}}, "`schedule` must map steps.* Received the step: -1"),
        ({"schedule": {"0": MAML()}}, "`schedule` must map steps.* Received the step: '0'"),
        ({"schedule": {0: "MAML"}}, "`estimator` must be a value such as .* Received: 'MAML'"),
        ({"schedule": {5: BinomMAML(3)}}, "`truncation` must be at most .* truncation=3 with steps=2"),
        ({"profile_steps": (9, 2), "directory": "unused"}, r"`profile_steps` .* profile_steps=\(9, 2\)"),
        ({"profile_steps": (2,), "directory": "unused"}, "`profile_steps` must be"),
        ({"profile_steps": 5, "directory": "unused"}, "`profile_steps` must be"),
        ({"profile_steps": (1, 2)}, "needs a `directory`"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(learner, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(learner)
    with pytest.raises(ValueError, match=message):
        train(learner, **options)
    assert_same(before, snapshot(learner))
    assert not pathlib.Path("unused").exists()


def test_a_folder_goes_on_with_the_settings_that_it_began_with(tmp_path):
    def run(steps, K=2, rate=0.05, seed=0, width=4, **options):
        keras.utils.set_random_seed(0)
        net = keras.Sequential(
            [keras.Input((1,)), keras.layers.Dense(width, "tanh"), keras.layers.Dense(1, name="head")]
        )
        learner = mg.MetaLearner(net, "mse", mg.inner.GradientDescent(K, rate), FOMAML(), execution="loop", **options)
        learner.compile("sgd")
        before = snapshot(learner)
        try:
            train(learner, steps, directory=tmp_path, seed=seed)
        except ValueError:
            if width == 4:  # nothing of the folder is in the learner
                assert_same(before, snapshot(learner))
            raise
        return snapshot(learner)

    run(2)
    for changed, words in (
        ({"rate": 0.1}, r"inner was {.*'learning_rate': 0.05.*} and is {.*'learning_rate': 0.1.*}"),
        ({"K": 3}, "'steps': 2.* and is .*'steps': 3"),
        ({"seed": 4}, "seed was 0 and is 4"),
        ({"adapt": "head"}, r"adapting weights was \[0, 1, 2, 3\] and is \[2, 3\]"),
        ({"width": 9}, "another model, inner optimiser or meta-optimizer"),
    ):
        with pytest.raises(ValueError, match=words):
            run(4, **changed)
    whole = run(4)
    tf.io.gfile.rmtree(str(tmp_path / "checkpoints"))
    assert_same(whole, run(4))


def test_a_checkpoint_that_has_no_settings_is_gone_on_from(tmp_path, monkeypatch):
    from tf_metagrad._checkpoints import Progress

    serialize = Progress.serialize

    def older(self):
        return json.dumps({name: value for name, value in json.loads(serialize(self)).items() if name != "settings"})

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "serialize", older)
        train(make_learner(), 3, directory=tmp_path)
    learner = make_learner()
    train(learner, STEPS, directory=tmp_path)
    assert learner.optimizer.iterations == STEPS
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        train(make_learner(), STEPS + 1, directory=tmp_path, seed=1)
