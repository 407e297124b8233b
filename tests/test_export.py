"""`mg.export`: a SavedModel gives the learner's numbers where only TensorFlow is installed, and is written whole."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg
from tf_metagrad import _folders

WAYS, LENGTH = 3, 8

# Loads every model of a folder and runs its signatures on the arrays beside it, without keras and tf_metagrad.
SERVER = """
import sys, pathlib
absent = dict.fromkeys(("keras", "tf_keras", "tf_metagrad"))
sys.modules.update(absent)  # None: an import fails as if the package were not installed
import numpy as np, tensorflow as tf
for folder in pathlib.Path(sys.argv[1]).iterdir():
    served = tf.saved_model.load(str(folder / "model")).signatures
    for file in folder.glob("in*.npz"):
        a = {name: tf.constant(value) for name, value in np.load(file).items()}
        support = {"support_x": a["support_x"], "support_y": a["support_y"]}
        weights = served["adapt"](**support)["weights"]
        np.savez(
            folder / file.name.replace("in", "out"),
            weights=weights,
            adapt_and_predict=served["adapt_and_predict"](**support, query_x=a["query_x"])["predictions"],
            predict_adapted=served["predict_adapted"](weights=weights, query_x=a["query_x"])["predictions"],
            predict=served["predict"](query_x=a["query_x"])["predictions"],
        )
assert all(sys.modules[name] is None for name in absent)
"""


def classifier(**options):
    """A conv net with batch normalisation whose stored averages are not the initial ones."""
    model = mg.models.conv1d(WAYS, LENGTH, filters=2, blocks=1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign([0.3, -0.2])
            layer.moving_variance.assign([2.0, 0.5])
    if "adapt" in options:
        options["adapt"] = [model.layers[-1].name]
    options = {"inner": mg.inner.GradientDescent(2, 0.3), "execution": "loop", **options}
    return mg.MetaLearner(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)


def learned_rates():
    learner = classifier(inner=mg.inner.GradientDescent(2, 0.3, learn="per_layer_and_step"))
    learner.hyperparameters[0].assign(np.linspace(0.1, 0.9, 2 * 3).reshape(2, 3))
    return learner


def regressor():
    layers = [keras.layers.Dense(5, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((LENGTH, 1)), keras.layers.Flatten(), *layers])
    return mg.MetaLearner(model, "mse", mg.inner.GradientDescent(3, 0.1), jit_compile=False)


LEARNERS = {
    "batch": lambda: classifier(execution="auto"),
    "stored": lambda: classifier(normalization="stored"),
    "anil": lambda: classifier(adapt=...),
    "rates": learned_rates,
    "dropout": regressor,
}


def draw(learner, shots, queries, seed):
    """Return support_x, support_y, query_x of one task."""
    rng = np.random.default_rng(seed)
    x, query_x = (rng.normal(size=[n, LENGTH, 1]).astype("float32") for n in (WAYS * shots, queries))
    labels = np.repeat(np.arange(WAYS, dtype="int32"), shots)
    y = labels if learner.ways else rng.normal(size=[WAYS * shots, 2]).astype("float32")
    return {"support_x": x, "support_y": y, "query_x": query_x}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Every learner, its tasks, and what its SavedModel answers in a process that has TensorFlow only."""
    keras.utils.set_random_seed(0)
    root = tmp_path_factory.mktemp("models")
    learners, tasks = {}, {}
    for name, make in LEARNERS.items():
        learners[name] = make()
        assert mg.export(learners[name], root / name / "model") == str(root / name / "model")
        tasks[name] = [draw(learners[name], *sizes) for sizes in ((1, 7, 0), (3, 2, 1))]
        for i, task in enumerate(tasks[name]):
            np.savez(root / name / f"in{i}.npz", **task)
    done = subprocess.run([sys.executable, "-c", SERVER, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = {name: [dict(np.load(root / name / f"out{i}.npz")) for i in range(2)] for name in LEARNERS}
    return learners, tasks, answers


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("size", [0, 1])
def test_served_numbers_are_the_learners(served, name, size):
    learner, task, answer = served[0][name], served[1][name][size], served[2][name][size]
    weights = learner.adapt(task["support_x"], task["support_y"])
    flat = np.concatenate([np.ravel(w) for w in weights])[-len(answer["weights"]) :]  # ANIL's are the last layer's
    predictions = learner.predict_adapted(weights, task["query_x"])
    initial = learner.predict_adapted(learner.model.trainable_variables, task["query_x"])
    assert np.abs(predictions - initial).max() > 1e-2
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(answer["weights"], flat, **close)
    np.testing.assert_allclose(answer["adapt_and_predict"], predictions, **close)
    np.testing.assert_allclose(answer["predict_adapted"], answer["adapt_and_predict"], **close)
    np.testing.assert_allclose(answer["predict"], initial, **close)
    assert answer["predict"].shape == (len(task["query_x"]), WAYS if learner.ways else 2)


def test_anil_has_the_weights_of_its_layer_only(served):
    learners, _, answers = served
    assert answers["anil"][0]["weights"].shape == (4 * 2 * WAYS + WAYS,)
    assert answers["batch"][0]["weights"].shape == (learners["batch"].model.count_params() - 4,)


def test_cases_tell_their_options_apart(served):
    """The same task through the same net gives other numbers with other options, so each option is really served."""
    learners, tasks, _ = served
    task = tasks["batch"][0]
    reference = learners["batch"].model.get_weights()
    answers = []
    for name in ("batch", "stored", "anil", "rates"):
        before = learners[name].model.get_weights()
        learners[name].model.set_weights(reference)
        weights = learners[name].adapt(task["support_x"], task["support_y"])
        answers.append(learners[name].predict_adapted(weights, task["query_x"]).numpy())
        learners[name].model.set_weights(before)
    for i, one in enumerate(answers):
        assert all(np.abs(one - other).max() > 1e-3 for other in answers[:i])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def test_a_folder_that_exists_is_refused(served, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match=r"exists. Choose another, or pass overwrite=True"):
        mg.export(served[0]["dropout"], tmp_path / "model")
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="Only a SavedModel is replaced.*Choose another path"):
        mg.export(served[0]["dropout"], tmp_path / "model", overwrite=True)
    assert contents(tmp_path) == {pathlib.Path("model/thesis.txt"): b"mine"}


def test_a_failure_leaves_the_old_model_and_no_scratch(served, tmp_path, monkeypatch):
    learner = served[0]["dropout"]
    path = mg.export(learner, tmp_path / "model")
    before = contents(tmp_path)

    def save_half(archive, folder, **options):
        pathlib.Path(folder).mkdir()
        (pathlib.Path(folder) / "saved_model.pb").write_text("half")
        raise OSError("disk full")

    def move(source, target, move=os.replace):
        if target == path and pathlib.Path(source).name != "old":
            raise OSError("disk full")
        move(source, target)

    for owner, name, replacement in ((tf.saved_model, "save", save_half), (os, "replace", move)):
        with monkeypatch.context() as patch:
            patch.setattr(_folders, "exchange", lambda one, other: False)
            patch.setattr(owner, name, replacement)
            with pytest.raises(OSError, match="disk full"):
                mg.export(learner, path, overwrite=True)
        assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["model"]

    kernel = learner.model.trainable_variables[-1]
    kernel.assign(kernel + 1.0)
    mg.export(learner, path, overwrite=True)
    x = tf.ones([1, LENGTH, 1])
    predictions = tf.saved_model.load(path).signatures["predict"](query_x=x)["predictions"]
    np.testing.assert_allclose(predictions, learner.predict_adapted(learner.model.trainable_variables, x), atol=1e-6)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            [keras.Input((3,)), keras.Input((3,))],
            r"one tensor of inputs .* Received: shapes \[\(None, 3\), \(None, 3\)\]. Join them",
        ),
        ([keras.Input((None, 3))], r"axes after the first are fixed. Received: shapes \[\(None, None, 3\)\]. Make the"),
    ],
)
def test_models_without_one_fixed_input_are_refused(inputs, message, tmp_path):
    x = inputs[0] if len(inputs) == 1 else keras.layers.Concatenate()(inputs)
    learner = mg.MetaLearner(keras.Model(inputs, keras.layers.Dense(1)(x)), "mse", mg.inner.GradientDescent(1))
    with pytest.raises(ValueError, match=message):
        mg.export(learner, tmp_path / "deep" / "model")
    assert list(tmp_path.iterdir()) == []


class Subclassed(keras.Model):
    """A model that declares no inputs; it has the shape that it is first called with."""

    def __init__(self):
        super().__init__()
        self.body, self.head = keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)

    def call(self, x, training):
        return self.head(self.body(x, training=training))


def test_a_subclassed_model_is_served_as_it_adapts(tmp_path):
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(np.zeros((2, 5), "float32"), training=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(2, 0.1))
    signatures = tf.saved_model.load(mg.export(learner, tmp_path / "served")).signatures
    x, y = np.random.default_rng(0).normal(size=(6, 5)).astype("float32"), np.array([0, 1, 2] * 2, "int32")
    served = signatures["adapt_and_predict"](support_x=tf.constant(x), support_y=tf.constant(y), query_x=tf.constant(x))
    expected = learner.predict_adapted(learner.adapt(x, y), x)
    np.testing.assert_allclose(served["predictions"], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be in 0 .. 2, the model's 3 outputs. Received: 7"):
        learner.adapt(x, [0, 1, 7, 0, 1, 2])


@pytest.mark.parametrize("about", [{"b": object()}, ["data"], {"b": {1, 2}}])
def test_what_a_card_cannot_hold_is_refused(about, tmp_path):
    learner = mg.MetaLearner(mg.models.mlp(hidden=(2,)), "mse", mg.inner.GradientDescent(1))
    with pytest.raises(ValueError, match="`about` must be a dict of what JSON can hold"):
        mg.export(learner, tmp_path / "model", about=about)
    assert list(tmp_path.iterdir()) == []


class Scores(keras.Model):
    """A subclassed model of one input or the sum of several, whose output is in a dict."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def call(self, inputs):
        return {"scores": self.head(sum(inputs) if isinstance(inputs, tuple) else inputs)}


@pytest.mark.parametrize("several, end", [(True, "inputs"), (False, "outputs")])
def test_subclassed_models_of_other_structure_are_refused_in_a_sentence(several, end, tmp_path):
    model, x = Scores(), np.zeros((2, 5), "float32")
    model((x, x) if several else x)
    learner = mg.MetaLearner(model, lambda y, p: tf.reduce_mean((y - p["scores"]) ** 2), mg.inner.GradientDescent(1))
    with pytest.raises(ValueError, match=f"one tensor of {end} .* Received: shapes unknown"):
        mg.export(learner, tmp_path / "model")


def test_a_layer_frozen_since_is_refused_in_a_sentence(tmp_path):
    learner = mg.MetaLearner(mg.models.mlp(hidden=(2,)), "mse", mg.inner.GradientDescent(1))
    learner.model.layers[-1].trainable = False
    with pytest.raises(ValueError, match="frozen, thawed or changed since"):
        mg.export(learner, tmp_path / "model")
