"""Padded steps count nothing, in losses, their gradients and metrics, as in Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_exactness import check_against_differences

import tf_metagrad as mg

STEPS = np.array([[[1, 2, 0, 0], [3, 1, 2, 0]]] * 2)  # 0 is padding


def tasks_of(dtype="float32"):
    rng = np.random.default_rng(0)
    y = [rng.normal(size=(2, 2, 4, 1)).astype(dtype) for _ in range(2)]
    return mg.Task(STEPS, y[0], STEPS[:, ::-1], y[1])


def net(policy=None):
    keras.utils.set_random_seed(0)
    body = [layers.Embedding(5, 3, mask_zero=True), layers.Dense(2, "tanh"), layers.Dense(1)]
    if policy:
        body = [type(layer).from_config(layer.get_config() | {"dtype": policy}) for layer in body]
    return keras.Sequential([keras.Input((4,), dtype="int32"), *body])


@pytest.mark.parametrize("execution", ["vectorize", "map", "loop"])
@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
def test_losses_and_metrics_are_those_of_keras(loss, execution):
    model, tasks = net(), tasks_of()
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 1e-9), execution=execution, jit_compile=False)
    learner.compile("sgd", metrics=["mse", "mae"])
    model.compile("sgd", loss, metrics=["mse", "mae"])
    found, updated = learner.evaluate_tasks(tasks, count=2), learner.meta_gradient(tasks)
    for task in range(2):
        expected = model.evaluate(tasks.query_x[task], tasks.query_y[task], verbose=0, return_dict=True)
        assert {k: v[task] for k, v in found.values.items()} == pytest.approx(expected, rel=1e-5)
    both = model.evaluate(np.concatenate(tasks.query_x), np.concatenate(tasks.query_y), verbose=0, return_dict=True)
    assert {"loss": float(updated.loss), **{k: float(v) for k, v in updated.metrics.items()}} == pytest.approx(
        both, rel=1e-5
    )
    plain = np.mean((model.predict(tasks.query_x[0], verbose=0) - tasks.query_y[0]) ** 2)
    assert abs(plain - found.values["loss"][0]) > 0.01  # what counting the padding would give


def test_16_bit_predictions_keep_their_mask():
    tasks, losses = tasks_of(), []
    for policy in (None, "mixed_bfloat16"):
        learner = mg.MetaLearner(net(policy), keras.losses.MeanSquaredError(), mg.inner.GradientDescent(1, 1e-9))
        losses.append(float(learner.meta_gradient(tasks).loss))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    plain = np.mean((net().predict(tasks.query_x.reshape(-1, 4), verbose=0) - tasks.query_y.reshape(-1, 4, 1)) ** 2)
    assert abs(plain - losses[0]) > 0.05 * losses[0]  # what counting the padding would give


def test_all_padding_is_no_loss():
    learner = mg.MetaLearner(net(), "mse", mg.inner.GradientDescent(1, 0.1))
    found = learner.meta_gradient(tasks_of()._replace(query_x=0 * STEPS))
    assert float(found.loss) == 0 and all(np.all(g == 0) for g in found.gradients)


@pytest.mark.parametrize("execution", ["vectorize", "loop"])
@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError(dtype="float64")])
def test_meta_gradient_through_masks(loss, execution, float64):
    learner = mg.MetaLearner(net(), loss, mg.inner.GradientDescent(3, 0.3), execution=execution, jit_compile=False)
    check_against_differences(learner, tasks_of("float64"))


def test_several_outputs_and_a_task_that_is_left_out():
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), dtype="int32")
    hidden = layers.Dense(2, "tanh")(layers.Embedding(5, 3, mask_zero=True)(x))
    ends = {
        "a": layers.Dense(1, name="a")(hidden),
        "b": layers.Dense(1, name="b")(layers.GlobalAveragePooling1D()(hidden)),
    }
    model, mse, tasks = keras.Model(x, ends), keras.losses.MeanSquaredError(), tasks_of()
    support_y, query_y = ({"a": y, "b": y[:, :, 0]} for y in (np.copy(tasks.support_y), tasks.query_y))
    support_y["b"][1] = 1e30
    tasks = tasks._replace(support_y=support_y, query_y=query_y)
    learner = mg.MetaLearner(
        model, lambda y, p: mse(y["a"], p["a"]) + mse(y["b"], p["b"]), mg.inner.GradientDescent(1, 1e-9)
    )
    metrics = {end: ["mse", "mae"] for end in ends}
    learner.compile(keras.optimizers.SGD(0.0), metrics=metrics)
    stream = tf.data.Dataset.from_tensors(tasks)
    found = mg.train(learner, stream, 1, on_nonfinite="skip", verbose=0).history
    assert found.pop("skipped_tasks") == [1]
    model.compile("sgd", {end: mse for end in ends}, metrics=metrics)
    alone = {end: y[0] for end, y in query_y.items()}
    expected = model.evaluate(tasks.query_x[0], alone, verbose=0, return_dict=True)
    assert len(found) == 5 and {name: value for name, (value,) in found.items()} == pytest.approx(
        {name: expected[name] for name in found}, rel=1e-5
    )
