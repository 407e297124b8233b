"""SNGDM in checkpoints, `fit`, a distribution strategy and a MetaLearner, against NumPy."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from estimator_cases import CASES
from references import ravel
from sngdm_reference import ETA, make_case, reference, split
from test_conformance import RATE, STEPS, WEIGHTS, make_learner, make_tasks, quadratics

import tf_metagrad as mg
from tf_metagrad.optimizers import SNGDM


def test_checkpoint_is_bit_exact(tmp_path):
    start, gradients = (np.float32(v) for v in make_case(steps=6))

    def make():
        variables, optimizer = [keras.Variable(v) for v in split(start)], SNGDM(ETA)
        optimizer.build(variables)
        return variables, optimizer, tf.train.Checkpoint(optimizer=optimizer, variables=[v.value for v in variables])

    def go(variables, optimizer, rows):
        for g in rows:
            optimizer.apply([tf.constant(v) for v in split(g)], variables)

    variables, optimizer, checkpoint = make()
    go(variables, optimizer, gradients[:3])
    path = checkpoint.save(str(tmp_path / "ckpt"))
    go(variables, optimizer, gradients[3:])
    others, other, checkpoint = make()
    checkpoint.restore(path).assert_consumed()
    assert other.iterations == 3
    go(others, other, gradients[3:])
    assert np.array_equal(ravel(others), ravel(variables))
    assert [v.path for v in optimizer.momentums] == [v.path for v in optimizer.variables[2:]]
    assert np.array_equal(ravel(other.variables), ravel(optimizer.variables))


def make_regression():
    rng = np.random.default_rng(5)
    return rng.normal(size=(8, 3)), rng.normal(size=(8, 1))


def regression_path(x, y, steps, eta):
    """Return kernel and bias after each step of SNGDM on the mean squared error of a linear layer that starts at 0."""
    x, theta = np.hstack([x, np.ones((len(x), 1))]), np.zeros(4)
    gradients = []
    for _ in range(steps):
        gradients.append(2 * x.T @ (x @ theta - y[:, 0]) / len(x))
        theta = reference(np.zeros(4), gradients, eta)[-1]
    return reference(np.zeros(4), gradients, eta)


def test_fit_and_save(float64, tmp_path):
    x, y = make_regression()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(SNGDM(0.1), "mse")
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    expected = regression_path(x, y, 6, 0.1)
    np.testing.assert_allclose(ravel(model.get_weights()), expected[2], rtol=1e-10)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is SNGDM
    assert np.array_equal(ravel(loaded.optimizer.variables), ravel(model.optimizer.variables))
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, epochs=3, verbose=0)
        np.testing.assert_allclose(ravel(each.get_weights()), expected[5], rtol=1e-10)
    assert np.array_equal(ravel(loaded.get_weights()), ravel(model.get_weights()))


def test_two_replicas(tmp_path):
    """Each replica has its own gradient; the norm is that of their sum, and no replica's own."""
    rng = np.random.default_rng(7)
    start, gradients, (x, y) = rng.normal(size=5), rng.normal(size=(4, 2, 5)), make_regression()
    np.savez(tmp_path / "in.npz", start=start, gradients=gradients, x=x, y=y)
    script = pathlib.Path(__file__).with_name("mirrored_sngdm.py")
    command = [sys.executable, str(script), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    assert out["replicas"] == 2
    expected = reference(start, gradients.sum(1), 0.1, decay=0.01)[-1]
    np.testing.assert_allclose(out["loop"], [expected, expected], rtol=1e-9)
    np.testing.assert_allclose(out["fit"], regression_path(x, y, 3, 0.1)[-1], rtol=1e-9)


def test_meta_optimizer(float64):
    estimator, closed_form, *_ = CASES[mg.estimators.MAML][0]
    learner, tasks = make_learner(estimator), make_tasks()
    learner.compile(SNGDM(0.1))
    path, gradients = [learner.model.get_weights()[0][:, 0]], []
    for seed in range(3):
        problems = quadratics(learner, tasks, np.full((STEPS, WEIGHTS), RATE))
        gradients.append(np.mean([closed_form(q) for q in problems], axis=0))
        learner.update(learner.check_tasks(tasks), tf.constant(seed, tf.int64))
        path.append(learner.model.get_weights()[0][:, 0])
    np.testing.assert_allclose(path[1:], reference(path[0], gradients, 0.1), rtol=1e-10)
