"""Loops of a known number of steps, one after the other.

A loop of TensorFlow that has both a condition and a largest number of trips compares twice, and XLA then cannot tell
how many trips there are: on a GPU the host is asked before each. Here the number is the only condition.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def repeated(count: int, body: Callable, start: Sequence, going: Callable | None = None) -> Any:
    """Run `values = body(*values)` from `start` on, `count` times, or while `going(*values)` where that is given."""
    return tf.while_loop(going or (lambda *_: True), body, start, maximum_iterations=count, parallel_iterations=1)
