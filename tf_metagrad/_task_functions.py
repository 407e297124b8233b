"""Gradients and HVP of a task's loss, each traced once however often it is called.

Each names its operations by a scope of its own, for profiles: a scope around the call does not reach them.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_metagrad import _execution
from tf_metagrad._hvp import HessianVectorProduct, value_and_gradient
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
        with tf.name_scope("hvp"), self.kernels():
            gradient, product, (loss, state, _) = self.hvp(
                lambda w: self.loss(w, state, x, y, training=True), weights, self.adapting, vector
            )
        return gradient, product, state, loss
