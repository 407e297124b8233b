"""Checks of what a served model is sent: part of its graph, so that a bad request gets an error and no numbers.

Every function returns tensors that wait for their checks. They are to be used in place of those handed in: then no
optimisation of the graph can drop a check and keep the answer.
"""

from typing import Any

import tensorflow as tf


def support_set(x: tf.Tensor, y: tf.Tensor, ways: int | None, lead: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the support set, checked: as many targets as examples, at least one, finite, labels in 0 .. ways-1.

    Args:
        x: the examples, with `lead` axes before that of the examples.
        y: their targets.
        ways: the number of classes where targets are labels, else None.
        lead: 0, or 1 where the first axis is that of the tasks.
    """
    n, m = tf.shape(x)[: lead + 1], tf.shape(y)[: lead + 1]
    counted = "tasks, examples" if lead else "examples"
    agree = f"`support_x` and `support_y` must agree in their first axes. Received {counted}:"
    checks = [
        _require(tf.reduce_all(n == m), agree, n, "and", m),
        _require(tf.reduce_all(n > 0), f"A support set must have at least one example. Received {counted}:", n),
        _finite("support_x", x),
    ]
    if ways is None:
        checks.append(_finite("support_y", y))
    else:
        allowed = f"`support_y` must be in 0 .. {ways - 1}, the {ways} classes of the model. Received: from"
        inside = tf.reduce_all((y >= 0) & (y < ways))
        checks.append(_require(inside, allowed, tf.reduce_min(y), "to", tf.reduce_max(y)))
    return _waiting(checks, x, y)


def query_set(x: tf.Tensor) -> tf.Tensor:
    """Return the query examples, checked to be finite."""
    return _waiting([_finite("query_x", x)], x)[0]


def same_tasks(name: str, first: tf.Tensor, query_x: tf.Tensor) -> tf.Tensor:
    """Return the query examples of a batch of tasks, checked to be of as many tasks as `first`, and of one at least."""
    n, m = tf.shape(first)[0], tf.shape(query_x)[0]
    checks = [
        _require(n == m, f"`{name}` and `query_x` must have as many tasks. Received:", n, "and", m),
        _require(m > 0, "A batch must have at least one task. Received:", m),
    ]
    return _waiting(checks, query_x)[0]


def flat_weights(weights: tf.Tensor, size: int) -> tf.Tensor:
    """Return adapted weights `[..., size]`, checked to be as many as the model has, and finite."""
    received = tf.shape(weights)[-1]
    expected = f"`weights` must be what `adapt` returned: {size} numbers for a task. Received:"
    checks = [_require(received == size, expected, received), _finite("weights", weights)]
    return _waiting(checks, weights)[0]


def converged(weights: tf.Tensor) -> tf.Tensor:
    """Return the result of an adaptation, checked to be finite."""
    message = "Adaptation diverged: adapted weights are not finite. Scale the support set as in training."
    return _waiting([_require(tf.reduce_all(tf.math.is_finite(weights)), message)], weights)[0]


def _finite(name: str, x: tf.Tensor) -> tf.Operation:
    if not x.dtype.is_floating:
        return tf.no_op()
    bad = tf.math.count_nonzero(~tf.math.is_finite(x), dtype=tf.int32)  # the type that `Assert` needs no branch for
    return _require(bad == 0, f"`{name}` must be finite. Received: NaN or infinity, this many times:", bad)


def _require(condition: tf.Tensor, message: str, *received: Any) -> tf.Operation:
    return tf.debugging.Assert(condition, [message, *received], summarize=8)


def _waiting(checks: list[tf.Operation], *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    with tf.control_dependencies(checks):
        return tuple(tf.identity(t) for t in tensors)
