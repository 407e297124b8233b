"""What frozen layers compute is computed once for a task, and the meta-gradient is that of computing it at every step.

The other side is `MAML("unrolled")`, a tape through the loss as a whole; tests/test_exactness.py and
tests/test_implicit.py have every estimator beside its reference with `adapt=[...]`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import relative_error

import tf_metagrad as mg
from tf_metagrad import _frozen
from tf_metagrad.estimators import ESMAML, FOMAML, IMAML, MAML, BinomMAML, Reptile
from tf_metagrad.inner import GradientDescent, ProximalGradientDescent

tanh = {"activation": "tanh"}


def chain(*body, shape=(3,), dtype=None):
    """Return a network of these layers and a head."""
    return keras.Sequential([keras.Input(shape, dtype=dtype), *body, layers.Dense(2, name="head")])


def dense(name, **options):
    return layers.Dense(4, name=name, **tanh, **options)


def branches():
    x = keras.Input((3,))
    a, b = dense("a")(x), layers.Dense(4, name="b")(dense("c")(x))
    return keras.Model(
        x, layers.Dense(2, name="head")(layers.Concatenate(name="both")([layers.Add(name="sum")([a, b]), b]))
    )


def called_three_times():
    x, layer = keras.Input((4,)), dense("again")
    return keras.Model(x, layers.Dense(2, name="head")(layer(dense("mid")(layer(layer(x))))))


def backbone(*more, trainable):
    body = [keras.Input((3,)), dense("a"), layers.BatchNormalization(name="norm"), *more, dense("b")]
    model = keras.Sequential(body, name="backbone")
    model.trainable = trainable
    return chain(model)


def words(*body):
    return chain(layers.Embedding(5, 3, mask_zero=True, name="words"), *body, shape=(4,), dtype="int32")


def two_inputs():
    x = {"p": keras.Input((3,), name="p"), "q": keras.Input((2,), name="q")}
    return keras.Model(x, layers.Dense(2, name="head")(layers.Concatenate(name="both")([dense("a")(x["p"]), x["q"]])))


class OwnCall(keras.Model):
    """Layers with plain operations between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = dense("a"), dense("b"), layers.Dense(2, name="head")

    def call(self, x):
        h = tf.sin(self.a(x))
        return self.head(self.b(h) * tf.reduce_mean(x, axis=-1, keepdims=True) + h)


class Remembers(layers.Layer):
    """Leaves a tensor where another layer finds it."""

    def call(self, x):
        self.seen = tf.sin(x)
        return x


class Meets(keras.Model):
    """Layers that meet in another way than by what they return."""

    def __init__(self):
        super().__init__()
        self.a, self.note, self.head = dense("a"), Remembers(), layers.Dense(2, name="head")

    def call(self, x):
        h = self.note(self.a(x))
        return self.head(h * self.note.seen)


class Counts(layers.Layer):
    """Has a state that each call changes."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="ones", trainable=False, name="count")
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return x * self.count * self.scale


def built(model):
    model(np.zeros([2, 3]))
    return model


# a network, what adapts, and the calls that are answered by features
NETS = {
    "chain": (lambda: chain(dense("a"), dense("b")), "head", {"a", "b"}),
    "convolutions": (
        lambda: chain(
            layers.Conv2D(3, 3, name="a"), layers.BatchNormalization(name="norm"),
            layers.Activation("tanh", name="act"), layers.Flatten(name="flat"), shape=(4, 4, 2),
        ), "head", {"a", "norm", "act", "flat"},
    ),
    "before the middle": (lambda: chain(dense("a"), dense("b"), dense("c")), "b", {"a"}),
    "branches": (branches, "head", {"a", "b", "c", "sum", "both"}),
    "one of two branches": (branches, "b", {"a", "c"}),
    "one layer, three times": (called_three_times, "mid", {"again"}),
    "not trainable": (lambda: backbone(trainable=False), "all", {"backbone"}),
    "shared": (lambda: backbone(trainable=True), "head", {"backbone"}),
    "Dropout within": (lambda: backbone(layers.Dropout(0.4), trainable=False), "all", {"a", "norm"}),
    "Dropout": (lambda: chain(dense("a"), layers.Dropout(0.4), dense("b")), "head", {"a"}),
    "masks": (lambda: words(dense("a")), "head", {"words", "a"}),
    "recurrent": (lambda: words(layers.LSTM(3, name="lstm")), "head", {"words", "lstm"}),
    "two inputs": (two_inputs, "head", {"a", "both"}),
    "own call": (lambda: built(OwnCall()), "head", {"a", "b"}),
    "a loss": (
        lambda: chain(dense("a", kernel_regularizer="l2"), dense("b", activity_regularizer="l2")), "head", {"a"},
    ),
    "a state": (lambda: chain(dense("a"), Counts(name="counts"), dense("b")), "head", {"a"}),
    "a meeting": (lambda: built(Meets()), "head", set()),
    "nothing frozen": (lambda: chain(dense("a")), "all", set()),
}  # fmt: skip


def tasks_for(model, count=2):
    rng = np.random.default_rng(0)
    ends = model.inputs if isinstance(model, keras.Sequential | keras.src.models.Functional) else [None]

    def one(end):
        if end is None or end.dtype != "int32":
            return rng.normal(size=(count, 5, *(end.shape[1:] if end is not None else (3,))))
        return rng.integers(0, 5, size=(count, 5, *end.shape[1:]))

    def x():
        return tf.nest.pack_sequence_as(model.input, [one(e) for e in ends]) if len(ends) > 1 else one(ends[0])

    outputs = (4, 2) if ends[0] is not None and len(model.outputs[0].shape) == 3 else (2,)
    return mg.Task(x(), rng.normal(size=(count, 5, *outputs)), x(), rng.normal(size=(count, 5, *outputs)))


def answered(learner):
    """Return the names of the layers that are answered by features, in whatever has been traced."""
    plans = [f._plan for parts in learner._runner._functions.values() for f in parts._frozen.values() if f]
    return {plan.calls[number].layer.name for plan in plans for number in plan.answers}


@pytest.mark.parametrize("way", ["loop", "vectorize"])
@pytest.mark.parametrize("net", NETS)
def test_the_gradient_is_that_of_the_whole_loss(float64, net, way):
    make, adapt, expected = NETS[net]
    model = make()
    learner = mg.MetaLearner(model, "mse", GradientDescent(3, 0.3), adapt=adapt, execution=way, jit_compile=False)
    tasks, found = tasks_for(model), []
    for learner.estimator in (MAML(), MAML("unrolled")):
        found.append(learner.meta_gradient(tasks, seed=3).gradients)
    assert answered(learner) == expected
    assert relative_error(*found) < 1e-12


def with_and_without(monkeypatch, make, use):
    """Return what `use(learner)` gives with features and, of an equal learner, without."""
    found, names = [], []
    for possible in (_frozen.possible, lambda *_: False):
        monkeypatch.setattr(_frozen, "possible", possible)
        keras.utils.set_random_seed(0)
        learner = make()
        found.append([np.asarray(t) for t in tf.nest.flatten(use(learner))])
        names.append(answered(learner))
    return found, names


PLAIN, PROXIMAL = GradientDescent(3, 0.3, learn="scalar"), ProximalGradientDescent(3, 0.3, weight=1.0, learn="weight")
OTHERS = [
    ("vectorize", True, MAML(), PLAIN), ("map", False, BinomMAML(2), PLAIN), ("vectorize", False, BinomMAML(2), PLAIN),
    ("loop", False, IMAML(), PROXIMAL), ("vectorize", True, IMAML(), PROXIMAL), ("loop", False, FOMAML(), PLAIN),
    ("vectorize", False, ESMAML(3), GradientDescent(3, 0.3)), ("loop", False, Reptile(), GradientDescent(3, 0.3)),
]  # fmt: skip


@pytest.mark.parametrize(("way", "xla", "estimator", "inner"), OTHERS)
def test_ways_and_estimators_agree(float64, monkeypatch, way, xla, estimator, inner):
    def make():
        model = chain(dense("a"), layers.BatchNormalization(name="norm"), dense("b"))
        return mg.MetaLearner(model, "mse", inner, estimator, adapt="head", execution=way, jit_compile=xla)

    def use(learner):
        return learner.meta_gradient(tasks_for(learner.model), seed=3)[:2]

    found, names = with_and_without(monkeypatch, make, use)
    assert names == [{"a", "norm", "b"}, set()]
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("normalization", ["batch", "stored", "per_step"])
def test_normalizations_in_training_and_in_use(float64, monkeypatch, normalization):
    """Averages of each step are written at every step, and read in use: nothing is cut there."""

    def make():
        model = chain(dense("a"), layers.BatchNormalization(name="norm"), dense("b"))
        learner = mg.MetaLearner(model, "mse", GradientDescent(3, 0.3), adapt="head", normalization=normalization)
        learner.compile("sgd")
        return learner

    def use(learner):
        tasks = tasks_for(learner.model)
        learner.update(learner.check_tasks(tasks), tf.constant(0, tf.int64))
        curve = learner.adaptation_curve(tasks, count=2)
        adapted = learner.adapt(tasks.support_x[0], tasks.support_y[0])
        return [v.numpy() for v in learner.variables], [point.mean["loss"] for point in curve], adapted

    found, names = with_and_without(monkeypatch, make, use)
    assert names == [set() if normalization == "per_step" else {"a", "norm", "b"}, set()]
    assert relative_error(*found) < 1e-12


def test_features_of_16_bits_are_summed_in_32(monkeypatch):
    def make():
        model = chain(dense("a", dtype="mixed_bfloat16"), dense("b", dtype="mixed_bfloat16"))
        return mg.MetaLearner(model, "mse", GradientDescent(3, 0.3), adapt="head", execution="loop", jit_compile=False)

    def use(learner):
        return learner.meta_gradient(tasks_for(learner.model)).gradients

    (cut, whole), names = with_and_without(monkeypatch, make, use)
    exact = make()
    exact = mg.MetaLearner(chain(dense("a"), dense("b")), "mse", exact.inner, adapt="head")
    keras.utils.set_random_seed(0)
    for a, b in zip(exact.model.weights, make().model.weights, strict=True):
        a.assign(b)
    exact = use(exact)
    assert names == [{"a", "b"}, set()]
    assert relative_error(cut, exact) < 1.2 * relative_error(whole, exact)


def test_frozen_layers_run_once_for_each_set_of_examples():
    """Once forward for the features, once again to pull back, and once on the query set."""
    model = chain(layers.Conv2D(3, 3, name="a"), layers.Flatten(), shape=(4, 4, 2))
    learner = mg.MetaLearner(model, "mse", GradientDescent(5, 0.3), adapt="head", execution="loop")
    tasks = learner.check_tasks(tasks_for(model, count=1))
    learner.meta_gradient(tasks)
    learner.adapt(*(part[0] for part in tasks[:2]))

    def convolutions(kind):
        (function,) = (f for (name, _), f in learner._cache.functions.items() if name == kind)
        ((traced, _),) = function._made.values()
        return count_calls(traced.graph.as_graph_def(), "Conv2D")

    assert convolutions("gradient") == 3
    assert convolutions("adapt") == 1


def count_calls(definition, kind):
    """Return how often operations of this kind are run, one trip of each loop."""
    functions = {f.signature.name: f.node_def for f in definition.library.function}

    def count(nodes):
        total = 0
        for node in nodes:
            total += node.op == kind
            total += sum(count(functions[name]) for name in called(node) if name in functions)
        return total

    def called(node):
        values = [a for key, a in node.attr.items() if not key.startswith("_")]
        return [a.func.name for a in values if a.HasField("func")]

    return count(definition.node)
