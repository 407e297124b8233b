"""What depends on what in a traced function."""

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf


def inputs_of(traced: Any, arguments: Any) -> Any:
    """Return the tensors that stand for the arguments in a traced function, in the structure of these."""
    return tf.nest.pack_sequence_as(arguments, traced.inputs[: len(tf.nest.flatten(arguments))])


def dependent_on(sources: Iterable[tf.Tensor], operations: list[tf.Operation]) -> set[Any]:
    """Return the references of the tensors that depend on a source, the sources among them."""
    found = {t.ref() for t in sources}
    for op in operations:  # in the order of their making: inputs come before what reads them
        if any(t.ref() in found for t in op.inputs):
            found |= {t.ref() for t in op.outputs}
    return found


def leading_to(wanted: Iterable[tf.Tensor], stop: Callable[[tf.Tensor], bool]) -> list[tf.Operation]:
    """Return the operations that the wanted tensors depend on, not going beyond those where `stop`."""
    found, waiting = {}, [t for t in wanted if not stop(t)]
    while waiting:
        op = waiting.pop().op
        if op.name not in found:
            found[op.name] = op
            waiting += [t for t in op.inputs if not stop(t)]
    return list(found.values())
