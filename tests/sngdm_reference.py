"""SNGDM in NumPy, all variables as one vector, and the same steps by an optimizer."""

import keras
import numpy as np
import tensorflow as tf
from references import ravel

SHAPES = [(3, 2), (4,), ()]
SIZES = [6, 4, 1]
ETA = 0.05


def split(vector):
    parts = np.split(vector, np.cumsum(SIZES)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def make_case(steps=5, seed=3):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-2, 3, size=(steps, 1))
    return rng.normal(size=sum(SIZES)), scales * rng.normal(size=(steps, sum(SIZES)))


def reference(start, gradients, eta=ETA, beta=0.9, epsilon=1e-8, decay=0.0):
    """Return the weights after each step, all variables as one vector; `eta` is a number or one for each step."""
    path, m = [start], np.zeros_like(start)
    for g, rate in zip(gradients, np.broadcast_to(eta, len(gradients)), strict=True):
        m = beta * m + (1 - beta) * g
        path.append(path[-1] * (1 - decay * rate) - rate * m / (np.linalg.norm(m) + epsilon))
    return np.stack(path[1:])


def run(optimizer, start, gradients, **function):
    """Return the weights after each `optimizer.apply`, eager unless there are options for `tf.function`."""
    variables = [keras.Variable(v) for v in split(start)]
    optimizer.build(variables)
    apply = lambda *grads: optimizer.apply(list(grads), variables)  # noqa: E731
    apply = tf.function(apply, **function) if function else apply
    path = []
    for g in gradients:
        apply(*[tf.constant(part) for part in split(g)])
        path.append(ravel(variables))
    return np.stack(path)
