"""What an estimator sees: one task, or a stack of tasks, as pure functions of the adapting weights.

The estimators' arithmetic is the same with and without a leading axis of tasks, so each is written once. With
`stacked=True` every tensor that belongs to a task has that axis.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _curvature, _execution, _inner_loop, _tree
from tf_metagrad._inner_loop import Path
from tf_metagrad._set_loss import SetLoss
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._types import Params, Task
from tf_metagrad.inner import AdaptingWeights, InnerOptimizer


class Query(NamedTuple):
    """Query loss, predictions, the gradient g^K with respect to all weights, and the model's state afterwards."""

    loss: tf.Tensor
    predictions: Any
    gradient: Params
    state: Params


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        gradients: of the meta-parameters, the mean over the tasks.
        hyperparameter_gradients: of the learned hyperparameters, the mean over the tasks.
        query: the query result, for each task.
        diagnostics: how the solvers went, by name, one number for each task; see `Problem.diagnostics`.
    """

    gradients: Params
    hyperparameter_gradients: Params
    query: Query
    diagnostics: dict[str, tf.Tensor]


class Problem:
    """One task (or a stack of them) around the meta-parameters theta; see the module.

    A list "for all weights" has an entry for each, and where it comes from the support loss for each of its features
    behind them, see `SetLoss`; those of the query loss stand last. `total` makes gradients of theta of any.

    Args:
        functions: the learner's `TaskFunctions`.
        inner: the inner optimiser.
        weights: what it needs to know of the adapting weights.
        theta: all trainable weights.
        learned: the learned hyperparameters, if any.
        state: the model's non-trainable state for the first step; with a leading axis where `stacked`.
        task: the data; with a leading axis where `stacked`.
        draw_seed: returns `[2]`, the task's own seed; with a leading axis where `stacked`. Few estimators need it.
        execution: how stacked tasks and parallel HVPs are run.
        stacked: whether there is a leading axis of tasks.
        measured: whether the norm of the last inner gradient is wanted; with a tolerance it is known anyway.
        shares: `[tasks]`, where stacked: the factor of each task in a mean over the tasks; None leaves them alike.
    """

    def __init__(
        self, functions: TaskFunctions, inner: InnerOptimizer, weights: AdaptingWeights, theta: Params,
        learned: Params, state: Params, task: Task, draw_seed: Callable[[], tf.Tensor],
        execution: _execution.Execution, stacked: bool, measured: bool, shares: tf.Tensor | None = None,
    ):  # fmt: skip
        """Store the parts; see the class."""
        self.functions, self.inner, self.weights = functions, inner, weights
        self.theta, self.learned, self.state = list(theta), list(learned), list(state)
        self.task, self.draw_seed, self.execution, self.stacked = task, draw_seed, execution, stacked
        self.steps, self.measured, self.shares = inner.steps, measured, shares
        self.shared = [i for i in range(len(self.theta)) if i not in set(functions.adapting)]
        self.learns_rates = bool(self.learned) and not inner.proximal
        self.offset: Params | None = None
        self.awaited: Params = ()
        self.support, self.judged = self._support(), self._judged(cut=False)

    # Weights -----------------------------------------------------------------------------------------------------

    def moved(self, offset: Params) -> "Problem":
        """Return the problem around theta + offset; where stacked, each task has its own offset."""
        problem = copy.copy(self)
        problem.offset = offset
        problem.support, problem.judged = problem._support(), problem._judged(cut=False)
        return problem

    def judged_often(self) -> "Problem":
        """Return the problem for a query loss that is looked at again and again: it is cut as the support loss is."""
        problem = copy.copy(self)
        problem.judged = self._judged()
        return problem

    def after(self, others: Params) -> "Problem":
        """Return the problem, whose inner loop and shared weights wait until `others` are known."""
        problem = copy.copy(self)
        problem.awaited = others
        shared = [self.theta[i] for i in self.shared]
        problem.theta = self.merged(self.adapting(self.theta), _tree.after(others, shared) if shared else [])
        return problem

    def whole(self) -> "Problem":
        """Return the problem for a tape through the inner steps: no part of the support loss is computed ahead.

        For XLA the support gradient is traced anew at every call: a tape hands the shapes in a function's graph to the
        gradient's function as tensors, and XLA needs constants.
        """
        problem, functions = copy.copy(self), copy.copy(self.functions)
        if self.execution.jit_compile:
            functions.support_gradient = functions.support_gradient.python_function
        problem.support = self._support(functions, cut=False)
        return problem

    def _support(self, functions: TaskFunctions | None = None, cut: bool = True) -> SetLoss:
        return SetLoss(
            functions or self.functions, self._theta(), self.state, self.task.support_x, self.task.support_y, cut
        )

    def _judged(self, cut: bool = True) -> SetLoss:
        return SetLoss(self.functions, self._theta(), self.state, self.task.query_x, self.task.query_y, cut)

    def _theta(self) -> list[tf.Tensor]:
        """Return all weights of the initialisation, for each task where stacked."""
        theta = self.theta
        if self.stacked:
            count = tf.nest.flatten(self.task)[0].shape[0]
            theta = [tf.broadcast_to(t, [count, *t.shape]) for t in theta]
        return theta if self.offset is None else _tree.add(theta, self.offset)

    def adapting(self, full: Params) -> list[tf.Tensor]:
        """Return the entries of a full list that belong to weights that adapt."""
        return [full[i] for i in self.functions.adapting]

    def add_to_adapting(self, full: Params, part: Params) -> list[tf.Tensor]:
        """Return the full list with `part` added to the weights that adapt."""
        full = list(full)
        for index, p in zip(self.functions.adapting, part, strict=True):
            full[index] += p
        return full

    def merged(self, adapting: Params, shared: Params) -> list[tf.Tensor]:
        """Return the full list made of what belongs to weights that adapt and to those that don't."""
        return self.functions.merged(adapting, shared)

    def initial(self) -> list[tf.Tensor]:
        """Return phi^0: theta's adapting weights, repeated for each task where stacked."""
        return self.adapting(self._theta())

    @property
    def held(self) -> list[int]:
        """The indices of all that the inner loop holds constant: the shared weights, and the features behind them."""
        count = len(self.theta)
        return [*self.shared, *range(count, count + len(self.support.features))]

    @property
    def features(self) -> list[tf.Tensor]:
        """The features of both sets, in the order of their gradients."""
        return [*self.support.features, *self.judged.features]

    def held_sum(self, support: Params, query: Params) -> list[tf.Tensor]:
        """Return the sum of two gradients by what is held: of the support loss, and of a query loss judged often."""
        count = len(self.shared)
        return [*_tree.add(support[:count], query[:count]), *support[count:], *query[count:]]

    def _full(self, phi: Params) -> list[tf.Tensor]:
        """Return all weights around phi; where stacked, the shared ones are repeated as well."""
        return self.merged(phi, self._shared_weights(phi))

    def _shared_weights(self, phi: Params) -> list[tf.Tensor]:
        """Return the weights that do not adapt, for as many tasks as phi has."""
        if self.offset is not None:
            full = self._theta()
            return [full[i] for i in self.shared]
        shared = [self.theta[i] for i in self.shared]
        return [tf.broadcast_to(t, [phi[0].shape[0], *t.shape]) for t in shared] if self.stacked else shared

    def fixed(self):
        """Return what the support loss depends on that is the same at every step."""
        weights, x, y = self.support.arguments(self._theta())
        return [weights[i] for i in self.held], x, y

    def total(self, gradients: Params) -> list[tf.Tensor]:
        """Return the gradients of theta, the mean over the tasks; what reached features goes on to shared weights."""
        count, own = len(self.theta), len(self.theta) + len(self.support.features)
        gradients, parts = list(gradients[:count]), (gradients[count:own], gradients[own:])
        for loss, reached in zip((self.support, self.judged), parts, strict=True):
            if reached:
                reached = _tree.after(gradients, reached)  # the activations before are gone by then
                for i, share in zip(self.shared, loss.pulled_back(reached), strict=True):
                    gradients[i] += share
        return self.mean(gradients)

    def mean(self, tensors: Params) -> list[tf.Tensor]:
        """Return the mean over the tasks, each multiplied by its share."""
        if self.shares is not None:
            tensors = _tree.scale(self.shares, tensors)
        return [_mean(t) for t in tensors] if self.stacked else list(tensors)

    # Derivatives -------------------------------------------------------------------------------------------------

    def support_gradient(self, phi: Params, state: Params, held_only: bool = False):
        """Return `(gradient, new_state, loss)` on the support set, for the adapting weights or what is `held`."""
        wrt = tuple(self.held if held_only else self.functions.adapting)
        weights, x, y = self.support.arguments(self._full(phi))
        loss, state, _, gradient = self.support.functions.support_gradient(weights, state, x, y, wrt)
        return gradient, state, loss

    def query(self, phi: Params, state: Params, wrt: tuple[int, ...] | None = None) -> Query:
        """Return loss, predictions and gradient g^K of the query loss, for all weights or those listed in `wrt`.

        Where it is judged often, the features of the query set follow the weights.
        """
        wrt = tuple(range(len(self.theta) + len(self.judged.features))) if wrt is None else wrt
        weights, x, y = self.judged.arguments(self._full(phi))
        loss, state, predictions, gradient = self.judged.functions.query_gradient(weights, state, x, y, wrt)
        return Query(loss, predictions, gradient, state)

    def query_of_held(self, phi: Params, state: Params) -> Query:
        """Return what `query` does, the gradient for the shared weights and the query features."""
        count = len(self.theta)
        return self.query(phi, state, (*self.shared, *range(count, count + len(self.judged.features))))

    def query_loss(self, phi: Params, state: Params, training: bool = True):
        """Return a `Query` without gradient; with `training=False`, as a served model predicts."""
        with tf.name_scope("query_loss"):
            _, (loss, state, predictions) = self.functions.loss(self._full(phi), state, *self.task[2:], training)
        return Query(loss, predictions, [], state)

    def hessian_product(self, phi: Params, state: Params, vector: Params):
        """Return the support gradient at phi and H v, for all weights; v has one tensor for each adapting one."""
        return self.curvature(phi, state, vector)[:2]

    def curvature(self, phi: Params, state: Params, vector: Params):
        """Return what `hessian_product` does, the new state, and the support loss."""
        weights, x, y = self.support.arguments(self._full(phi))
        return self.support.functions.curvature(weights, state, x, y, vector)

    def _curvature(self, phi: Params, state: Params, step: tf.Tensor, adjoint: Params):
        return self.hessian_product(phi, state, _tree.multiply(self.rates_at(step), self.adapting(adjoint)))

    def parallel_curvature(self, phi: Params, state: Params, steps: tf.Tensor, adjoint: Params):
        """Return the support gradient and H D_k v, for all weights, of several independent steps.

        All arguments have one more first axis, and so have the results.
        """
        if not self.stacked:
            elements = (list(phi), list(state), steps, list(adjoint))
            return _execution.map_over(lambda args: self._curvature(*args), elements, self.execution.tasks)
        count = steps.shape[0]
        vectors = [_tree.multiply(self.rates_at(steps[i]), self.adapting(_tree.at(adjoint, i))) for i in range(count)]
        vector = [tf.concat(parts, axis=0) for parts in zip(*vectors, strict=True)]
        weights, x, y = self.support.arguments(self._full(_merge(phi)), count)
        results = self.support.functions.curvature(weights, _merge(state), x, y, vector)[:2]
        return tf.nest.map_structure(lambda t: tf.reshape(t, [count, -1, *t.shape[1:]]), results)

    # Hyperparameters ---------------------------------------------------------------------------------------------

    def rates_at(self, step: tf.Tensor) -> list[tf.Tensor]:
        """Return D_k, one tensor for each adapting weight."""
        dtypes = [t.dtype for t in self.adapting(self.theta)]
        rates = self.inner.rates_at(self.learned, step, self.weights, dtypes)
        return [tf.convert_to_tensor(rate, dtype) for rate, dtype in zip(rates, dtypes, strict=True)]

    def weight(self) -> tf.Tensor:
        """Return lambda, the weight of the proximal term."""
        return self.inner.weight_of(self.learned, self.theta[0].dtype)

    def rate_gradients(self, step: tf.Tensor, u: Params, adjoint: Params) -> list[tf.Tensor]:
        """Return step k's share of the rates' meta-gradient: phi^{k+1} = phi^k - D_k u_k, so dF/dD_k = -u_k * v."""
        if not self.learns_rates:
            return []
        cotangents = self.mean([-x * v for x, v in zip(u, self.adapting(adjoint), strict=True)])
        return self._learned_gradients(lambda: self.rates_at(step), cotangents)

    def weight_gradient(self, value: tf.Tensor) -> list[tf.Tensor]:
        """Return the meta-gradient of what lambda is learned by, given dF/dlambda for each task."""
        return self._learned_gradients(lambda: [self.weight()], self.mean([value])) if self.learned else []

    def _learned_gradients(self, function: Any, cotangents: Params) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.learned)
            values = function()
        cotangents = [tf.reduce_sum(c) if v.shape.rank == 0 else c for v, c in zip(values, cotangents, strict=True)]
        zero = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(values, self.learned, cotangents, unconnected_gradients=zero)
        return [tf.convert_to_tensor(g) for g in gradients]

    # The inner loop ----------------------------------------------------------------------------------------------

    def adapt(
        self, keep: int = 0, perturbation: tf.Tensor | None = None, stacked: bool = True, products: bool = False
    ) -> Path:
        """Run the K inner steps, recording the last `keep` iterates; `perturbation` is nu, see `_inner_objective`.

        With `products`, HVPs at the recorded steps follow, and their activations may be stored, see `_curvature`.
        """
        parts = _curvature.linearization(self, keep) if products else None
        return _inner_loop.adapt(self, keep, perturbation, stacked, parts)

    def diagnostics(self, path: Path, **more: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return how the inner loop went, for each task, and what the estimator adds.

        `inner_failed_step` is the number of steps after which the support loss was not finite (K: the weights at the
        end were not), or -1; where the inner optimiser has a tolerance, `inner_steps` counts the steps and
        `inner_residual` is the norm of the last gradient.
        """
        found = {"inner_failed_step": path.failed_step, **more}
        if self.inner.tolerance:
            found |= {"inner_steps": path.taken, "inner_residual": path.residual}
        return found


def _mean(t: tf.Tensor) -> tf.Tensor:
    """Return the mean along the first axis; XLA makes a division part of the sum, and float16 cannot."""
    return tf.reduce_mean(t, axis=0) if t.dtype == tf.float16 else tf.reduce_sum(t / t.shape[0], axis=0)


def _merge(stacked: Params) -> list[tf.Tensor]:
    """Return tensors `[a, b, ...]` as `[a * b, ...]`."""
    return [tf.reshape(t, [t.shape[0] * t.shape[1], *t.shape[2:]]) for t in stacked]
