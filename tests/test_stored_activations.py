"""HVPs from stored activations are the HVPs that compute them again, and those of central differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import relative_error
from test_exactness import check_against_differences, learner_for, tasks_for
from test_second_order import problem, stack

import tf_metagrad as mg
from tf_metagrad import inner
from tf_metagrad.estimators import IMAML, MAML, BinomMAML, BinomTruncMAML, TruncMAML

CONTRACTIONS = {"Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "MatMul"}


def parts_of(functions, weights, state, x, y):
    fixed = [], tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    return functions.linearization((weights, state), fixed, asked=True), fixed


def test_a_product_repeats_no_part_of_the_gradient():
    """Convolutions and products are most of the time: one forward and two backward, and two tangents of each."""
    body = [layers.Conv2D(16, 3, activation="relu"), layers.Conv2D(32, 3), layers.Flatten()]
    model = keras.Sequential([keras.Input((12, 12, 2)), *body, layers.Dense(300), layers.Dense(300)])
    functions, *rest, _ = problem(model)
    parts, fixed = parts_of(functions, *rest)
    (_, activations), vector = parts.once(tuple(rest[:2]), fixed), rest[0]

    def named(function, *args):
        operations = function.get_concrete_function(*args).graph.get_operations()
        return [op.name.split("/")[0] for op in operations if op.type in CONTRACTIONS]

    once = named(parts.once, tuple(rest[:2]), fixed)
    product = named(parts.product, activations, tuple(rest[:2]), fixed, vector)
    assert once == ["support_gradient"] * (3 * 4 - 1)  # nothing asks for the gradient of the inputs
    assert set(product) == {"hvp"}
    assert len(once + product) <= len(named(functions.curvature, *rest, vector))


ESTIMATORS = [MAML(), MAML(step_weights=(0.2, 0.3, 0.5)), TruncMAML(2), BinomMAML(2), BinomTruncMAML(1, 2)]


WAYS = [("loop", estimator) for estimator in ESTIMATORS] + [("map", BinomMAML(2)), ("vectorize", MAML())]


@pytest.mark.parametrize(("way", "estimator"), WAYS, ids=repr)
def test_estimators_agree(float64, way, estimator):
    check_agreement(lambda **options: learner_for("conv", learn="per_layer_and_step", **options)[0], way, estimator)


RULES = {
    "Adam": inner.Adam(3, 0.05),
    "proximal": inner.ProximalGradientDescent(3, 0.2, weight=0.7, learn="weight"),
    "tolerance": inner.ProximalGradientDescent(3, 0.2, weight=0.7, tolerance=0.7),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_inner_optimizers_agree(float64, rule):
    def make(**options):
        return mg.MetaLearner(learner_for("attention")[0].model, "sparse_categorical_crossentropy", rule, **options)

    for estimator in (MAML(), IMAML(iterations=4)) if rule.proximal else (MAML(),):
        check_agreement(make, "loop", estimator)


XLA = [("map", "tanh", BinomMAML(2)), ("vectorize", "tanh", MAML()), ("vectorize", "attention", TruncMAML(2))]


@pytest.mark.parametrize(("way", "kind", "estimator"), XLA, ids=repr)
def test_xla_agrees(float64, way, kind, estimator):
    check_agreement(lambda **options: learner_for(kind, **options)[0], way, estimator, jit_compile=True)


def check_agreement(make, way, estimator, **options):
    """Compare the meta-gradients with and without stored activations; they must have been stored."""
    options = {"execution": way, "jit_compile": False} | options
    learners = [make(store_activations=store, **options) for store in (True, False)]
    for a, b in zip(*(learner.meta_variables for learner in learners), strict=True):
        b.assign(a)
    tasks, found = tasks_for(learners[0].model.input_shape[1:]), []
    for learner in learners:
        learner.estimator = estimator
        result = learner.meta_gradient(tasks, seed=3)
        found.append([*result.gradients, result.loss])
    stacked = way == "vectorize" and isinstance(estimator, BinomMAML | BinomTruncMAML)  # done as one larger batch
    stored = [any(o._runner.functions(True, o.execution)._linearizations.values()) for o in learners]
    assert stored == [not stacked, False]
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("adapt", ["all", "dense"])
def test_maml_equals_central_differences(float64, adapt):
    like, tasks = learner_for("attention", learn="scalar")
    names = [layer.name for layer in like.model.layers if isinstance(layer, layers.Dense)]
    learner = mg.MetaLearner(
        like.model, like.task_loss, like.inner, adapt=names if adapt == "dense" else "all", execution="loop",
        store_activations=True,
    )  # fmt: skip
    check_against_differences(learner, tasks)


AUTO = [  # 3 steps of 6 support examples
    ("attention", MAML(), 18, "all", True), ("attention", MAML(), 17, "all", False),
    ("attention", TruncMAML(2), 12, "all", True), ("attention", MAML(), 18, "dense", False),
    ("conv", MAML(), 18, "all", False), ("conv", IMAML(), 6, "all", True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "estimator", "query", "adapt", "stored"), AUTO)
def test_auto_stores_where_it_is_worth_its_memory(float64, kind, estimator, query, adapt, stored):
    rule = RULES["proximal"] if isinstance(estimator, IMAML) else inner.GradientDescent(3, 0.2)
    model = learner_for(kind)[0].model
    names = [layer.name for layer in model.layers if isinstance(layer, layers.Dense)]
    chosen = names if adapt == "dense" else "all"
    learner = mg.MetaLearner(model, "sparse_categorical_crossentropy", rule, estimator, adapt=chosen)
    learner.meta_gradient(tasks_for(learner.model.input_shape[1:], query=query))
    functions = learner._runner.functions(True, learner.execution)
    assert any(functions._linearizations.values()) is stored


def test_sizes_that_are_not_known_while_tracing(float64):
    learner, tasks = learner_for("attention", execution="loop", jit_compile="auto")
    flat = [tf.convert_to_tensor(t) for t in tasks]
    specs = [tf.TensorSpec([t.shape[0], None, *t.shape[2:]], t.dtype) for t in flat]
    found = {}
    for store in ("auto", True):
        made = mg.MetaLearner(
            learner.model, learner.task_loss, learner.inner, execution="loop", store_activations=store
        )
        estimate = tf.function(lambda *t, made=made: made.estimate(mg.Task(*t), 0)[0], input_signature=specs)
        found[store] = estimate(*flat)
    assert relative_error(found["auto"], found[True]) < 1e-12


def test_inputs_by_position_and_by_name(float64):
    """Both have the same tensors in another order, and one learner may see both."""
    b, a = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    joined = layers.Concatenate()([layers.Dense(8, "tanh")(b), layers.Dense(5, "tanh")(a)])
    model = keras.Model([b, a], layers.Dense(3, "softmax")(joined))
    rng, first = np.random.default_rng(0), tasks_for((4,))
    inputs = {name: [rng.normal(size=x.shape) for x in (first.support_x, first.query_x)] for name in "ab"}
    named = [{name: inputs[name][i] for name in "ab"} for i in (0, 1)]
    listed = [[inputs["b"][i], inputs["a"][i]] for i in (0, 1)]
    found = []
    for store in (True, False):
        learner = mg.MetaLearner(
            model, "sparse_categorical_crossentropy", inner.GradientDescent(2, 0.3), execution="loop",
            jit_compile=False, store_activations=store,
        )  # fmt: skip
        for support, query in (listed, named):
            tasks = mg.Task(support, first.support_y, query, first.query_y)
            found.append(learner.meta_gradient(tasks).gradients)
    assert max(relative_error(gradient, found[-1]) for gradient in found) < 1e-13


def test_auto_stores_nothing_under_xla(float64):
    learner, tasks = learner_for("attention", execution="vectorize", jit_compile=True)
    learner.meta_gradient(tasks_for(tasks.query_x.shape[2:], query=18))
    assert not learner._runner.functions(True, learner.execution)._linearizations


def test_values_from_outside_are_not_stored():
    """A table that a layer holds is read where it is, at every product."""
    table = tf.constant(np.random.default_rng(0).normal(size=(3, 500)), tf.float32)

    class Tabled(layers.Layer):
        def call(self, x):
            return tf.tanh(x @ table)

    model = stack((4,), layers.Dense(3), Tabled())
    functions, *rest, direction = problem(model)
    parts, fixed = parts_of(functions, *rest)
    assert table.shape not in [spec.shape for spec in parts.activations]
    _, activations = parts.once(tuple(rest[:2]), fixed)
    expected = functions.curvature(*rest, direction)[1]
    assert relative_error(parts.product(activations, tuple(rest[:2]), fixed, direction), expected) < 1e-5


class Counting(layers.Layer):
    """Counts its calls outside of Keras' sight."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, x):
        def note():
            self.calls.append(1)
            return np.float64(1.0)

        return x * tf.ensure_shape(tf.numpy_function(note, [], tf.float64), [])


def test_side_effects_are_not_cut(float64, caplog):
    layer = Counting()
    model = stack((2,), layers.Dense(4, "tanh"), layer)
    losses = []
    for store in (True, False):
        learner = mg.MetaLearner(
            model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), inner.GradientDescent(2, 0.3),
            execution="loop", jit_compile=False, store_activations=store,
        )  # fmt: skip
        layer.calls.clear()
        losses.append(learner.meta_gradient(tasks_for((2,))).gradients)
        assert len(layer.calls) == 3 * (2 + 1 + 2)  # for each of 3 tasks: 2 steps, the query set, 2 HVPs
    assert relative_error(*losses) < 1e-13
    assert "cannot be stored: it has stateful operations, PyFunc" in caplog.text


@pytest.mark.parametrize("choice", ["always", 1, None])
def test_the_choice_is_checked(choice):
    with pytest.raises(ValueError, match=f"`store_activations` must be .* Received: store_activations={choice!r}"):
        learner_for("tanh", store_activations=choice)
