"""Batch-norm averages of each inner step (MAML++) against averages computed step by step in NumPy, in float64."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import relative_error

import tf_metagrad as mg

STEPS, MOMENTUM = 3, 0.8


def make_learner(normalization="per_step", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, name="body"), layers.BatchNormalization(momentum=MOMENTUM),
         layers.Activation("tanh"), layers.Dense(1, name="head")]
    )  # fmt: skip
    options = {"execution": "map", "jit_compile": False} | options
    learner = mg.MetaLearner(
        model, "mse", mg.inner.GradientDescent(STEPS, 0.1), normalization=normalization, **options
    )  # fmt: skip
    learner.compile(keras.optimizers.SGD(0.0))  # the weights stay, so that the averages have a closed form
    return learner


def make_tasks():
    rng = np.random.default_rng(1)
    xs, xq = rng.normal(size=(2, 2, 6, 2)) + 1
    return mg.Task(xs, np.sin(xs.sum(-1, keepdims=True)), xq, np.sin(xq.sum(-1, keepdims=True)))


def update(learner, tasks):
    learner.update(learner.check_tasks(tasks), tf.constant(0, tf.int64))


def expected_averages(updates):
    """Return moving mean and variance `[K + 1, 4]` after some updates on the same tasks."""
    (mean, variance), kept = features_of_each_step(), MOMENTUM**updates
    return (1 - kept) * mean, kept + (1 - kept) * variance


@functools.cache
def features_of_each_step():
    """Return mean and variance of the normalised features, from the weights that batch statistics adapt to."""
    batch, tasks = make_learner("batch"), make_tasks()
    mean, variance = np.zeros((STEPS + 1, 4)), np.zeros((STEPS + 1, 4))
    for xs, ys, xq, _ in zip(*tasks, strict=True):
        for step in range(STEPS + 1):
            weights = batch.adapt(xs, ys, steps=step) if step else batch.model.trainable_variables
            kernel, bias = np.asarray(weights[0]), np.asarray(weights[1])
            features = (xq if step == STEPS else xs) @ kernel + bias
            mean[step] += features.mean(0) / 2
            variance[step] += features.var(0) / 2
    return mean, variance


@pytest.mark.parametrize("execution", ["map", "vectorize", "loop"])
def test_averages_of_each_step(float64, execution):
    learner, tasks = make_learner(execution=execution), make_tasks()
    for updates in (1, 2):
        update(learner, tasks)
        for value, expected in zip(learner.step_statistics, expected_averages(updates), strict=True):
            assert relative_error([value], [expected]) < 1e-12
    assert np.array_equal(learner.model.layers[1].moving_mean, np.zeros(4))  # the model's own stay


@pytest.mark.parametrize("estimator", ["MAML('unrolled')", "BinomMAML(2)", "Reptile", "ESMAML(2)"])
def test_every_estimator_gathers_the_same_averages(float64, estimator):
    learner, tasks = make_learner(estimator=mg.estimators.parse(estimator)), make_tasks()
    update(learner, tasks)
    for value, expected in zip(learner.step_statistics, expected_averages(1), strict=True):
        assert relative_error([value], [expected]) < 1e-12


def test_meta_gradient_uses_batch_statistics(float64):
    tasks = make_tasks()
    learners = [make_learner("per_step"), make_learner("batch")]
    update(learners[0], tasks)
    results = [learner.meta_gradient(tasks) for learner in learners]
    assert relative_error(results[0].gradients, results[1].gradients) < 1e-12


def test_prediction_uses_the_averages_of_its_step(float64):
    """By hand: each step normalises with its own row, the query pass with the last, whatever else is in the batch."""
    learner, tasks = make_learner(), make_tasks()
    for _ in range(5):
        update(learner, tasks)
    (mean, variance), eps = [v.numpy() for v in learner.step_statistics], learner.model.layers[1].epsilon
    xs, ys, xq, yq = (part[0] for part in tasks)

    def predict(weights, x, step):
        kernel, bias, gamma, beta, head, offset = weights
        features = (tf.matmul(x, kernel) + bias - mean[step]) / np.sqrt(variance[step] + eps) * gamma + beta
        return tf.matmul(tf.tanh(features), head) + offset

    weights = [tf.convert_to_tensor(v) for v in learner.model.trainable_variables]
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(tf.square(predict(weights, xs, step) - ys))
        weights = [w - 0.1 * g for w, g in zip(weights, tape.gradient(loss, weights), strict=True)]
    adapted = learner.adapt(xs, ys)
    assert relative_error(adapted, weights) < 1e-12
    expected = predict(weights, xq, STEPS)
    assert relative_error([learner.predict_adapted(adapted, xq)], [expected]) < 1e-12
    assert relative_error([learner.predict_adapted(adapted, xq[:1])], [expected[:1]]) < 1e-12
    one = mg.Task(*(part[:1] for part in tasks))
    loss = learner.evaluate_tasks([one], count=1).mean["loss"]
    assert abs(loss - np.mean(np.square(expected - yq))) < 1e-12


def test_averages_are_exported_and_restored(float64, tmp_path):
    tasks = make_tasks()
    learner = make_learner()
    stream = tf.data.Dataset.from_tensors(mg.Task(*map(tf.constant, tasks))).repeat()
    mg.train(learner, stream, steps=2, epoch_steps=2, verbose=0, directory=tmp_path / "run")
    served = tf.saved_model.load(mg.export(learner, tmp_path / "saved")).signatures["adapt_and_predict"]
    xs, ys, xq, _ = (tf.constant(part[0]) for part in tasks)
    expected = learner.predict_adapted(learner.adapt(xs, ys), xq)
    assert relative_error([served(support_x=xs, support_y=ys, query_x=xq)["predictions"]], [expected]) < 1e-12
    again = make_learner()
    mg.train(again, stream, steps=2, epoch_steps=2, verbose=0, directory=tmp_path / "run")  # nothing left to do
    for a, b in zip(learner.step_statistics, again.step_statistics, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, make_learner().step_statistics[0])


def test_models_and_inner_optimisers_that_cannot():
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="BatchNormalization layers that are trainable"):
        mg.MetaLearner(plain, "mse", mg.inner.GradientDescent(2), normalization="per_step")
    model = keras.Sequential([keras.Input((2,)), layers.BatchNormalization(), layers.Dense(1)])
    with pytest.raises(ValueError, match="same number of inner steps"):
        mg.MetaLearner(
            model, "mse", mg.inner.ProximalGradientDescent(2, tolerance=0.1), normalization="per_step"
        )  # fmt: skip
