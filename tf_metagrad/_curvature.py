"""Products with the Hessian of the support loss along the inner loop: activations are stored, or computed again.

An HVP computes the gradient at phi^k a second time. Where the inner loop stores what the gradient has found, see
`_linearization`, an HVP is a third less work; the memory is that of the support set's activations at every stored step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _execution, _tree
from tf_metagrad._linearization import Linearization
from tf_metagrad._types import Params


class Stored(NamedTuple):
    """The activations of recorded steps, to be read entry by entry, and what makes products of them."""

    linearization: Linearization
    activations: Sequence[Any]


def linearization(problem: Any, steps: int) -> Linearization | None:
    """Return the parts of the HVP where the last `steps` steps store their activations, else None.

    Left to itself (`"auto"`) a loop stores them where that was faster, in nets of attention without XLA, if the support
    sets of these steps are together no larger than the query set, and all weights adapt: what frozen layers compute is
    the same at every step, and would be stored at each.
    """
    choice = problem.execution.store_activations
    if choice == "auto":
        support, query = (_examples(problem, part) for part in ("support_x", "query_x"))
        attends = not problem.execution.jit_compile and _execution.attends(problem.functions.model.model)
        choice = attends and not problem.shared and None not in (support, query) and steps * support <= query
    return _parts(problem) if choice and steps else None


def _parts(problem: Any) -> Linearization | None:
    asked = problem.execution.store_activations is True
    return problem.support.functions.linearization((problem.initial(), list(problem.state)), problem.fixed(), asked)


def _examples(problem: Any, part: str) -> int | None:
    """Return the number of examples of a task, None where it is not known while tracing."""
    return tf.nest.flatten(getattr(problem.task, part))[0].shape[1 if problem.stacked else 0]


def at_point(problem: Any, phi: Params, state: Params) -> Callable[[Params], list[tf.Tensor]]:
    """Return `v -> H v`, for all weights, at one point at which there are many products.

    One set of activations is no more memory than an HVP needs; under XLA nothing was gained.
    """
    choice = problem.execution.store_activations
    store = not problem.execution.jit_compile if choice == "auto" else choice
    parts = _parts(problem) if store else None
    if parts is None:
        return lambda vector: problem.hessian_product(phi, state, vector)[1]
    moving = list(phi), list(state)
    _, activations = parts.once(moving, problem.fixed())
    return lambda vector: parts.product(activations, moving, problem.fixed(), list(vector))


def at_step(problem: Any, path: Any, index: tf.Tensor, vector: Params):
    """Return the support gradient of the adapting weights, as far as rates need it, and H v, at a recorded step."""
    phi, state = _tree.at(path.iterates, index), _tree.at(path.states, index)
    if path.stored is None:
        gradient, product = problem.hessian_product(phi, state, vector)
        return problem.adapting(gradient), product
    parts, activations = path.stored
    product = parts.product(_tree.at(activations, index), (phi, state), problem.fixed(), list(vector))
    return _tree.at(path.gradients, index), product


def in_parallel(problem: Any, path: Any, point: tuple[Params, Params], index: tf.Tensor, steps: tf.Tensor, v: Params):
    """Return the support gradients, as `at_step` does, and H D_k v, for all weights, of several independent steps.

    Args:
        problem: one task, or a stack of them.
        path: what was recorded; what is stored is read by `index`.
        point: phi^k and the state of each of the steps; empty where they are stored.
        index: `[n]`, the entries of the recorded steps.
        steps: `[n]`, their numbers k.
        v: the adjoint of each, `[n, ...]`, for all weights; the results have that axis, too.
    """
    if path.stored is None:
        gradients, products = problem.parallel_curvature(*point, steps, v)
        return problem.adapting(gradients), products

    def one(element):
        index, step, v = element
        return at_step(problem, path, index, _tree.multiply(problem.rates_at(step), problem.adapting(v)))

    return _execution.map_over(one, (index, steps, list(v)), problem.execution.tasks)
