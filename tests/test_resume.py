"""Training goes on bit for bit: killed anywhere, stopped in the middle of an epoch, or out of disk space."""

import os
import pathlib
import resource
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from killable_runs import EVERY, ROOT, Runs, kill_at, saved, variables, wait_for

import tf_metagrad as mg
from tf_metagrad.estimators import FOMAML, MAML

# A run of train.py ----------------------------------------------------------------------------------------------------

FLAGS = (
    "--task=sinusoid --meta_batch=2 --inner_steps=1 --shots=3 --queries=3 --validation_tasks=2 --evaluation_tasks=4 "
    "--execution=map --jit_compile=false --verbose=0 --epoch_steps=10 --steps=60"
).split() + [f"--checkpoint_steps={EVERY}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with (tmp_path_factory.mktemp("runs") / "errors.txt").open("w") as errors:
        runs = Runs(errors)
        runs.errors = pathlib.Path(errors.name)
        yield runs
        runs.stop()


def finish(runs, folder, flags):
    runs.start(*flags, f"--output={folder}")
    assert runs.wait() == 0, runs.errors.read_text()
    assert not list(folder.rglob("*_temp*")) and not list(folder.rglob("*.partial"))
    files = {name: (folder / name).read_bytes() for name in ("config.json", "history.csv", "result.json")}
    return variables(folder) | files


@pytest.mark.parametrize(
    "kills, flags",
    [
        (3, ["--estimator=FOMAML"]),
        pytest.param(
            12,
            ["--schedule=0: FOMAML, 25: MAML", "--learn=per_layer_and_step", "--inner_steps=2", "--steps=200"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(runs, tmp_path, kills, flags):
    rng, flags, killed = np.random.default_rng(0), [*FLAGS, *flags], tmp_path / "killed"
    undisturbed = finish(runs, tmp_path / "undisturbed", flags)
    for kill in range(kills):
        process = runs.start(*flags, f"--output={killed}")
        kill_at(process, killed / "checkpoints", rng, in_a_write=kill % 3 == 1)
        assert runs.wait() == -signal.SIGKILL
    assert finish(runs, killed, flags) == undisturbed


def test_sigterm_writes_a_checkpoint_at_once_and_exits_cleanly(runs, tmp_path):
    flags = [*FLAGS, "--estimator=FOMAML", "--checkpoint_steps=1000", "--epoch_steps=1000", "--steps=1000"]
    process = runs.start(*flags, f"--output={tmp_path}")
    wait_for(process, lambda: (tmp_path / "logs").exists())
    os.kill(process, signal.SIGTERM)
    assert runs.wait() == 128 + signal.SIGTERM
    said = runs.errors.read_text().splitlines()[-1]
    assert said == "train.py: terminated; the same command goes on from the last checkpoint."
    (step,) = saved(tmp_path / "checkpoints")
    assert 0 < step < 1000
    assert not (tmp_path / "history.csv").exists()  # the epoch goes on


# In this process ------------------------------------------------------------------------------------------------------

STEPS, EPOCH = 8, 5
SCHEDULE = {3: MAML()}


def make_learner():
    """A net with dropout and a metric; the step sizes are learned, and their state is the optimizer's too."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = [keras.Input((1,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(1)]
    inner = mg.inner.GradientDescent(2, 0.05, learn="per_layer_and_step")
    learner = mg.MetaLearner(keras.Sequential(net), "mse", inner, FOMAML(), execution="loop")
    learner.compile(keras.optimizers.Adam(0.01), metrics=["mae"])
    return learner


def tasks(start=0):
    return mg.data.sinusoid(shots=3, queries=4, meta_batch=2, start=start)


@pytest.fixture(scope="module")
def learner():
    return make_learner()


def variables_of(learner):
    return [*learner.model.weights, *learner.hyperparameters, *learner.optimizer.variables]


class Rows(keras.callbacks.Callback):
    """The logs of each epoch, as history.csv keeps them; it halves the learning rate at every end."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def on_epoch_end(self, epoch, logs=None):
        self.rows[epoch] = dict(logs)
        self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 2


def train(learner, rows, **options):
    options = {"epoch_steps": EPOCH, "schedule": SCHEDULE, "validation": tasks(90), "validation_count": 4} | options
    return mg.train(learner, tasks, STEPS, verbose=0, **{"callbacks": [rows]} | options)


def begin(learner, values):
    for variable, value in zip(variables_of(learner), values, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def undisturbed(learner):
    initial, rows = [np.array(v) for v in variables_of(learner)], Rows()
    train(learner, rows)
    return initial, [np.array(v) for v in variables_of(learner)], rows.rows


def after(count):
    """Answer True once, at the given question; there is one after each step and before each validation batch."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) == count


@pytest.mark.parametrize("checkpoint_steps", [None, 2])
@pytest.mark.parametrize("stops", [[2], [1, 1, 1], [6], [7], [5, 1, 1], [12]], ids=str)
def test_a_run_stopped_within_an_epoch_ends_as_an_undisturbed_one(
    learner, undisturbed, tmp_path, stops, checkpoint_steps
):
    """Stops 6 and 7 fall into the validation of the first epoch, 12 into that of the second; each adds to the last."""
    initial, final, epochs = undisturbed
    begin(learner, initial)
    rows, options = Rows(), {"directory": tmp_path, "checkpoint_steps": checkpoint_steps, "keep": 20}
    for stop in stops:
        with pytest.raises(mg.Preempted, match="stopped after step"):
            train(learner, rows, preempted=after(stop), **options)
        begin(learner, [np.full_like(value, 7) for value in initial])  # what a new process has is not this
    train(learner, rows, **options)
    assert rows.rows == epochs
    for variable, value in zip(variables_of(learner), final, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert {5, 8} | ({2, 4} if checkpoint_steps else set()) <= saved(tmp_path / "checkpoints")


def test_skipped_tasks_of_the_epoch_are_remembered(learner, undisturbed, tmp_path):
    def spoiled(start):  # finite, so that the data pass, and too large for the loss
        big = tf.constant([1e30, 0.0])[:, None, None]
        return tasks(start).enumerate(start).map(
            lambda i, t: t._replace(query_y=t.query_y + tf.where(i == 1, big, tf.zeros_like(big)))
        )  # fmt: skip

    options = {"epoch_steps": 4, "verbose": 0, "on_nonfinite": "skip"}
    begin(learner, undisturbed[0])
    whole = mg.train(learner, spoiled, 4, **options).history
    begin(learner, undisturbed[0])
    with pytest.raises(mg.Preempted):
        mg.train(learner, spoiled, 4, directory=tmp_path, preempted=after(3), **options)
    assert mg.train(learner, spoiled, 4, directory=tmp_path, **options).history == whole
    assert whole["skipped_tasks"] == [1]


# No room --------------------------------------------------------------------------------------------------------------


class FullDisk(keras.callbacks.Callback):
    """After the given number of batches no file may grow beyond a size, as where a disk is full."""

    def __init__(self, batches, size):
        super().__init__()
        self.batches, self.size, self.limit = batches, size, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if not self.batches:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limit[1]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


@pytest.mark.parametrize(
    "size, every, message",
    [
        (0, None, "The TensorBoard scalars in {logs} could not be written: File too large. {advice}"),
        (300, 1, "The checkpoint of step 7 in {checkpoints} could not be written: File too large. 'ckpt-6', {more}"),
    ],
)
def test_a_full_disk_is_said_and_the_last_checkpoint_is_intact(learner, undisturbed, tmp_path, size, every, message):
    initial, final, epochs = undisturbed
    begin(learner, initial)
    before, rows = {}, Rows()

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            before.clear()
            before.update({path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*")})

    with FullDisk(7, size) as full, pytest.raises(OSError) as error:
        callbacks = [rows, full, Look()]
        train(learner, rows, directory=tmp_path, checkpoint_steps=every, keep=20, callbacks=callbacks)
    assert str(error.value) == message.format(
        logs=f"'{tmp_path / 'logs'}'",
        checkpoints=f"'{tmp_path / 'checkpoints'}'",
        advice="Make room; the last checkpoint is intact.",
        more="the last one before, is intact; make room, then the same call goes on from there.",
    )
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*")} == before
    begin(learner, initial)
    train(learner, rows, directory=tmp_path)
    assert rows.rows == epochs
    for variable, value in zip(variables_of(learner), final, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(learner, tmp_path):
    (tmp_path / "file").write_text("mine")
    rows = Rows()
    with pytest.raises(OSError, match=r"^The folder '.*checkpoints' could not be written: .*\. Choose another"):
        train(learner, rows, directory=tmp_path / "file" / "run")
    with FullDisk(1, 0) as full, pytest.raises(OSError, match="could not be written: File too large. Choose another"):
        full.on_train_batch_end(0)
        train(learner, rows, directory=tmp_path / "run")
    assert rows.rows == {}


def test_results_that_cannot_be_written_leave_those_before(runs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    import run_folder as results

    path = tmp_path / "result.json"
    path.write_text("before")
    with FullDisk(1, 0) as full:
        full.on_train_batch_end(0)
        with pytest.raises(OSError, match=r"result.json' could not be written: File too large. What was there before"):
            results.write_json(path, {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"] and path.read_text() == "before"


def test_an_export_without_room_leaves_the_saved_model_before(learner, tmp_path):
    mg.export(learner, tmp_path / "saved_model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for variable in learner.model.weights:
        variable.assign(variable + 1)
    with FullDisk(1, 2000) as full:
        full.on_train_batch_end(0)
        with pytest.raises((OSError, tf.errors.OpError)):
            mg.export(learner, tmp_path / "saved_model", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
