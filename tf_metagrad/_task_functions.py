"""Gradients and HVP of a task's loss, each traced once however often it is called.

Each names its operations by a scope of its own, for profiles: a scope around the call does not reach them.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tf_metagrad import _execution
from tf_metagrad._hvp import HessianVectorProduct, value_and_gradient
from tf_metagrad._linearization import Inseparable, Linearization, linearize
from tf_metagrad._model import FunctionalModel
from tf_metagrad._types import Params


class TaskFunctions:
    """Gradient and HVP of the loss of one task, or of a stack of tasks.

    For a stack only the forward pass is vectorised: the gradient and the HVP of the sum of the tasks' losses with
    respect to stacked weights are the stacked gradients and HVPs.
    """

    def __init__(self, model: FunctionalModel, adapting: list[int], kernels: Callable = contextlib.nullcontext):
        """Store the parts.

        Args:
            model: `model.vectorized` says whether tasks are stacked.
            adapting: the indices of the weights that adapt.
            kernels: a scope in which gradients and HVPs are traced.
        """
        self.model, self.adapting, self.kernels = model, adapting, kernels
        self.hvp = HessianVectorProduct()
        options = {"autograph": False, "experimental_attributes": {"_noinline": True}}
        self.support_gradient = tf.function(functools.partial(self._gradient, "support_gradient"), **options)
        self.query_gradient = tf.function(functools.partial(self._gradient, "query_gradient"), **options)
        self.curvature = tf.function(self._curvature, **options)
        self._linearizations: dict[Any, Linearization | None] = {}

    def loss(self, weights: Params, state: Params, x: Any, y: Any, training: bool):
        """Return `(total, (losses, new_state, predictions))`."""
        if not self.model.vectorized:
            loss, (state, predictions) = self.model.loss(weights, state, x, y, training)
            return loss, (loss, state, predictions)
        losses, (state, predictions) = _execution.map_over(
            lambda args: self.model.loss(*args, training), (list(weights), list(state), x, y), "vectorize"
        )
        return tf.reduce_sum(losses), (losses, state, predictions)

    def _gradient(self, scope, weights, state, x, y, wrt):
        with tf.name_scope(scope), self.kernels():
            _, (loss, state, predictions), gradient = value_and_gradient(
                lambda w: self.loss(w, state, x, y, training=True), weights, wrt
            )
        return loss, state, predictions, gradient

    def _curvature(self, weights, state, x, y, vector):
        with tf.name_scope("hvp"):
            return self._along(weights, state, x, y, vector)

    def _along(self, weights, state, x, y, vector):
        with self.kernels():
            gradient, product, (loss, state, _) = self.hvp(
                lambda w: self.loss(w, state, x, y, training=True), weights, self.adapting, vector
            )
        return gradient, product, state, loss

    def linearization(self, moving: Any, fixed: Any, asked: bool) -> Linearization | None:
        """Return the HVP cut in two, made once for arguments like these: `(phi, state)` and `Problem.fixed()`.

        `once` returns `((gradient, new_state, loss), activations)`, the gradient for the weights that adapt. None where
        it cannot be cut; the log says so, as a warning if it was asked for.
        """
        key = _execution.signature((moving, fixed))
        if key not in self._linearizations:
            self._linearizations[key] = None
            try:
                scopes = "support_gradient", "hvp"
                self._linearizations[key] = linearize(self._split_curvature, moving, fixed, moving[0], scopes)
            except Inseparable as error:
                level = logging.WARNING if asked else logging.INFO
                logging.log(
                    level, "The activations of this model cannot be stored: %s. HVPs compute them again.", error
                )
        return self._linearizations[key]

    def _split_curvature(self, moving, fixed, vector):
        (phi, state), (shared, x, y) = moving, fixed
        gradient, product, state, loss = self._along(self.merged(phi, shared), state, x, y, vector)
        return product, ([gradient[i] for i in self.adapting], state, loss)

    def merged(self, adapting: Params, shared: Params) -> list[tf.Tensor]:
        """Return the full list made of what belongs to weights that adapt and to those that don't."""
        full, others = dict(zip(self.adapting, adapting, strict=True)), iter(shared)
        return [full[i] if i in full else next(others) for i in range(len(adapting) + len(shared))]
