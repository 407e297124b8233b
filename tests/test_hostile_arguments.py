"""Whatever is handed to training, adaptation, export and SNGDM, they do what they say or end in one clear sentence."""

import sys

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hostile import few, refused, values
from hypothesis import strategies as st

import tf_metagrad as mg

some = hypothesis.settings(few, max_examples=25)
WAYS = 3


@pytest.fixture(scope="module")
def learner():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(WAYS)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 0.1), execution="map", jit_compile=False)
    learner.compile(keras.optimizers.SGD(0.1))
    return learner


class Began(Exception):  # noqa: N818  not an error
    pass


class Stop(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise Began


def stream():
    x, y = np.zeros([1, WAYS, 2], "float32"), np.arange(WAYS, dtype="int32")[None]
    return tf.data.Dataset.from_tensors((x, y, x, y)).repeat()


ARGUMENTS = (
    "tasks steps schedule epoch_steps checkpoint_steps validation validation_count profile_steps keep on_nonfinite "
    "preempted seed"
).split()


@some
@hypothesis.given(st.dictionaries(st.sampled_from(ARGUMENTS), values, min_size=1, max_size=2))
@hypothesis.example({"validation": np.zeros(())})
@hypothesis.example({"on_nonfinite": np.zeros(2)})
@hypothesis.example({"keep": True})
@hypothesis.example({"seed": 2**63})
def test_training_begins_or_its_arguments_are_refused(learner, chosen):
    estimator, weights = learner.estimator, learner.model.get_weights()
    with refused():
        try:
            mg.train(learner, **{"tasks": stream(), "steps": 1, "verbose": 0, "callbacks": [Stop()]} | chosen)
        except Began:
            assert not {"tasks", "preempted"} & chosen.keys()  # no value of these is a stream or a function
    assert learner.estimator == estimator
    for before, after in zip(weights, learner.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("callbacks", [[3], keras.callbacks.EarlyStopping(), None, "early"])
@pytest.mark.parametrize("directory", [None, "run"])
def test_callbacks_that_are_none_are_refused(learner, callbacks, directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`callbacks` must be a list of Keras callbacks. Received: "):
        mg.train(learner, stream(), 1, verbose=0, callbacks=callbacks, directory=directory)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directory", ["", "a\0b", 3, b"run", object()])
def test_a_directory_that_is_none_is_refused(learner, directory):
    with pytest.raises(ValueError, match="`directory` must be the path of a folder"):
        mg.train(learner, stream(), 1, verbose=0, directory=directory)


@pytest.mark.parametrize(
    "tasks, message",
    [
        (stream, "must take the number of the first batch, tasks.start.. Received: another signature"),
        (lambda start: [stream()], "must return a tf.data.Dataset. Received: list"),
    ],
)
def test_functions_of_another_kind_are_refused(learner, tasks, message):
    with pytest.raises(ValueError, match=message):
        mg.train(learner, tasks, 1, verbose=0)
    with pytest.raises(ValueError, match="`learner` must be an mg.MetaLearner. Received: Sequential"):
        mg.train(learner.model, stream(), 1)


sides = st.lists(st.integers(0, 3), max_size=3)
kinds = st.sampled_from(["float32", "float64", "int64", "uint8", "bool", "complex64", "U3", "O", "datetime64[s]"])
arrays = st.builds(lambda shape, kind: np.zeros(shape, kind), sides, kinds)
lists = st.recursive(st.one_of(st.integers(0, 3), st.floats(), st.none()), lambda part: st.lists(part, max_size=3))
odd = st.one_of(arrays, arrays.map(np.ndarray.tolist), lists, values)
labels = st.one_of(odd, st.just([0, 1, 2]), st.just(np.arange(3.0)))


@some
@hypothesis.given(x=st.one_of(odd, st.just(np.ones([3, 2]))), y=labels)
def test_a_task_is_adapted_to_or_refused(learner, x, y):
    with refused():
        weights = learner.adapt(x, y)
        assert np.shape(x) == (WAYS, 2) and np.size(y) == WAYS
        assert all(np.isfinite(weight).all() for weight in weights)


@some
@hypothesis.given(weights=st.one_of(st.none(), odd), x=odd)
@hypothesis.example(None, np.zeros([0, 2]))
@hypothesis.example([[None, []], None], np.ones([1, 2]))
def test_adapted_weights_predict_or_are_refused(learner, weights, x):
    with refused():
        predictions = learner.predict_adapted(learner.model.get_weights() if weights is None else weights, x)
        assert predictions.shape == (len(x), WAYS)


@some
@hypothesis.given(path=st.one_of(values, st.text(max_size=3)))
def test_a_path_is_one_or_refused(learner, path):
    module, written = sys.modules["tf_metagrad.export"], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write_whole", lambda served, path, about: written.append(path))
        patch.setattr(module, "Served", lambda learner: None)
        try:
            with refused():
                assert mg.export(learner, path) == path == written[0]
        except FileExistsError:
            assert isinstance(path, str)


@some
@hypothesis.given(st.dictionaries(st.sampled_from(["momentum", "epsilon"]), values, max_size=2))
def test_sngdm_is_whole_or_refused(chosen):
    with refused():
        made = mg.optimizers.SNGDM(0.1, **chosen)
        assert mg.optimizers.SNGDM.from_config(made.get_config()).get_config() == made.get_config()
