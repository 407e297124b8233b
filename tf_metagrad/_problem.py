"""What an estimator sees: one task, or a stack of tasks, its losses and its inner loop.

The estimators' arithmetic is the same with and without a leading axis of tasks, so each is written once. With
`stacked=True` every tensor that belongs to a task has that axis.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _curvature, _execution, _inner_loop, _tree
from tf_metagrad._inner_loop import Path
from tf_metagrad._losses import Losses, Query
from tf_metagrad._set_loss import SetLoss
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._types import Params, Task
from tf_metagrad.inner import AdaptingWeights, InnerOptimizer


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


class Problem(Losses):
    """One task (or a stack of them) around the meta-parameters theta; see the module.

    Args:
        functions: see `Losses`; so are `theta`, `state`, `task`, `stacked` and `shares`.
        inner: the inner optimiser.
        weights: what it needs to know of the adapting weights.
        learned: the learned hyperparameters, if any.
        draw_seed: returns `[2]`, the task's own seed; with a leading axis where `stacked`. Few estimators need it.
        execution: how stacked tasks and parallel HVPs are run.
        measured: whether the norm of the last inner gradient is wanted; with a tolerance it is known anyway.
    """

    def __init__(
        self, functions: TaskFunctions, inner: InnerOptimizer, weights: AdaptingWeights, theta: Params,
        learned: Params, state: Params, task: Task, draw_seed: Callable[[], tf.Tensor],
        execution: _execution.Execution, stacked: bool, measured: bool, shares: tf.Tensor | None = None,
    ):  # fmt: skip
        """Store the parts; see the class."""
        super().__init__(functions, theta, state, task, stacked, shares)
        self.inner, self.steps, self.weights, self.learned = inner, inner.steps, weights, list(learned)
        self.draw_seed, self.execution, self.measured = draw_seed, execution, measured
        self.learns_rates = bool(self.learned) and not inner.proximal
        self.awaited: Params = ()

    # The problem, changed ----------------------------------------------------------------------------------------

    def moved(self, offset: Params) -> "Problem":
        """Return the problem around theta + offset; where stacked, each task has its own offset."""
        problem = copy.copy(self)
        problem.offset = offset
        problem.support = problem._support()
        problem.judged = problem._query()
        return problem

    def judged_often(self) -> "Problem":
        """Return the problem for a query loss that is looked at again and again: it is cut as the support loss is."""
        problem = copy.copy(self)
        problem.judged = self._query(cut=True)
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
        problem.support = SetLoss(functions, (), self.state, self.task.support_x, self.task.support_y, cut=False)
        return problem

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


def _merge(stacked: Params) -> list[tf.Tensor]:
    """Return tensors `[a, b, ...]` as `[a * b, ...]`."""
    return [tf.reshape(t, [t.shape[0] * t.shape[1], *t.shape[2:]]) for t in stacked]
