"""The gradient of the inner objective, nu l_val + l_trn + lambda/2 |phi - theta|^2.

Support and query gradient come one after the other, the larger set's first: where most activations are held, no
gradient is. nu is the perturbation, None without; lambda is 0 without a proximal term.
"""

from typing import Any

import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._types import Params


def inner_gradient(problem: Any, phi: Params, state: Params, perturbation: tf.Tensor | None = None):
    """Return `(G, new_state, support loss)`, G the gradient at phi; see the module."""
    late = phi  # what waits for the first gradient
    if perturbation is None:
        gradient, new_state, loss = problem.support_gradient(phi, state)
    elif _size(problem.task.query_x) >= _size(problem.task.support_x):
        slope = _query_slope(problem, phi, state, perturbation)
        late = _tree.after(slope, phi)
        gradient, new_state, loss = problem.support_gradient(late, state)
        gradient = _tree.add(gradient, slope)
    else:
        gradient, new_state, loss = problem.support_gradient(phi, state)
        late = _tree.after(gradient, phi)
        gradient = _tree.add(gradient, _query_slope(problem, late, state, perturbation))
    return pulled(problem, gradient, late), new_state, loss


def pulled(problem: Any, gradient: Params, phi: Params) -> Params:
    """Return the gradient at phi with that of the proximal term, if there is one."""
    if not problem.inner.proximal:
        return gradient
    return _tree.add(gradient, _tree.scale(problem.weight(), _tree.subtract(phi, problem.initial())))


def _query_slope(problem: Any, phi: Params, state: Params, perturbation: tf.Tensor) -> list[tf.Tensor]:
    query = problem.query(phi, state, tuple(problem.functions.adapting))
    return _tree.scale(perturbation, query.gradient)


def _size(data: Any) -> int:
    return sum(t.shape.num_elements() or 0 for t in tf.nest.flatten(data))
