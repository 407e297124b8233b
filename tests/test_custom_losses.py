"""Losses that are functions of the user's own: ranks as in Keras, errors in a sentence, the targets that they take."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg

RNG = np.random.default_rng(0)


def squares(y_true, y_pred):
    return (y_true - y_pred) ** 2


def gathered(y_true, y_pred):
    """Cross-entropy of class labels, which only this function knows to be labels."""
    scores = tf.gather(tf.nn.log_softmax(y_pred), tf.cast(y_true, tf.int32), batch_dims=1)
    return -tf.reduce_mean(scores)


def learner_of(loss, outputs=1, execution="loop"):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(outputs)])
    return mg.MetaLearner(model, loss, mg.inner.GradientDescent(2, 0.1), execution=execution)


def tasks_of(y):
    x = RNG.normal(size=(2, 2, 6, 2))
    return mg.Task(x[0], y, x[1], y)


@pytest.mark.parametrize("execution", ["loop", "vectorize"])
def test_targets_without_the_last_axis_are_not_broadcast(execution, float64):
    y = RNG.normal(size=(2, 6))
    learner = learner_of(squares, execution=execution)
    flat = tasks_of(y)
    column = flat._replace(support_y=y[..., None], query_y=y[..., None])
    found, expected = learner.meta_gradient(flat), learner.meta_gradient(column)
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-12)
    for a, b in zip(found.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_ranks_are_those_that_keras_hands_to_a_function():
    """Of every pair of shapes that differ by a last axis of one, Keras' own function wrapper sees the same."""
    seen = []

    def loss(y_true, y_pred):
        seen.append((tuple(y_true.shape), tuple(y_pred.shape)))
        return tf.reduce_mean(y_pred) + 0.0 * tf.reduce_sum(y_true)

    for targets, outputs in (
        ((6,), (6, 1)),
        ((6, 1), (6, 1)),
        ((6, 4), (6, 4, 1)),
        ((6,), (6, 3)),
        ((6, 4, 1), (6, 4)),
    ):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(int(np.prod(outputs[1:])))])
        model.add(keras.layers.Reshape(outputs[1:]))
        model.compile(loss=loss, run_eagerly=True)
        seen.clear()
        model.test_on_batch(np.zeros((6, 2)), np.zeros(targets))
        (theirs,) = seen
        learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 0.1), execution="loop")
        seen.clear()
        learner.adapt(np.zeros((6, 2)), np.zeros(targets))
        assert set(seen) == {theirs}


NAMES = "mse poisson kl_divergence hinge dice tversky binary_crossentropy".split()
OTHERS = {
    "function": keras.losses.poisson,
    "object": keras.losses.Poisson(),
    "without a module": eval("lambda a, b: (a - b) ** 2", {}),
}


@pytest.mark.parametrize("loss", [*NAMES, *OTHERS])
def test_values_are_those_of_keras(loss):
    loss = OTHERS.get(loss, loss)
    x, y = RNG.uniform(size=(6, 2)).astype("float32"), RNG.integers(0, 2, size=6).astype("float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(loss=loss)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 1e-12), execution="loop")
    found = learner.meta_gradient(mg.Task(x[None], y[None], x[None], y[None])).loss
    assert float(found) == pytest.approx(model.test_on_batch(x, y), rel=1e-5)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda y_true, y_pred: np.mean(np.asarray(y_pred)), "made of operations of TensorFlow"),
        (lambda y_true, y_pred: None, "None values not supported"),
        (lambda y_true: 0.0, "positional argument"),
        (lambda y_true, y_pred: tf.matmul(y_pred, y_pred), "6"),
    ],
    ids=["numpy", "none", "one argument", "shapes"],
)
def test_a_loss_that_fails_is_said_in_a_sentence(loss, message):
    with pytest.raises(ValueError, match="`loss` must be a function") as raised:
        learner_of(loss).meta_gradient(tasks_of(RNG.normal(size=(2, 6, 1))))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_export_takes_the_targets_that_the_loss_took(tmp_path):
    learner = learner_of(gathered, outputs=3)
    x, y = RNG.normal(size=(6, 2)).astype("float32"), np.tile(np.arange(3), 2)
    weights = learner.adapt(x, y)
    with pytest.raises(ValueError, match="finite"):
        learner.adapt(x, np.full([6, 1], np.nan))
    learner.meta_gradient(mg.Task(x[None], y[None], x[None], y[None].astype("float32")))
    mg.export(learner, tmp_path / "model")
    served = tf.saved_model.load(tmp_path / "model").signatures["adapt"]
    found = served(support_x=tf.constant(x), support_y=tf.constant(y))["weights"]
    np.testing.assert_allclose(found, np.concatenate([np.ravel(w) for w in weights]), rtol=1e-6)


def test_an_axis_of_targets_that_was_of_several_lengths_is_free(tmp_path):
    learner = learner_of(
        lambda y_true, y_pred: tf.reduce_mean((tf.reduce_mean(y_true, 1, keepdims=True) - y_pred) ** 2)
    )
    x = RNG.normal(size=(6, 2)).astype("float32")
    for width in (3, 4):
        learner.adapt(x, np.zeros([6, width], "float32"))
    mg.export(learner, tmp_path / "model")
    served = tf.saved_model.load(tmp_path / "model").signatures["adapt"]
    assert served.structured_input_signature[1]["support_y"].shape.as_list() == [None, None]
    y = RNG.normal(size=(6, 5)).astype("float32")
    found = served(support_x=tf.constant(x), support_y=tf.constant(y))["weights"]
    np.testing.assert_allclose(found, np.concatenate([np.ravel(w) for w in learner.adapt(x, y)]), rtol=1e-5, atol=1e-6)
