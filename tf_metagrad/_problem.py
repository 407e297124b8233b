"""What an estimator sees: one task, or a stack of tasks, as pure functions of the adapting weights.

The estimators' arithmetic is the same with and without a leading axis of tasks, so each is written once. With
`stacked=True` every tensor that belongs to a task has that axis.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _execution, _tree
from tf_metagrad._hvp import HessianVectorProduct, value_and_gradient
from tf_metagrad._model import FunctionalModel
from tf_metagrad._types import Params, Task
from tf_metagrad.inner import AdaptingWeights, GradientDescent


class Path(NamedTuple):
    """The inner loop's result: phi^K, the state after it, and what was recorded on the way.

    Attributes:
        end: phi^K, the adapting weights.
        state: the model's non-trainable state after step K.
        iterates: phi^k of the last `keep` steps, stacked `[keep, ...]`.
        states: the state that each of those steps read, stacked `[keep, ...]`.
        gradients: support gradients of the steps before those, stacked `[K - keep, ...]`; only where rates are learned.
    """

    end: Params
    state: Params
    iterates: Params
    states: Params
    gradients: Params


class Query(NamedTuple):
    """Query loss, predictions, and the gradient g^K with respect to all weights."""

    loss: tf.Tensor
    predictions: Any
    gradient: Params


class Estimate(NamedTuple):
    """Gradients of the meta-parameters and of the learned rates (means over the tasks), and the query result."""

    gradients: Params
    rate_gradients: Params
    query: Query


class TaskFunctions:
    """Gradient and HVP of the loss of one task, or of a stack of tasks, each traced once however often it is called.

    For a stack only the forward pass is vectorised: the gradient and the HVP of the sum of the tasks' losses with
    respect to stacked weights are the stacked gradients and HVPs.
    """

    def __init__(self, model: FunctionalModel, adapting: list[int]):
        """`adapting` lists the indices of the weights that adapt; `model.vectorized` says whether tasks are stacked."""
        self.model, self.adapting = model, adapting
        self.hvp = HessianVectorProduct()
        options = {"autograph": False, "experimental_attributes": {"_noinline": True}}
        self.gradient = tf.function(self._gradient, **options)
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

    def _gradient(self, weights, state, x, y, wrt):
        _, (loss, state, predictions), gradient = value_and_gradient(
            lambda w: self.loss(w, state, x, y, training=True), weights, wrt
        )
        return loss, state, predictions, gradient

    def _curvature(self, weights, state, x, y, vector):
        return self.hvp(lambda w: self.loss(w, state, x, y, training=True), weights, self.adapting, vector)


class Problem:
    """One task (or a stack of them) around the meta-parameters theta; see the module.

    Args:
        functions: the learner's `TaskFunctions`.
        inner: the inner optimiser.
        weights: what it needs to know of the adapting weights.
        theta: all trainable weights.
        rates: the learned rates, if any.
        state: the model's non-trainable state for the first step; with a leading axis where `stacked`.
        task: the data; with a leading axis where `stacked`.
        execution: how stacked tasks and parallel HVPs are run.
        stacked: whether there is a leading axis of tasks.
    """

    def __init__(
        self, functions: TaskFunctions, inner: GradientDescent, weights: AdaptingWeights, theta: Params, rates: Params,
        state: Params, task: Task, execution: _execution.Execution, stacked: bool,
    ):  # fmt: skip
        """Store the parts; see the class."""
        self.functions, self.inner, self.weights = functions, inner, weights
        self.theta, self.rates, self.state = list(theta), list(rates), list(state)
        self.task, self.execution, self.stacked = task, execution, stacked
        self.steps = inner.steps
        self.shared = [i for i in range(len(self.theta)) if i not in set(functions.adapting)]

    # Weights -----------------------------------------------------------------------------------------------------

    def adapting(self, full: Params) -> list[tf.Tensor]:
        """Return the entries of a full list that belong to weights that adapt."""
        return [full[i] for i in self.functions.adapting]

    def initial(self) -> list[tf.Tensor]:
        """Return phi^0: theta's adapting weights, repeated for each task where stacked."""
        phi = self.adapting(self.theta)
        if self.stacked:
            count = tf.nest.flatten(self.task)[0].shape[0]
            phi = [tf.broadcast_to(p, [count, *p.shape]) for p in phi]
        return phi

    def _full(self, phi: Params) -> list[tf.Tensor]:
        """Return all weights around phi; where stacked, the shared ones are repeated as well."""
        full = list(self.theta)
        if self.stacked:
            full = [tf.broadcast_to(t, [phi[0].shape[0], *t.shape]) for t in full]
        for index, p in zip(self.functions.adapting, phi, strict=True):
            full[index] = p
        return full

    def mean(self, tensors: Params) -> list[tf.Tensor]:
        """Return the mean over the tasks."""
        return [tf.reduce_mean(t, axis=0) for t in tensors] if self.stacked else list(tensors)

    # Derivatives -------------------------------------------------------------------------------------------------

    def support_gradient(self, phi: Params, state: Params):
        """Return `(gradient, new_state)` of the support loss with respect to the adapting weights."""
        x, y = self.task.support_x, self.task.support_y
        _, state, _, gradient = self.functions.gradient(self._full(phi), state, x, y, tuple(self.functions.adapting))
        return gradient, state

    def query(self, phi: Params, state: Params, shared_only: bool = False) -> Query:
        """Return loss, predictions and gradient g^K of the query loss, for all or only for the shared weights."""
        wrt = tuple(self.shared if shared_only else range(len(self.theta)))
        x, y = self.task.query_x, self.task.query_y
        loss, _, predictions, gradient = self.functions.gradient(self._full(phi), state, x, y, wrt)
        return Query(loss, predictions, gradient)

    def query_loss(self, phi: Params, state: Params, training: bool = True):
        """Return `(loss, predictions)` on the query set; with `training=False`, as a served model predicts."""
        x, y = self.task.query_x, self.task.query_y
        _, (loss, _, predictions) = self.functions.loss(self._full(phi), state, x, y, training)
        return loss, predictions

    def curvature(self, phi: Params, state: Params, step: tf.Tensor, adjoint: Params):
        """Return the support gradient at phi and H D_k v, both for all weights."""
        return self.hessian_product(phi, state, _tree.multiply(self.rates_at(step), self.adapting(adjoint)))

    def hessian_product(self, phi: Params, state: Params, vector: Params):
        """Return the support gradient at phi and H v, both for all weights; v is one tensor for each adapting one."""
        return self.functions.curvature(self._full(phi), state, self.task.support_x, self.task.support_y, vector)

    def parallel_curvature(self, phi: Params, state: Params, steps: tf.Tensor, adjoint: Params):
        """Return what `curvature` returns for several independent steps; all arguments have one more first axis."""
        if not self.stacked:
            elements = (list(phi), list(state), steps, list(adjoint))
            return _execution.map_over(lambda args: self.curvature(*args), elements, self.execution.tasks)
        count = steps.shape[0]
        vectors = [_tree.multiply(self.rates_at(steps[i]), self.adapting(_tree.at(adjoint, i))) for i in range(count)]
        vector = [tf.concat(parts, axis=0) for parts in zip(*vectors, strict=True)]
        x, y = tf.nest.map_structure(lambda t: tf.concat([t] * count, 0), (self.task.support_x, self.task.support_y))
        results = self.functions.curvature(self._full(_merge(phi)), _merge(state), x, y, vector)
        return tf.nest.map_structure(lambda t: tf.reshape(t, [count, -1, *t.shape[1:]]), results)

    # Rates -------------------------------------------------------------------------------------------------------

    def rates_at(self, step: tf.Tensor) -> list[tf.Tensor]:
        """Return D_k, one tensor for each adapting weight."""
        dtypes = [t.dtype for t in self.adapting(self.theta)]
        return self.inner.rates_at(self.rates, step, self.weights, dtypes)

    def rate_gradients(self, step: tf.Tensor, gradient: Params, adjoint: Params) -> list[tf.Tensor]:
        """Return step k's share of the rates' meta-gradient: phi^{k+1} = phi^k - D_k g_k, so dF/dD_k = -g_k * v."""
        if not self.rates:
            return []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.rates)
            rates = self.rates_at(step)
        cotangents = self.mean([-g * v for g, v in zip(gradient, self.adapting(adjoint), strict=True)])
        cotangents = [tf.reduce_sum(c) if r.shape.rank == 0 else c for r, c in zip(rates, cotangents, strict=True)]
        return [
            tf.convert_to_tensor(g)
            for g in tape.gradient(rates, self.rates, cotangents, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        ]

    # The inner loop ----------------------------------------------------------------------------------------------

    def adapt(self, keep: int = 0) -> Path:
        """Run the K inner steps, recording the last `keep` iterates."""
        first = self.steps - keep
        phi, state, gradients = self._descend(0, first, self.initial(), self.state, "gradients" if self.rates else None)
        phi, state, recorded = self._descend(first, self.steps, phi, state, "iterates")
        count = len(self.functions.adapting)
        return Path(phi, state, recorded[:count], recorded[count:], gradients)

    def _descend(self, start: int, stop: int, phi: Params, state: Params, record: str | None):
        """Run steps start .. stop - 1; return phi, state, and the recorded tensors stacked over the steps."""
        if start == stop:
            return phi, state, []
        like = {"gradients": list(phi), "iterates": [*phi, *state], None: []}[record]
        arrays = [tf.TensorArray(t.dtype, stop - start, element_shape=t.shape) for t in like]

        def body(step, phi, state, arrays):
            with tf.name_scope("inner_step"):
                gradient, new_state = self.support_gradient(phi, state)
                values = {"gradients": gradient, "iterates": [*phi, *state], None: []}[record]
                arrays = [a.write(step - start, t) for a, t in zip(arrays, values, strict=True)]
                phi = _tree.subtract(phi, _tree.multiply(self.rates_at(step), gradient))
            return step + 1, phi, new_state, arrays

        _, phi, state, arrays = tf.while_loop(
            lambda step, *_: step < stop, body, (tf.constant(start), list(phi), list(state), arrays),
            maximum_iterations=stop - start, parallel_iterations=1,
        )  # fmt: skip
        return phi, state, [a.stack() for a in arrays]


def _merge(stacked: Params) -> list[tf.Tensor]:
    """Return tensors `[a, b, ...]` as `[a * b, ...]`."""
    return [tf.reshape(t, [t.shape[0] * t.shape[1], *t.shape[2:]]) for t in stacked]
