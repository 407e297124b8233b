"""One step of the inner loop transposed: how the adjoint of phi^{k+1} becomes that of phi^k.

With `_inner_loop`'s letters, v the adjoint of phi^{k+1} and w that of the slots s_{k+1}, the rule's own transpose turns
(-D_k v, w) into the adjoints v_G of G_k and w' of s_k, and

    v' = v + (H^k + lambda) v_G,   theta gets -lambda v_G,   D_k gets -u_k v,   lambda gets <v_G, phi^k - theta>,

where lambda = 0 without a proximal term. For plain gradient descent v_G = -D_k v, and v' = (I - H^k D_k) v.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._curvature import at_step
from tf_metagrad._inner_loop import Path
from tf_metagrad._types import Params


class Adjoint(NamedTuple):
    """Derivatives of the query loss while the loop is walked backwards.

    Attributes:
        weights: v, for all weights; those that do not adapt collect what reaches them at every step.
        slots: w.
        theta: what reached the initialisation by the proximal term, for the adapting weights; empty without one.
        hyperparameters: what reached the learned hyperparameters, the mean over the tasks.
    """

    weights: Params
    slots: Params
    theta: Params
    hyperparameters: Params

    def gradient(self, problem: Any, judged: Params = ()) -> list[tf.Tensor]:
        """Return the gradient of theta, the mean over the tasks; `judged` is what reached the query set's features."""
        weights = problem.add_to_adapting(self.weights, self.theta) if self.theta else self.weights
        return problem.total([*weights, *judged])


def adjoint_at_end(problem: Any, query_gradient: Params) -> Adjoint:
    """Return the adjoint of phi^K."""
    adapting = problem.adapting(query_gradient)
    slots = _tree.zeros_like(problem.inner.initial_slots(adapting))
    theta = _tree.zeros_like(adapting) if problem.inner.proximal else []
    return Adjoint(problem.support.widened(query_gradient), slots, theta, _tree.zeros_like(problem.learned))


def transposed_step(problem: Any, path: Path, index: tf.Tensor, step: tf.Tensor, adjoint: Adjoint) -> Adjoint:
    """Walk back over step k, the entry `index` of the recorded ones; see the module."""
    v, rates = problem.adapting(adjoint.weights), problem.rates_at(step)
    alpha = _common(problem, rates)
    if alpha is not None:
        gradient, product = at_step(problem, path, index, v)
        weights = _tree.subtract(adjoint.weights, _tree.scale(alpha, product))  # H v first: a pass over v less
        share = problem.rate_gradients(step, gradient, adjoint.weights)
        return Adjoint(weights, [], [], _tree.add(adjoint.hyperparameters, share))
    cotangent = [-d * x for d, x in zip(rates, v, strict=True)]  # of u_k
    if problem.inner.tolerance:
        cotangent = _tree.scale(step < path.taken, cotangent)
    v_g, w, u = cotangent, [], None
    if problem.inner.turns:
        v_g, w, u = _transposed_rule(problem, path, index, step, cotangent, adjoint.slots)
    gradient, product = at_step(problem, path, index, v_g)
    weights, theta = _tree.add(adjoint.weights, product), adjoint.theta
    if problem.inner.proximal:
        pull = _tree.scale(problem.weight(), v_g)
        weights, theta = problem.add_to_adapting(weights, pull), _tree.subtract(theta, pull)
        moved = _tree.subtract(_tree.at(path.iterates, index), problem.initial())
        share = problem.weight_gradient(_tree.dot(v_g, moved, problem.stacked))
    else:
        share = problem.rate_gradients(step, gradient if u is None else u, adjoint.weights)
    return Adjoint(weights, w, theta, _tree.add(adjoint.hyperparameters, share))


def _common(problem: Any, rates: Params) -> tf.Tensor | None:
    """Return alpha where the step is known to be v <- v - alpha H v, and H v does not overflow."""
    inner, (first, *others) = problem.inner, rates
    plain = not (inner.turns or inner.proximal or inner.tolerance or problem.functions.model.narrow)
    if not plain or any(rate.shape.rank for rate in rates):
        return None
    value = tf.get_static_value(first)
    same = (r is first or (value is not None and value == tf.get_static_value(r)) for r in others)
    return first if all(same) else None


def _transposed_rule(problem, path: Path, index: tf.Tensor, step: tf.Tensor, cotangent: Params, w: Params):
    """Return `(v_G, w', u_k)`: the update rule's transpose applied to the adjoints of u_k and s_{k+1}, and u_k."""
    gradient, slots = _tree.at(path.gradients, index), _tree.at(path.slots, index)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([gradient, slots])
        u, after = problem.inner.direction(gradient, slots, step)
    v_g, w = tape.gradient(
        [u, after], [gradient, slots], [cotangent, list(w)], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return v_g, w, u
