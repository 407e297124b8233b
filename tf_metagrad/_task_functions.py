"""Gradients and HVP of a task's loss, each traced once however often it is called.

Each names its operations by a scope of its own, for profiles: a scope around the call does not reach them.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tf_metagrad import _execution, _frozen
from tf_metagrad._features import Plan
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
        self._frozen: dict[Any, tuple[Frozen | None, frozenset[int] | None]] = {}

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

    def frozen(self, weights: Params, state: Params, x: Any, y: Any, changing: frozenset[int]):
        """Return `(Frozen or None, written)`: the loss in two parts, made once for arguments like these; see `_frozen`.

        Where tasks are stacked, so are the arguments. `changing` and `written` are indices of the state: of what other
        losses change, and of what this one does, None where that is not known.
        """
        arguments = list(weights), list(state), x, y
        if self.model.per_step or not _frozen.possible(self.model.model, self.adapting):
            return None, None
        key = _execution.signature(arguments), changing
        if key not in self._frozen:
            first = 1 if self.model.vectorized else 0
            specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[first:], t.dtype), arguments)
            plan, written = _frozen.cut(self.model, *specs[:2], self.adapting, *specs[2:], changing)
            self._frozen[key] = Frozen(self, plan) if plan else None, written
        return self._frozen[key]

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


class Frozen:
    """A loss in two parts, see `_frozen`: features, computed once for a task, and functions of them.

    Attributes:
        functions: gradient and HVP of h; its weights are those of the model, and then the features that depend on
            shared weights. In the place of x it takes x and the other features.
        features: `features(weights, state, x, y)` returns the former and the latter.
        pulled_back: `pulled_back(weights, state, x, y, cotangents) -> gradients`, of the shared weights.
    """

    def __init__(self, functions: TaskFunctions, plan: Plan):
        """Trace nothing yet."""
        self._parts, self._plan = functions, plan
        self.functions = TaskFunctions(_FromFeatures(functions.model, plan), functions.adapting, functions.kernels)
        options = {"autograph": False, "experimental_attributes": {"_noinline": True}}
        self.features = tf.function(self._features, **options)
        self.pulled_back = tf.function(self._pulled_back, **options)

    def _features(self, weights, state, x, y):
        def features(arguments):
            return self._plan.features(lambda: model.loss(*arguments, training=True))

        model, arguments = self._parts.model, (list(weights), list(state), x, y)
        with tf.name_scope("features"), self._parts.kernels():
            return _execution.map_over(features, arguments, "vectorize") if model.vectorized else features(arguments)

    def _pulled_back(self, weights, state, x, y, cotangents):
        shared = [w for i, w in enumerate(weights) if i not in set(self._parts.adapting)]
        with tf.name_scope("features_gradient"), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(shared)
            values, _ = self._features(weights, state, x, y)
        zero = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(values, shared, list(cotangents), unconnected_gradients=zero)
        return [tf.convert_to_tensor(g) for g in gradients]


class _FromFeatures:
    """A `FunctionalModel` that begins at features; see `Frozen.functions`."""

    def __init__(self, model: FunctionalModel, plan: Plan):
        self._model, self._plan = model, plan
        self.model, self.vectorized, self.narrow = model.model, model.vectorized, model.narrow

    def loss(self, weights: Params, state: Params, x: Any, y: Any, training: bool):
        count, (x, constants) = len(weights) - self._plan.count, x
        with self._plan.answered([*weights[count:], *constants]):
            return self._model.loss(weights[:count], state, x, y, training)
