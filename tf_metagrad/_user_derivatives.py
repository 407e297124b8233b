"""Whether a model's own code differentiates, or vectorises, what it is just computing.

Kernels whose derivatives are recorded by hand are known to the tapes and accumulators around the model. A layer that
opens one of its own (a force, a Jacobian, a JVP), or maps with `tf.vectorized_map`, makes derivatives of derivatives of
them that nothing recorded, and terms would be lost in silence. There TensorFlow's own kernels compute.
"""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import forwardprop
from tensorflow.python.ops.parallel_for import control_flow_ops

from tf_metagrad._second_order import substituted

_inside = threading.local()


def differentiates() -> bool:
    """Return whether this thread is inside a tape, an accumulator or a map that was opened in the scope."""
    return getattr(_inside, "depth", 0) > 0


def _moving(by: int):
    def call(original, *args, **kwargs):
        _inside.depth += by
        return original(*args, **kwargs)

    return call


def _mapped(original, *args, **kwargs):
    _inside.depth += 1
    try:
        return original(*args, **kwargs)
    finally:
        _inside.depth -= 1


@contextlib.contextmanager
def user_derivatives() -> Iterator[None]:
    """Trace a model in this scope and `differentiates` knows what its code opens."""
    before = getattr(_inside, "depth", 0)
    _inside.depth = 0
    try:
        with (
            substituted(tf.GradientTape, "_push_tape", _moving(1)),
            substituted(tf.GradientTape, "_pop_tape", _moving(-1)),
            substituted(forwardprop.ForwardAccumulator, "_push_accumulator", _moving(1)),
            substituted(forwardprop.ForwardAccumulator, "_pop_accumulator", _moving(-1)),
            substituted(control_flow_ops, "_pfor_impl", _mapped),
        ):
            yield
    finally:
        _inside.depth = before
