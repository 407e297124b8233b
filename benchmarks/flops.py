"""Counts the convolutions and matrix products that a compiled step runs, in TensorFlow's own graph.

Loops count as often as they may run, which the graph says, calls of functions as often as they are made. What no output
needs is left out, as TensorFlow leaves it out.
"""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph

_WHILE = ("While", "StatelessWhile")
_CALL = ("PartitionedCall", "StatefulPartitionedCall")
_IF = ("If", "StatelessIf")
KINDS = {
    "Conv2D": "convolution", "Conv2DBackpropFilter": "filter gradient", "Conv2DBackpropInput": "input gradient",
    "MatMul": "product", "BatchMatMulV2": "product",
}  # fmt: skip


class Product(NamedTuple):
    """One convolution or product: its operation, attributes, and the shapes and values of its inputs.

    Attributes:
        kind: TensorFlow's name of the operation.
        attributes: what else is given to `tf.raw_ops`, sorted.
        inputs: name and shape of each input, or its value where it is a shape itself.
        flops: floating point operations, two for a multiplication and an addition.
    """

    kind: str
    attributes: tuple
    inputs: tuple
    flops: int


def count(function: tf.types.experimental.ConcreteFunction) -> collections.Counter[Product]:
    """Return how often the function runs each of its products.

    Raises:
        ValueError: the graph does not say how often a loop may run.
    """
    graph = function.graph
    library = {f.signature.name: f for f in graph.as_graph_def().library.function}
    return _count(graph, frozenset(range(len(graph.outputs))), library, {})


def _count(graph, wanted: frozenset[int], library, known: dict) -> collections.Counter[Product]:
    found: collections.Counter[Product] = collections.Counter()
    for op, used in _live(graph, wanted, library, known):
        if op.type in KINDS:
            found[_product(op)] += 1
        for name, outputs, times in _bodies(op, used):
            body, key = _body(name, library, known), (name, outputs)
            if key not in known:
                known[key] = _count(body, outputs, library, known)
            for product, number in known[key].items():
                found[product] += times * number
    return found


def _body(name: str, library, known: dict):
    if name not in known:
        known[name] = function_def_to_graph.function_def_to_graph(library[name], include_library_functions=True)
    return known[name]


def _bodies(op: tf.Operation, used: frozenset[int]) -> Iterator[tuple[str, frozenset[int], int]]:
    """Yield `(function, outputs that are used, times)` of what the operation calls; of a branch, the usual one."""
    if op.type in _CALL:
        yield op.get_attr("f").name, used, 1
    elif op.type in _WHILE:
        trips = tf.get_static_value(op.inputs[1])  # `maximum_iterations`; the first is TensorFlow's own counter
        if trips is None or trips < 0:
            raise ValueError(f"A loop must have a constant largest number of trips. Received: {op.name}, without one.")
        yield op.get_attr("body").name, frozenset(range(len(op.outputs))), int(trips)
    elif op.type in _IF:
        yield op.get_attr("else_branch").name, used, 1


def _live(graph, wanted: frozenset[int], library, known: dict) -> list[tuple[tf.Operation, frozenset[int]]]:
    """Return the operations that the wanted outputs need, and which outputs of each are used."""
    used, waiting = collections.defaultdict(set), [graph.outputs[i] for i in wanted]
    while waiting:
        tensor = waiting.pop()
        if tensor.value_index in used[tensor.op]:
            continue
        used[tensor.op].add(tensor.value_index)
        waiting += _needed(tensor.op, tensor.value_index, library, known)
    return [(op, frozenset(indices)) for op, indices in used.items()]


def _needed(op: tf.Operation, index: int, library, known: dict) -> list[tf.Tensor]:
    """Return the inputs that an output needs; a call's output may need few of them."""
    if op.type not in _CALL:
        return list(op.inputs)
    body = _body(op.get_attr("f").name, library, known)
    live = {o for o, _ in _live(body, frozenset([index]), library, known)}
    return [x for x, parameter in zip(op.inputs, body.inputs, strict=False) if parameter.op in live]


def _product(op: tf.Operation) -> Product:
    inputs = []
    for argument, x in zip(op.op_def.input_arg, op.inputs, strict=True):
        inputs.append((argument.name, _sizes(x) if x.dtype == tf.int32 else tuple(x.shape), x.dtype.name))
    names = ("strides", "padding", "transpose_a", "transpose_b", "adj_x", "adj_y")
    held = {a.name for a in op.op_def.attr}
    attributes = tuple((n, _plain(op.get_attr(n))) for n in names if n in held)
    return Product(op.type, attributes, tuple(inputs), _flops(op, inputs))


def _sizes(x: tf.Tensor) -> tuple[int, ...]:
    """Return the value of a tensor that states a shape."""
    if x.op.type in ("Shape", "ShapeN"):
        return tuple(x.op.inputs[x.value_index].shape)
    return tuple(tf.get_static_value(x).tolist())


def _plain(value):
    return tuple(value) if isinstance(value, list) else value.decode() if isinstance(value, bytes) else value


def _flops(op: tf.Operation, inputs: list[tuple]) -> int:
    shapes = {name: shape for name, shape, _ in inputs}
    if op.type.startswith("Conv2D"):  # each place of the convolution's output meets the whole filter
        filters = shapes.get("filter") or shapes["filter_sizes"]
        places = shapes.get("out_backprop") or tuple(op.outputs[0].shape)
        return 2 * int(np.prod(filters)) * int(np.prod(places[:-1]))
    first = next(iter(shapes.values()))
    flipped = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return 2 * int(np.prod(tuple(op.outputs[0].shape))) * first[-2 if flipped else -1]
