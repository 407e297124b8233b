"""The quadratic tasks of FO-B-MAML, appendix D.1, as linear regressions that a Keras model can learn.

f_i = f-hat_i = 1/2 phi' A_i phi + b_i' phi with A_i = X_i' X_i and b_i = -X_i' y_i is half the squared error of
X_i phi = y_i, but for a constant. So phi is the kernel of a Dense layer; support and query set are the same rows.
The closed forms are those of the paper.
"""

from typing import NamedTuple

import keras
import numpy as np

import tf_metagrad as mg


class Quadratics(NamedTuple):
    """Tasks `A [tasks, d, d]`, `b [tasks, d]` and the same as regressions `x [tasks, d, d]`, `y [tasks, d, 1]`."""

    A: np.ndarray
    b: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def tasks(self) -> mg.Task:
        """Return them as a batch of tasks."""
        return mg.Task(self.x, self.y, self.x, self.y)

    def solutions(self, theta: np.ndarray, weight: float) -> np.ndarray:
        """Return phi*_i(theta) = (A_i + lambda I)^-1 (lambda theta - b_i)."""
        ridge = self.A + weight * np.eye(len(theta))
        return np.linalg.solve(ridge, (weight * theta - self.b)[..., None])[..., 0]

    def meta_gradient(self, theta: np.ndarray, weight: float) -> np.ndarray:
        """Return the mean over the tasks of lambda (A_i + lambda I)^-1 (A_i phi*_i + b_i)."""
        ridge = self.A + weight * np.eye(len(theta))
        slopes = np.einsum("tij,tj->ti", self.A, self.solutions(theta, weight)) + self.b
        return weight * np.linalg.solve(ridge, slopes[..., None])[..., 0].mean(0)

    def outer_loss(self, theta: np.ndarray, weight: float) -> float:
        """Return F(theta), the mean of the half squared errors of phi*_i."""
        away = np.einsum("tij,tj->ti", self.x, self.solutions(theta, weight)) - self.y[..., 0]
        return float((away**2).sum(-1).mean() / 2)

    def best(self, weight: float) -> np.ndarray:
        """Return the theta at which the outer loss, a quadratic, is least."""
        size = self.A.shape[-1]
        offset = self.meta_gradient(np.zeros(size), weight)
        matrix = np.stack([self.meta_gradient(unit, weight) - offset for unit in np.eye(size)], axis=1)
        return np.linalg.solve(matrix, -offset)


def draw_quadratics(tasks: int, size: int, eigenvalues: tuple[float, float], seed: int) -> Quadratics:
    """Return tasks whose A_i have eigenvalues spread between the two given, in a random basis, and normal targets."""
    rng = np.random.default_rng(seed)
    bases = np.linalg.qr(rng.normal(size=(tasks, size, size)))[0]
    x = np.sqrt(np.geomspace(*eigenvalues, size))[:, None] * bases
    y = np.einsum("tij,tj->ti", x, rng.normal(size=(tasks, size)))[..., None]
    return Quadratics(np.einsum("tki,tkj->tij", x, x), -np.einsum("tki,tk->ti", x, y[..., 0]), x, y)


def half_squared_error(y_true, y_pred):
    """Return 1/2 |y_pred - y_true|^2."""
    return keras.ops.sum(keras.ops.square(y_pred - y_true)) / 2


def make_learner(size: int, inner: mg.inner.InnerOptimizer, estimator: mg.estimators.Estimator) -> mg.MetaLearner:
    """Return a learner whose weights are phi, at 0."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((size,)), layer])
    return mg.MetaLearner(model, half_squared_error, inner, estimator, jit_compile=False)
