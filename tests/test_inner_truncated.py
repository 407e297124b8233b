"""TruncMAML and FOMAML through inner optimisers with memory: gradients of early steps are constants. In float64."""

import keras
import numpy as np
import pytest
from inner_references import linear_net, loops, meta_gradient
from references import ravel, relative_error

import tf_metagrad as mg
from tf_metagrad.estimators import FOMAML, MAML, TruncMAML
from tf_metagrad.inner import Adam, Momentum, ProximalGradientDescent

K, WEIGHTS, RATE, BETA = 4, 3, 0.15, 0.8
RULES = {
    "momentum": Momentum(K, RATE, None, BETA),
    "momentum, learned": Momentum(K, RATE, "per_parameter", BETA),
    "nesterov": Momentum(K, RATE, None, BETA, nesterov=True),
    "adam": Adam(K, RATE, None, BETA, 0.9),
    "adam, learned": Adam(K, RATE, "per_layer_and_step", BETA, 0.9),
    "proximal": ProximalGradientDescent(K, RATE, 1.5),
}


def make(inner):
    rng = np.random.default_rng(1)
    x, query_x = rng.normal(size=(2, 2, 6, WEIGHTS))
    y, query_y = rng.normal(size=(2, 2, 6, 1))
    model = keras.Sequential([keras.Input((WEIGHTS,)), keras.layers.Dense(1, use_bias=False)])
    learner = mg.MetaLearner(model, "mse", inner, execution="vectorize", jit_compile=False)
    for v in learner.hyperparameters:
        v.assign(v * rng.uniform(0.6, 1.4, size=v.shape))
    return learner, mg.Task(x, y, query_x, query_y)


@pytest.mark.parametrize("name", RULES)
def test_truncated_equals_complex_steps_with_early_gradients_held(float64, name):
    learner, tasks = make(RULES[name])

    def estimate(estimator):
        learner.estimator = estimator
        return ravel(learner.meta_gradient(tasks).gradients)

    found = [estimate(TruncMAML(order)) for order in range(K + 1)]
    for order, value in enumerate(found):
        expected = meta_gradient(learner, loops(learner, tasks, linear_net, [0], truncation=order))
        for part, reference in zip(np.split(value, [WEIGHTS]), (expected[0], expected[1:]), strict=True):
            if len(part):
                assert relative_error([part], [ravel(reference)]) < 1e-10
    assert np.array_equal(found[0], estimate(FOMAML()))
    assert relative_error([found[K]], [estimate(MAML())]) < 1e-13
    for one, other in zip(found, found[1:], strict=False):
        assert relative_error([one], [other]) > 1e-4


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("order", range(K + 1))
def test_truncated_momentum_equals_block_matrices(float64, nesterov, order):
    """(phi, m) moves by a matrix where H acts, and only by constants before: the adjoint of (phi, m) shows phi's part.

    G = A phi - b, m' = beta m + G, phi' = phi - alpha m' (Polyak) or phi - alpha (G + beta m') (Nesterov).
    """
    learner, tasks = make(RULES["nesterov" if nesterov else "momentum"])
    learner.estimator = TruncMAML(order)
    w0, expected, eye = learner.model.get_weights()[0][:, 0], [], np.eye(WEIGHTS)
    for x, y, query_x, query_y in zip(*tasks, strict=True):
        a, b = 2 * x.T @ x / 6, 2 * x.T @ y[:, 0] / 6
        if nesterov:
            top = [eye - RATE * (1 + BETA) * a, -RATE * BETA**2 * eye]
            shift = np.concatenate([RATE * (1 + BETA) * b, -b])
        else:
            top, shift = [eye - RATE * a, -RATE * BETA * eye], np.concatenate([RATE * b, -b])
        block = np.block([top, [a, BETA * eye]])
        z = np.concatenate([w0, np.zeros(WEIGHTS)])
        for _ in range(K):
            z = block @ z + shift
        v = np.concatenate([2 * query_x.T @ (query_x @ z[:WEIGHTS] - query_y[:, 0]) / 6, np.zeros(WEIGHTS)])
        expected.append((np.linalg.matrix_power(block.T, order) @ v)[:WEIGHTS])
    assert relative_error(learner.meta_gradient(tasks).gradients, [np.mean(expected, axis=0)]) < 1e-12


@pytest.mark.parametrize("name", ["momentum, learned", "adam, learned"])
def test_first_order_rates_are_those_of_the_directions_taken(float64, name):
    """dF/dD_k = -u_k g^K for every step k, by FOMAML."""
    learner, tasks = make(RULES[name])
    learner.estimator = FOMAML()
    reference = meta_gradient(learner, loops(learner, tasks, linear_net, [0], truncation=0))
    assert relative_error(learner.meta_gradient(tasks).gradients[1:], reference[1:]) < 1e-11
