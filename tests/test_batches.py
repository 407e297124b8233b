"""Tasks in the types that users have: the same numbers, nothing compiled anew; what does not fit ends in a sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg

WAYS, SHAPE = 3, (4,)
Dense = keras.layers.Dense


class CountingLoss(keras.losses.SparseCategoricalCrossentropy):
    """Counts how often it is traced."""

    def __init__(self):
        super().__init__(from_logits=True)
        self.calls = 0

    def call(self, y_true, y_pred):
        self.calls += 1
        return super().call(y_true, y_pred)


def net(outputs=WAYS):
    return keras.Sequential([keras.Input(SHAPE), Dense(5, "tanh", name="body"), Dense(outputs, name="head")])


def make(loss=None, model=None, **options):
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"inner": mg.inner.GradientDescent(2, 0.1), "execution": "map", "jit_compile": False} | options
    return mg.MetaLearner(model or net(), loss, **options)


def batch(x_type="float32", y_type="int32", count=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=[2, count, 2 * WAYS, *SHAPE]).astype("float32").astype(x_type)
    y = np.tile(np.arange(WAYS), [count, 2]).astype(y_type)
    return mg.Task(x[0], y, x[1], y)


def one_hot(tasks):
    return tasks._replace(support_y=np.eye(WAYS)[tasks.support_y], query_y=np.eye(WAYS)[tasks.query_y])


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x_type, y_type", [("float64", "int32"), ("float32", "int64"), ("float64", "uint8")])
def test_another_type_is_not_traced_anew_and_gives_the_same_numbers(x_type, y_type):
    loss = CountingLoss()
    learner = make(loss)
    learner.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])

    def everything(tasks):
        gradient = learner.meta_gradient(tasks)
        stream = tf.data.Dataset.from_tensors(tuple(tasks)).repeat()
        history = mg.train(learner, stream, 1, verbose=0).history
        weights = learner.adapt(tasks.support_x[0], tasks.support_y[0])
        predictions = learner.predict_adapted(weights, tasks.query_x[0])
        means = learner.evaluate_tasks([tasks], 2).mean
        return [*gradient.gradients, gradient.loss, *history.values(), *weights, predictions, *means.values()]

    expected = everything(batch())
    traced = loss.calls
    found = everything(batch(x_type, y_type))
    assert loss.calls == traced > 0
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)


def test_compiled_again_it_uses_the_new_optimizer_and_metrics():
    learner, seed = make(), tf.constant(0, tf.int64)
    tasks = learner.check_tasks(batch())
    learner.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    learner.update(tasks, seed)
    learner.compile(keras.optimizers.SGD(1.0), metrics=["sparse_categorical_crossentropy"])
    before = learner.model.get_weights()
    assert list(learner.update(tasks, seed).metrics) == ["sparse_categorical_crossentropy"]
    assert all((one != two).any() for one, two in zip(before, learner.model.get_weights(), strict=True))


def test_a_float64_model_keeps_float64(float64):
    learner = make("mse", net(1))
    rng = np.random.default_rng(0)
    tasks = mg.Task(*(rng.normal(size=[2, 6, width]) for width in (4, 1, 4, 1)))
    for given, found in zip(tasks, learner.check_tasks(tasks), strict=True):
        assert found.dtype == tf.float64
        np.testing.assert_array_equal(found, given)


def test_targets_of_a_float32_model_may_be_float64():
    learner = make(lambda y, p: tf.reduce_mean(tf.square(y - p)), net(1))  # NumPy's default; no cast in the loss
    rng = np.random.default_rng(0)
    tasks = mg.Task(*(rng.normal(size=[2, 6, width]) for width in (4, 1, 4, 1)))
    assert np.isfinite(learner.meta_gradient(tasks).loss)


@pytest.mark.parametrize("given", ["int64", "uint8", "float64"])
def test_token_ids_stay_whole_numbers(given):
    layers = [keras.layers.Embedding(2**25 + 3, 1), keras.layers.Flatten(), Dense(WAYS)]
    model = keras.Sequential([keras.Input((2,), dtype="int32"), *layers])
    x = np.full([1, 2 * WAYS, 2], 200 if given == "uint8" else 2**25 + 1, given)  # float32 has no such number
    y = batch(count=1).support_y
    found = make(model=model).check_tasks(mg.Task(x, y, x, y))
    assert found.support_x.dtype == tf.int32
    np.testing.assert_array_equal(found.support_x, x.astype("int32"))
    with pytest.raises(ValueError, match="`support_x` must be whole numbers, as the model's inputs are. Received: dty"):
        make(model=model).adapt(np.full([2 * WAYS, 2], 0.5), y[0])


def test_inputs_by_name_get_the_type_of_their_own():
    ids, size = keras.Input((1,), name="z_ids", dtype="int32"), keras.Input((1,), name="a_size")
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(keras.layers.Embedding(9, 2)(ids)), size])
    learner = make(model=keras.Model([ids, size], Dense(WAYS)(joined)))
    x = {"z_ids": np.full([1, 6, 1], 3, "int64"), "a_size": np.full([1, 6, 1], 0.5)}
    y = batch(count=1).support_y
    found = learner.check_tasks(mg.Task(x, y, x, y)).support_x
    assert (found["z_ids"].dtype, found["a_size"].dtype) == (tf.int32, tf.float32)
    with pytest.raises(ValueError, match="an array for each of the model's inputs, z_ids, a_size. Received: 1"):
        learner.check_tasks(mg.Task(x["z_ids"], y, x["z_ids"], y))


@pytest.mark.parametrize("jit_compile", [True, False])
def test_inputs_by_name_and_by_place_may_take_turns(jit_compile):
    """Both are two tensors of one shape, in another order."""
    b, a = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    model = keras.Model([b, a], keras.layers.Dense(1)(keras.layers.Dense(4, "tanh")(b) + 2 * a[:, :1]))
    learner = mg.MetaLearner(model, "mse", mg.inner.GradientDescent(2, 0.05), jit_compile=jit_compile)
    first, second, y = np.random.default_rng(0).normal(size=(3, 2, 5, 3)).astype("float32")
    by_name, by_place = {"b": first, "a": second}, [first, second]
    results = [learner.meta_gradient(mg.Task(x, y[..., :1], x, y[..., :1])) for x in (by_name, by_place, by_name)]
    for result in results[1:]:
        assert np.isclose(result.loss, results[0].loss, rtol=1e-6)
        for one, other in zip(result.gradients, results[0].gradients, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_large_label_is_not_wrapped_into_the_ways():
    labels = batch(y_type="int64").query_y
    labels[0, 0] = 2**32 + 1
    with pytest.raises(ValueError, match="`query_y` must be in 0 .. 2, .* Received: 4294967297"):
        make().meta_gradient(batch()._replace(query_y=labels))


def test_lists_are_arrays():
    learner, tasks = make(), batch()
    weights = learner.adapt(tasks.support_x[0], tasks.support_y[0])
    for x in (tasks.support_x[0].tolist(), list(tasks.support_x[0])):
        for one, two in zip(learner.adapt(x, tasks.support_y[0].tolist()), weights, strict=True):
            np.testing.assert_array_equal(one, two)
    predictions = learner.predict_adapted(weights, tasks.query_x[0])
    np.testing.assert_array_equal(learner.predict_adapted(weights, tasks.query_x[0].tolist()), predictions)
    loss = learner.meta_gradient(mg.Task(*(part.tolist() for part in tasks))).loss
    assert float(loss) == float(learner.meta_gradient(tasks).loss)


def test_one_name_is_a_list_of_one():
    tasks = batch()
    one, many = (make(adapt=adapt).adapt(tasks.support_x[0], tasks.support_y[0]) for adapt in ("head", ["head"]))
    assert len(one) == len(many) == 4
    learner = make(adapt="head")
    adapted = learner.adapt(tasks.support_x[0], tasks.support_y[0])
    moved = [np.any(np.array(a) != b.numpy()) for a, b in zip(adapted, learner.model.weights, strict=True)]
    assert moved == [False, False, True, True]


def test_several_outputs_go_with_a_loss_that_takes_them():
    x = keras.Input(SHAPE)
    model = keras.Model(x, [Dense(WAYS)(x), Dense(1)(x)], name="twins")
    with pytest.raises(ValueError, match="needs a model with one output. Received: 'twins', which has 2. Give a func"):
        make(model=model)
    learner = make(lambda y, p: tf.reduce_mean(tf.square(y[0] - p[0])) + tf.reduce_mean(tf.square(p[1])), model)
    tasks = one_hot(batch())
    tasks = tasks._replace(support_y=(tasks.support_y,), query_y=(tasks.query_y,))
    assert np.isfinite(learner.meta_gradient(tasks).loss)


# Sentences ------------------------------------------------------------------------------------------------------------


CATEGORICAL = keras.losses.CategoricalCrossentropy(from_logits=True)
X, Y = batch().support_x[0], batch().support_y[0]


@pytest.mark.parametrize(
    "use, message",
    [
        (
            lambda: make().meta_gradient(batch()._replace(support_x=np.zeros([2, 6, 5]))),
            r"`support_x` must have the shape of the model's inputs, \(4,\). Received: \(5,\), in a batch of shape",
        ),
        (
            lambda: make().evaluate_tasks([batch()._replace(query_x=np.zeros([2, 6, 5]))], 2),
            r"`query_x` must have the shape of the model's inputs, \(4,\). Received: \(5,\)",
        ),
        (lambda: make().adapt(X[:, :2], Y), r"inputs, \(4,\). Received: \(2,\), in an array of shape \(6, 2\)"),
        (lambda: make().adapt(batch().support_x, batch().support_y), "a batch of tasks; hand in one .* support_x.0."),
        (lambda: make().adapt(X, Y[:4]), r"as many targets as inputs. Received: support_x \(6, 4\), support_y \(4,\)"),
        (lambda: make().adapt(X[0], Y[0]), r"shapes \[examples, ...\].* Received: support_x \(4,\), support_y \(\)"),
        (lambda: make().adapt(X[:0], Y[:0]), r"at least one support .* Received: support_x \(0, 4\)"),
        (lambda: make().adapt([[1.0], [1.0, 2.0]], Y), "`support_x` must be one array. Received: a list whose parts"),
        (lambda: make().adapt(X, ["a"] * 6), "`support_y` must hold numbers. Received: dtype string"),
        (
            lambda: make().adapt(X, np.eye(WAYS)[Y]),
            r"Received: \(3,\), .* One-hot targets need .*CategoricalCross",
        ),
        (
            lambda: make(CATEGORICAL).adapt(X, Y),
            r"one-hot targets \(SparseC.* takes labels\), \(3,\). Received",
        ),
        (lambda: make(CATEGORICAL).meta_gradient(batch()), r"shape of one-hot targets .* Received: \(\), in a batch"),
        (
            lambda: make().predict_adapted(net().get_weights(), X[:, :2]),
            "`query_x` must have the shape of the mod",
        ),
        (lambda: make().predict_adapted(net().get_weights()[1:], X), "`weights` must be the 4 arrays .* Received: 3"),
        (lambda: make().predict_adapted(X, X), "`weights` must be the 4 arrays .* Received: ndarray"),
        (lambda: make().predict_adapted(net(2).get_weights(), X), r"\(5, 3\) for '.*/kernel'. Received: \(5, 2\)"),
        (lambda: make("sparse_categorical_crossentropi"), "Did you mean 'sparse_categorical_crossentropy'"),
        (lambda: make().meta_gradient(batch()._replace(query_x=None)), "`query_x` must hold numbers. Received: None"),
        (
            lambda: make("mse", net(4)).meta_gradient(mg.Task(X, X, X, X)),
            r"`support_x` .* looks like one task; .* such as support_x\[None\]",
        ),
        (
            lambda: make("sparse_categorical_crossentropy"),
            r"takes probabilities.* last layer, 'head', .*SparseCategoricalCrossentropy\(from_logits=True\)",
        ),
        (lambda: make(keras.losses.BinaryCrossentropy()), "takes probabilities.*BinaryCrossentropy"),
        (lambda: make(keras.losses.binary_focal_crossentropy), "takes probabilities.*BinaryFocalCrossentropy"),
        (lambda: make(3), "`loss` must be a loss of `keras.losses`, its name, or a function .* Received: 3"),
        (lambda: make().compile("adamm"), "`optimizer` must be an .* Received: 'adamm'. Did you mean 'adam'"),
        (
            lambda: make().compile(metrics=["acuracy"]),
            "Received: 'acuracy'. Did you mean 'accuracy'",
        ),
        (lambda: make().compile(metrics="accuracy"), "`metrics` must be a list, .* Received: 'accuracy'"),
    ],
)
def test_what_does_not_fit_ends_in_a_sentence(use, message):
    with pytest.raises(ValueError, match=message) as error:
        use()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call, pointer",
    [
        (lambda learner: learner.save("learner.keras"), "mg.export.* learner.model.save"),
        (lambda learner: learner.to_json(), "mg.export"),
        (lambda learner: learner.export("folder"), r"mg.export\(learner, path\)"),
        (lambda learner: learner.fit(X, Y), "mg.train"),
        (lambda learner: learner.train_on_batch(X, Y), "mg.train"),
        (lambda learner: learner.evaluate(X, Y), "evaluate_tasks"),
        (lambda learner: learner.test_on_batch(X, Y), "evaluate_tasks"),
    ],
)
def test_methods_for_single_examples_point_to_those_for_tasks(call, pointer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotImplementedError, match=pointer) as error:
        call(make())
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_layer_frozen_after_the_learner_was_made_is_refused():
    model = net()
    learner = make(model=model, adapt="head")
    before = learner.adapt(X, Y)
    model.get_layer("body").trainable = False
    for use in (lambda: learner.adapt(X, Y), lambda: learner.meta_gradient(batch())):
        with pytest.raises(ValueError, match="frozen, thawed or changed since. Make a new mg.MetaLearner"):
            use()
    model.get_layer("body").trainable = True
    for value, old in zip(learner.adapt(X, Y), before, strict=True):
        np.testing.assert_array_equal(value, old)
