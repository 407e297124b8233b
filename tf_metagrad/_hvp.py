"""Gradients and Hessian-vector products: the only file that nests tapes and accumulators.

The HVP is forward-over-reverse, H v = d/de grad(phi + e v) at e = 0: a `ForwardAccumulator` carries the tangent v
through a `GradientTape`. TensorFlow cannot do so through some graph-mode loops (LSTM, GRU); those take
reverse-over-reverse, H v = grad <grad(phi), v>. Both return the gradient too, which either computes on its way.

A loss function takes a full list of weights and returns `(loss, aux)`. `wrt` lists the indices of the weights that
adapt. Gradients and products are dense: `IndexedSlices` are converted, unused weights are filled with zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from tf_metagrad import _tree
from tf_metagrad._forward_rules import forward_rules
from tf_metagrad._types import Params

LossFunction = Callable[[list[tf.Tensor]], tuple[tf.Tensor, Any]]
_ZERO = tf.UnconnectedGradients.ZERO


def value_and_gradient(loss_fn: LossFunction, weights: Params, wrt: Sequence[int]):
    """Return `(loss, aux, gradients)`, the gradients of the weights listed in `wrt`."""
    weights = list(weights)
    chosen = [weights[i] for i in wrt]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(chosen)
        loss, aux = loss_fn(weights)
    gradients = tape.gradient(loss, chosen, unconnected_gradients=_ZERO)
    return loss, aux, [tf.convert_to_tensor(g) for g in gradients]


def forward_over_reverse(loss_fn: LossFunction, weights: Params, wrt: Sequence[int], vector: Params):
    """Return `(gradient, H v, aux)`, both for all weights; `vector` has one tensor for each index in `wrt`."""
    chosen = [weights[i] for i in wrt]
    with forward_rules(), tf.autodiff.ForwardAccumulator(chosen, list(vector)) as accumulator:
        _, aux, gradient = value_and_gradient(loss_fn, weights, range(len(weights)))
    return gradient, [tf.convert_to_tensor(h) for h in accumulator.jvp(gradient, unconnected_gradients=_ZERO)], aux


def reverse_over_reverse(loss_fn: LossFunction, weights: Params, wrt: Sequence[int], vector: Params):
    """The same as `forward_over_reverse`, by the tape alone."""
    weights = list(weights)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        _, aux, gradient = value_and_gradient(loss_fn, weights, range(len(weights)))
        product = _tree.dot([gradient[i] for i in wrt], vector)
    hvp = tape.gradient(product, weights, unconnected_gradients=_ZERO)
    return gradient, [tf.convert_to_tensor(h) for h in hvp], aux


class HessianVectorProduct:
    """Chooses the autodiff mode at the first trace and stays with it."""

    def __init__(self):
        """Start with forward-over-reverse."""
        self.mode = forward_over_reverse

    def __call__(self, loss_fn: LossFunction, weights: Params, wrt: Sequence[int], vector: Params):
        """Return `(gradient, H v, aux)`; see `forward_over_reverse`."""
        if self.mode is reverse_over_reverse:
            return reverse_over_reverse(loss_fn, weights, wrt, vector)
        try:
            return forward_over_reverse(loss_fn, weights, wrt, vector)
        except Exception as error:  # TensorFlow raises many kinds here; a fault of the model's own is raised again
            result = reverse_over_reverse(loss_fn, weights, wrt, vector)
            logging.info("No forward-over-reverse through this model (%s); using reverse-over-reverse.", error)
            self.mode = reverse_over_reverse
            return result
