"""The rule of SNGDM and Keras' own options against NumPy in float64; clipping by Keras."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import ravel, relative_error
from sngdm_reference import ETA, SIZES, make_case, reference, run, split

from tf_metagrad.optimizers import SNGDM


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("how", [{}, {"jit_compile": False}, {"jit_compile": True}], ids=["eager", "graph", "xla"])
def test_closed_form(float64, how, beta):
    start, gradients = make_case()
    path = run(SNGDM(ETA, momentum=beta), start, gradients, **how)
    np.testing.assert_allclose(path, reference(start, gradients, beta=beta), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_convergence_on_a_ray(float64, beta):
    """On |theta|^2 / 2, m keeps to the ray through theta: each step shortens theta by exactly eta."""
    start, _ = make_case()
    variables, steps = [keras.Variable(v) for v in split(start)], int(np.linalg.norm(start) / ETA)
    optimizer = SNGDM(ETA, momentum=beta, epsilon=1e-300)
    for k in range(1, steps + 1):
        optimizer.apply([tf.convert_to_tensor(v) for v in variables], variables)
        expected = start * (1 - k * ETA / np.linalg.norm(start))
        np.testing.assert_allclose(ravel(variables), expected, atol=1e-13)
    assert steps > 20
    assert np.linalg.norm(ravel(variables)) < ETA


@pytest.mark.parametrize("epsilon", [1e-8, 1e-60])  # the second is zero in float32
@pytest.mark.parametrize("how", [{}, {"jit_compile": True}], ids=["eager", "xla"])
def test_zero_gradient(how, epsilon):
    start = np.float32(make_case()[0])
    path = run(SNGDM(ETA, epsilon=epsilon), start, np.zeros((2, start.size), np.float32), **how)
    assert np.array_equal(path, [start, start])


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
def test_range_of_float32(scale):
    start, gradients = (np.float32(v) for v in make_case(steps=1))
    path = run(SNGDM(ETA, momentum=0.5), 0 * start, scale * gradients)
    expected = reference(0 * np.float64(start), scale * np.float64(gradients), beta=0.5)
    assert relative_error(path, expected) < 1e-6


def test_mixed_types():
    start, gradients = make_case()
    types = ["float32", "float64", "float32"]
    variables = [keras.Variable(v, dtype=t) for v, t in zip(split(start), types, strict=True)]
    optimizer = SNGDM(ETA)
    for g in gradients:
        optimizer.apply([tf.constant(v, t) for v, t in zip(split(g), types, strict=True)], variables)
    assert [v.dtype for v in optimizer.momentums] == types
    np.testing.assert_allclose(ravel(variables), reference(start, gradients)[-1], atol=1e-6)


def test_no_gradient(float64):
    start, gradients = make_case(steps=2)
    variables, optimizer = [keras.Variable(v) for v in split(start)], SNGDM(ETA)
    optimizer.apply([tf.constant(v) for v in split(gradients[0])], variables)
    before, slot = ravel(variables), optimizer.momentums[1].numpy()
    moved = np.repeat([True, False, True], SIZES)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None if i == 1 else tf.constant(v) for i, v in enumerate(split(gradients[1]))], variables)
    expected = reference(start[moved], gradients[:, moved])[-1] - reference(start[moved], gradients[:, moved])[0]
    np.testing.assert_allclose((ravel(variables) - before)[moved], expected, rtol=1e-10)
    assert np.array_equal(ravel(variables)[~moved], before[~moved])
    assert np.array_equal(optimizer.momentums[1].numpy(), slot)
    with pytest.raises(ValueError, match="No gradients"):
        optimizer.apply([None] * 3, variables)


def test_building_again_keeps_the_state(float64):
    start, gradients = make_case(steps=3)
    optimizer, path = SNGDM(ETA), reference(start, gradients)
    variables = [keras.Variable(v) for v in split(start)]
    for g in gradients:
        optimizer.build(variables)
        optimizer.apply([tf.constant(v) for v in split(g)], variables)
    np.testing.assert_allclose(ravel(variables), path[-1], rtol=1e-12)
    assert len(optimizer.variables) == 2 + len(variables)  # the iteration, the rate, and a slot for each


def test_embedding(float64):
    table, optimizer = keras.Variable(np.ones((4, 2))), SNGDM(0.5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [2, 0, 2]) * [[1.0], [1.0], [3.0]])
    gradient = tape.gradient(loss, table.value)
    assert isinstance(gradient, tf.IndexedSlices)
    optimizer.apply([gradient], [table])
    dense = np.array([[1.0, 1.0], [0.0, 0.0], [4.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(table, 1 - 0.5 * dense / np.sqrt(34), rtol=1e-6)


# Keras' own options --------------------------------------------------------------------------------------------------


def clip_each(g, c):
    return np.concatenate([np.ravel(v * min(1, c / np.linalg.norm(v))) for v in split(g)])


OPTIONS = {
    "weight_decay": ({"weight_decay": 0.3}, lambda gs: gs, {"decay": 0.3}),
    "clipnorm": ({"clipnorm": 0.5}, lambda gs: [clip_each(g, 0.5) for g in gs], {}),
    "clipvalue": ({"clipvalue": 0.2}, lambda gs: np.clip(gs, -0.2, 0.2), {}),
    "global_clipnorm": (
        {"global_clipnorm": 0.5}, lambda gs: [g * min(1, 0.5 / np.linalg.norm(g)) for g in gs], {}
    ),
    "schedule": (
        {"learning_rate": keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.5, 0.25, 0.125])},
        lambda gs: gs, {"eta": [0.5, 0.5, 0.25, 0.25, 0.125]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}], ids=["eager", "xla"])
@pytest.mark.parametrize("name", OPTIONS)
def test_keras_options(float64, name, how):
    arguments, change, expected = OPTIONS[name]
    start, gradients = make_case()
    path = run(SNGDM(**{"learning_rate": ETA, **arguments}), start, gradients, **how)
    np.testing.assert_allclose(path, reference(start, change(gradients), **expected), rtol=1e-7, atol=1e-9)
    if name != "schedule":
        assert relative_error(path - start, reference(start, gradients) - start) > 1e-3


def test_gradient_accumulation(float64):
    start, gradients = make_case(steps=6)
    path = run(SNGDM(ETA, gradient_accumulation_steps=2), start, gradients)
    expected = reference(start, gradients.reshape(3, 2, -1).mean(1))
    np.testing.assert_allclose(path[1::2], expected, rtol=1e-12)
    np.testing.assert_array_equal(path[2::2], path[1:-1:2])


def test_moving_average(float64):
    start, gradients = make_case()
    variables, optimizer = [keras.Variable(v) for v in split(start)], SNGDM(ETA, use_ema=True, ema_momentum=0.75)
    for g in gradients:
        optimizer.apply([tf.constant(v) for v in split(g)], variables)
    first, *later = path = reference(start, gradients)
    np.testing.assert_allclose(ravel(variables), path[-1], rtol=1e-12)
    average = first
    for weights in later:
        average = 0.75 * average + 0.25 * weights
    optimizer.finalize_variable_values(variables)
    np.testing.assert_allclose(ravel(variables), average, rtol=1e-12)


@pytest.mark.parametrize(
    "rate", [0.1, keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)], ids=["float", "decay"]
)
def test_configuration_round_trip(rate):
    optimizer = SNGDM(rate, momentum=np.float32(0.5), epsilon=1e-3, weight_decay=0.2, use_ema=True, name="meta")
    text = json.dumps(keras.optimizers.serialize(optimizer))
    assert "tf_metagrad>SNGDM" in text
    for copy in (keras.optimizers.deserialize(json.loads(text)), SNGDM.from_config(optimizer.get_config())):
        assert type(copy) is SNGDM
        assert copy.get_config() == optimizer.get_config()
        assert (copy.momentum, copy.epsilon, copy.weight_decay, copy.name) == (0.5, 1e-3, 0.2, "meta")


def test_defaults():
    optimizer = SNGDM()
    assert (float(optimizer.learning_rate), optimizer.momentum, optimizer.epsilon) == (np.float32(0.01), 0.9, 1e-8)
    assert optimizer.name.startswith("sngdm")


@pytest.mark.parametrize("name, value", [
    ("momentum", -0.1), ("momentum", 1.0), ("momentum", float("nan")), ("momentum", None), ("momentum", True),
    ("epsilon", 0.0), ("epsilon", -1e-8), ("epsilon", float("inf")), ("epsilon", float("nan")), ("epsilon", "1e-8"),
])  # fmt: skip
def test_bad_input(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .* Received: {name}=.* Use "):
        SNGDM(**{name: value})


# Clipping by Keras ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.1, 0.999, 1.001, 30.0])
def test_clipped_descent(float64, ratio):
    """`SGD(eta, global_clipnorm=c)` and what the module says of it, at |g| = ratio c."""
    start, (g, *_) = make_case()
    c = np.linalg.norm(g) / ratio
    (end,) = run(keras.optimizers.SGD(ETA, global_clipnorm=c), start, [g])
    clipped = min(ETA, ETA * c / np.linalg.norm(g)) * g
    np.testing.assert_allclose(start - end, clipped, rtol=1e-7, atol=1e-12)
    (normalised,) = run(SNGDM(ETA * c, momentum=0.0), start, [g])
    assert (relative_error([start - normalised], [clipped]) < 1e-6) == (ratio >= 1)
    (soft,) = run(SNGDM(ETA * c, momentum=0.0, epsilon=c), start, [g])
    np.testing.assert_allclose(start - soft, clipped * max(ratio, 1) / (1 + ratio), rtol=1e-7, atol=1e-12)
    assert 0.5 <= max(ratio, 1) / (1 + ratio) <= 1
