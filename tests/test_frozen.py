"""What frozen layers compute is computed once for a task, and the meta-gradient is that of computing it at every step.

The other side is `MAML("unrolled")`, a tape through the loss as a whole, or the same learner that cuts nothing.
tests/test_exactness.py compares with central differences, tests/test_implicit.py with the implicit function theorem.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import relative_error

import tf_metagrad as mg
from tf_metagrad import _frozen
from tf_metagrad.estimators import (
    ESMAML,
    FOBMAML,
    FOMAML,
    IMAML,
    MAML,
    BinomMAML,
    BinomTruncMAML,
    Reptile,
    TruncMAML,
)
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
    return chain(layers.Embedding(30, 3, mask_zero=True, name="words"), *body, shape=(4,), dtype="int32")


def two_inputs():
    x = {"p": keras.Input((3,), name="p"), "q": keras.Input((2,), name="q")}
    return keras.Model(x, layers.Dense(2, name="head")(layers.Concatenate(name="both")([dense("a")(x["p"]), x["q"]])))


class Own(keras.Model):
    """A model of the layers `a`, `head` and perhaps `b`, called by a function of its own."""

    def __init__(self, function, a=None, b=None, units=2):
        super().__init__()
        self.function, self.a, self.b = function, a or dense("a"), b
        self.head = layers.Dense(units, "tanh", name="head")
        self(np.zeros([2, 3]))

    def call(self, x):
        return self.function(self, x)


class InUse(Own):
    """A model whose function knows whether it is in use."""

    def call(self, x, training=False):
        return self.function(self, x, training)


class With(layers.Layer):
    """Returns what a function makes of `x W`, and has what the function needs."""

    def __init__(self, function, **options):
        super().__init__(name="with", **options)
        self.function, self.noted, self.table = function, None, tf.constant([0.0, 1.0, 2.0, 3.0], tf.float64)

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), name="w")

    def call(self, x):
        return self.function(self, x @ self.w)


def plain_operations_between(net, x):
    h = tf.sin(net.a(x))
    return net.head(net.b(h) * tf.reduce_mean(x, axis=-1, keepdims=True) + h)


def noted(layer, h):
    layer.noted = tf.sin(h)
    return h


SEEN = []


def collected(layer, h):
    SEEN.append(h)
    return h


def taps(net, x):
    SEEN.clear()
    h = net.a(x)
    return net.head(h * len(SEEN) + sum(tf.sin(z) for z in SEEN))


def remembered(layer, h):
    layer.noted = h.shape[0]
    return h


def joined(net, x):
    return net.head(net.b(tf.concat(list(net.a(x).values()), axis=1)))


def asserted(net, x):
    h, norm = net.a(x)
    tf.debugging.assert_positive(norm)
    return net.head(h)


def forced(net, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        energy = net.head(net.a(x))
    return energy + tape.gradient(energy, x, unconnected_gradients="zero")[:, :2]


def forced_by_symbols(net, x):
    energy = net.head(tf.concat([net.a(x), x], -1))
    return energy if tf.executing_eagerly() else energy + tf.gradients(energy, x)[0][:, :2]


def read_averages(net, x):
    return net.head(net.b(net.a(x)) - tf.convert_to_tensor(net.b.moving_mean))


def read_averages_before(net, x, training):
    mean = tf.stop_gradient(tf.convert_to_tensor(net.b.moving_mean)) if training else 0.0
    return net.head(net.b(net.a(x)) - mean)


def read_averages_in_use(net, x, training):
    h = net.b(net.a(x))
    return net.head(h if training else h - tf.convert_to_tensor(net.b.moving_mean))


def counted(net, x):
    before, h = tf.convert_to_tensor(net.b.count), net.a(x)
    return net.head(before * h + net.b(h))


def rank_unknown(layer, h):
    return h, tf.reshape(h, tf.shape(h)[: 2 + tf.cast(0 * h[0, 0], tf.int32)])


class Centred(layers.Layer):
    """Subtracts the mean of a batch, and notes it as what to subtract from a single example."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        if x.shape[0] == 1:
            return (x - self.mean) * self.scale
        mean = tf.reduce_mean(x, axis=0)
        self.mean.assign(0.5 * self.mean + 0.5 * tf.stop_gradient(mean))
        return (x - mean) * self.scale


class Counts(layers.Layer):
    """Has a state that each call changes, and which is no part of what it returns where it is `silent`."""

    def __init__(self, silent=False, **options):
        super().__init__(**options)
        self.silent = silent
        self.count = self.add_weight(shape=(), initializer="ones", trainable=False, name="count")

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return x * self.scale * (1 if self.silent else self.count)


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
    "own call": (lambda: Own(plain_operations_between, b=dense("b")), "head", {"a", "b"}),
    "an output for an assertion": (
        lambda: Own(asserted, With(lambda _, h: (h, 1 + tf.reduce_sum(h**2, -1)))), "head", {"with"},
    ),
    "keys of two kinds": (
        lambda: Own(joined, With(lambda _, h: {1: h[:, :2], "x": h[:, 2:]}), dense("b")), "b", set(),
    ),
    "a loss": (
        lambda: chain(dense("a", kernel_regularizer="l2"), dense("b", activity_regularizer="l2")), "head", {"a"},
    ),
    "a state": (lambda: chain(dense("a"), Counts(name="counts"), dense("b")), "head", {"a"}),
    "a state that is read before": (
        lambda: Own(counted, b=Counts(silent=True, name="counts")), "head", {"a"},
    ),
    "averages that are read before": (
        lambda: InUse(read_averages_before, b=layers.BatchNormalization(momentum=0.5, name="norm")), "head", {"a"},
    ),
    "a meeting": (
        lambda: Own(lambda net, x: net.head(net.b(net.a(x)) * net.a.noted), With(noted), dense("b")), "head", {"b"},
    ),
    "a list": (lambda: Own(taps, With(collected)), "head", set()),
    "an attribute": (
        lambda: Own(lambda net, x: net.head(net.a(x) * (net.a.noted or 1)), With(remembered)), "head", set(),
    ),
    "an eager tensor": (
        lambda: Own(lambda net, x: net.head(net.b(x) + net.a(x)), With(lambda own, _: own.table), dense("b")), "head",
        {"b"},
    ),
    "complex numbers": (
        lambda: Own(
            lambda net, x: net.head(tf.math.abs(net.a(x))),
            With(lambda _, h: tf.signal.fft(tf.cast(h, tf.complex128))),
        ), "head", set(),
    ),
    "a rank": (lambda: Own(lambda net, x: net.head(net.a(x)[0]), With(rank_unknown)), "head", set()),
    "a tape": (lambda: Own(forced, units=1), "head", set()),
    "a tape, not trainable": (lambda: Own(forced, dense("a", trainable=False), units=1), "head", set()),
    "symbols": (lambda: Own(forced_by_symbols, units=1), "head", set()),
    "more features than there is before": (
        lambda: chain(layers.Conv1D(9, 1, name="a"), layers.Conv1D(1, 1, name="b"), layers.Flatten(), shape=(16, 1)),
        ["b", "head"], set(),
    ),
    "nothing frozen": (lambda: chain(dense("a")), "all", set()),
}  # fmt: skip


def tasks_for(model, count=2):
    rng = np.random.default_rng(0)
    ends = [None] if isinstance(model, Own) else model.inputs

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
    plans = [f._plan for parts in learner._runner._functions.values() for f, _ in parts._frozen.values() if f]
    return {plan.calls[number].layer.name for plan in plans for number in plan.answers}


VECTORIZED = ["convolutions", "one layer, three times", "Dropout within", "masks", "two inputs"]


@pytest.mark.parametrize(("net", "way"), [(net, "loop") for net in NETS] + [(net, "vectorize") for net in VECTORIZED])
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
    ("vectorize", False, IMAML(), PROXIMAL), ("vectorize", False, ESMAML(3), GradientDescent(3, 0.3)),
    ("loop", False, MAML(step_weights=(0.2, 0.3, 0.5)), PLAIN), ("loop", False, TruncMAML(2), PLAIN),
    ("loop", False, BinomTruncMAML(1, 2), PLAIN), ("loop", False, Reptile(), GradientDescent(3, 0.3)),
    ("loop", False, IMAML("neumann", 5), PROXIMAL), ("loop", False, FOBMAML("forward"), PROXIMAL),
    ("vectorize", True, FOBMAML(), PROXIMAL), ("map", False, FOBMAML("four_point"), PROXIMAL),
    ("vectorize", False, FOBMAML("tangent"), PROXIMAL),
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


WEIGHTS = (0.2, 0.3, 0.5)
PAIRS = {
    "multi-step": (PLAIN, MAML(step_weights=WEIGHTS), MAML("unrolled", WEIGHTS), 1e-12),
    "four_point": (PROXIMAL, FOBMAML("four_point", 1e-3), FOBMAML("tangent"), 1e-9),  # of order nu^4, rounding over nu
}


@pytest.mark.parametrize(("inner", "estimator", "other", "tolerance"), PAIRS.values(), ids=PAIRS)
def test_what_judges_the_query_set_often_agrees_with_another_method(float64, inner, estimator, other, tolerance):
    """tests/test_implicit.py compares the tangent with the implicit function theorem."""
    model = chain(dense("a"), layers.BatchNormalization(name="norm"), dense("b"))
    learner = mg.MetaLearner(model, "mse", inner, adapt="head", execution="loop", jit_compile=False)
    found = []
    for learner.estimator in (estimator, other):
        found.append(learner.meta_gradient(tasks_for(model)).gradients)
    assert answered(learner) == {"a", "norm", "b"}
    assert relative_error(*found) < tolerance


@pytest.mark.parametrize("normalization", ["stored", "per_step"])
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


def test_averages_that_are_read_elsewhere_are_not_left_behind(float64, monkeypatch):
    def make():
        norm = layers.BatchNormalization(name="norm")
        return mg.MetaLearner(Own(read_averages, b=norm), "mse", PLAIN, FOMAML(), adapt="head", execution="loop")

    found, names = with_and_without(monkeypatch, make, lambda o: o.meta_gradient(tasks_for(o.model)).gradients)
    assert names == [{"a"}, set()]
    assert relative_error(*found) < 1e-12


def test_averages_that_are_read_in_use_only(float64, monkeypatch):
    def make():
        model = InUse(read_averages_in_use, b=layers.BatchNormalization(momentum=0.5, name="norm"))
        learner = mg.MetaLearner(model, "mse", PLAIN, adapt="head")
        learner.compile("sgd")
        return learner

    def use(learner):
        return [point.mean["loss"] for point in learner.adaptation_curve(tasks_for(learner.model), count=2)]

    found, names = with_and_without(monkeypatch, make, use)
    assert names == [{"a"}, set()]
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("estimator", [MAML(step_weights=(0.2, 0.3, 0.5)), FOBMAML(), FOBMAML("tangent")], ids=repr)
def test_state_that_the_support_set_changes_and_the_query_set_reads(float64, monkeypatch, estimator):
    def make():
        model = chain(dense("a"), Centred(name="centred"))
        return mg.MetaLearner(model, "mse", PROXIMAL, estimator, adapt="head", execution="loop", jit_compile=False)

    def use(learner):
        tasks = tasks_for(learner.model)
        one = mg.Task(*tasks[:2], tasks.query_x[:, :1], tasks.query_y[:, :1])
        return learner.meta_gradient(one)[:2]

    found, names = with_and_without(monkeypatch, make, use)
    assert names == [{"a"}, set()]
    assert relative_error(*found) < 1e-12


def test_features_of_16_bits_are_summed_in_32(monkeypatch):
    def make():
        model = chain(dense("a", dtype="mixed_bfloat16"), dense("b", dtype="mixed_bfloat16"))
        return mg.MetaLearner(
            model, "mse", GradientDescent(60, 0.02), adapt="head", execution="loop", jit_compile=False
        )

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


def test_finite_differences_of_16_bit_layers(monkeypatch):
    """The weights have 16 bits, their features 32."""

    def make():
        model = chain(dense("a", dtype="bfloat16"), dense("b", dtype="bfloat16"))
        return mg.MetaLearner(model, "mse", PROXIMAL, FOBMAML(), adapt="head", execution="loop", jit_compile=False)

    (cut, whole), names = with_and_without(
        monkeypatch, make, lambda o: [tf.cast(g, tf.float32) for g in o.meta_gradient(tasks_for(o.model)).gradients]
    )
    assert names == [{"a", "b"}, set()]
    assert relative_error(cut, whole) < 0.05  # some roundings of 2^-9, over nu = 0.1


@pytest.mark.parametrize(
    ("estimator", "times"),
    [(MAML(), 3), (MAML(step_weights=(0.2,) * 5), 4), (FOBMAML(), 4), (FOBMAML("tangent"), 4)],
    ids=["MAML", "multi-step", "symmetric", "tangent"],
)
def test_frozen_layers_run_once_for_each_set_of_examples(estimator, times):
    """Once forward for features, once to pull back, and once on the query set, which has features if judged often."""
    model = chain(layers.Conv2D(3, 3, name="a"), layers.Flatten(), shape=(4, 4, 2))
    inner = ProximalGradientDescent(5, 0.3, weight=1.0)
    learner = mg.MetaLearner(model, "mse", inner, estimator, adapt="head", execution="loop")
    tasks = learner.check_tasks(tasks_for(model, count=1))
    learner.meta_gradient(tasks)
    learner.adapt(*(part[0] for part in tasks[:2]))

    def convolutions(kind):
        (function,) = (f for (name, _), f in learner._cache.functions.items() if name == kind)
        ((traced, _),) = function._made.values()
        return count_calls(traced.graph.as_graph_def(), "Conv2D")

    assert convolutions("gradient") == times
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
