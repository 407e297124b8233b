"""Symbols of the library, each named once: the paper's letter, the name in the code, the meaning.

| letter    | name               | meaning                                                                  |
|-----------|--------------------|--------------------------------------------------------------------------|
| theta     | `meta_params`      | the learned initialisation: the model's trainable variables, in order    |
| phi^k     | `iterates[k]`      | a task's weights after k inner steps; phi^0 = theta                      |
| K, alpha  | `steps`, `learning_rate` | length and step size of the inner loop                             |
| D_k       | `rates`            | rate of step k as a diagonal: alpha where a weight adapts, 0 where shared |
| l_trn     | support loss       | loss on the task's support (training) set                                |
| l_val     | query loss         | loss on the task's query (validation) set                                |
| g^K       | `query_gradient`   | gradient of the query loss at phi^K                                      |
| H^k       | -                  | Hessian of the support loss at phi^k, met as Hessian-vector product (HVP) |
| v         | `adjoint`          | the vector that the products (I - H^k D_k) act on, g^K at first          |
| G_k, u_k  | `gradient`, `u`    | gradient of the inner objective at phi^k; the update rule's direction    |
| lambda    | `weight`           | weight of the proximal term lambda/2 |phi - theta|^2 of the inner objective |
| nu        | `perturbation`     | weight of the query loss in FO-B-MAML's perturbed inner objective        |
| -         | `learned`          | hyperparameters that are learned together with theta                     |
| L, C      | `truncation`, `horizon` | order kept by Trunc/Binom; how many last Hessians the hybrid keeps  |
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

Params = Sequence[tf.Tensor]
"""A flat list of tensors, in the order of the model's variables."""


class Task(NamedTuple):
    """One few-shot task, or a batch of tasks with one more leading axis.

    Attributes:
        support_x: `[support, ...]`, the examples that a task adapts on.
        support_y: `[support, ...]`, their targets.
        query_x: `[query, ...]`, the examples that the adapted weights are judged on.
        query_y: `[query, ...]`, their targets.
    """

    support_x: Any
    support_y: Any
    query_x: Any
    query_y: Any


class Snapshot(NamedTuple):
    """Everything of a learner that running tasks reads: theta, the learned hyperparameters, the model's state."""

    theta: Params
    learned: Params
    state: Params


class MetaGradient(NamedTuple):
    """The mean over a batch of tasks of what an estimator returns.

    Attributes:
        gradients: one tensor for each of `MetaLearner.meta_variables`, in that order.
        loss: scalar, the query loss after adaptation.
        metrics: scalar for each compiled metric, on the query predictions after adaptation.
        diagnostics: how the solvers went, one number for each task. `inner_failed_step` is -1, or the number of inner
            steps after which the support loss was not finite (then an error was raised). An inner optimiser with a
            tolerance adds `inner_steps` and `inner_residual`, the norm of the gradient at the end; IMAML adds
            `solver_iterations` and the relative `solver_residual`.
    """

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    metrics: dict[str, tf.Tensor]
    diagnostics: dict[str, tf.Tensor] = {}  # noqa: RUF012  never changed


class Solution(NamedTuple):
    """What the inner loop found for one task.

    Attributes:
        weights: the adapted weights, in the order of the model's trainable variables.
        steps: steps taken.
        residual: norm of the gradient of the inner objective at the weights.
        stopped_by: `"tolerance"` or `"steps"`.
    """

    weights: list[tf.Tensor]
    steps: int
    residual: float
    stopped_by: str


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; TensorFlow's go on with a trace of the graph."""
    return (str(getattr(error, "message", None) or error).strip() or type(error).__name__).splitlines()[0]
