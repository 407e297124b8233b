"""A function that is linear in one of its arguments, cut in two: what does not depend on it, and the rest.

Forward-over-reverse autodiff computes a gradient, and beside it the tangents that a vector causes. The former does not
depend on the vector. Computed once, with its activations kept, it serves every product with the Hessian at that point,
which is then left with the tangents: two thirds of the operations. JAX has the same as `jax.linearize`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad._graphs import dependent_on, inputs_of, leading_to

_FEW = 1024  # numbers; what one operation makes of fewer takes less time than to be stored
_VIEWS = {"ExpandDims", "Identity", "Reshape", "Squeeze", "Unpack"}
_ONE_PASS = {"AddV2", "Cast", "Mul", "Neg", "RealDiv", "Square", "Sub"}
_TRACED = {"autograph": False, "experimental_attributes": {"_noinline": True}}


class Linearization(NamedTuple):
    """The parts of a function, see `linearize`.

    Attributes:
        once: `once(moving, fixed) -> (others, activations)`.
        product: `product(activations, moving, fixed, vector)`.
        activations: specifications of what the product needs beside the arguments.
    """

    once: Callable
    product: Callable
    activations: list[tf.TensorSpec]


class Inseparable(ValueError):
    """A function cannot be cut; the message says why."""


def linearize(
    function: Callable, moving: Any, fixed: Any, vector: Any, scopes: tuple[str, str] = ("once", "product")
) -> Linearization:
    """Cut `function(moving, fixed, vector) -> (product, others)`, where only the product depends on the vector.

    Args:
        function: what is traced, for arguments like the given ones.
        moving: what differs from point to point.
        fixed: what is the same at all points.
        vector: what the product is linear in.
        scopes: name scopes of the two parts, for profiles.

    Raises:
        Inseparable: an operation is stateful or has a place of its own, or activations are no plain tensors.
    """
    arguments = (moving, fixed, vector)
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), arguments)
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    graph, (product, others) = _Graph(traced), traced.structured_outputs
    inputs = inputs_of(traced, arguments)
    cut = _cut(graph.operations, tf.nest.flatten(inputs[2]), tf.nest.flatten(product))
    given = {t.ref() for t in traced.inputs}  # captured tensors are among them
    values = [_static_value(t) for t in cut]
    known = [(t, value) for t, value in zip(cut, values, strict=True) if value is not None]
    stored = [t for t, value in zip(cut, values, strict=True) if value is None and t.ref() not in given]
    graph.check(stored)

    def once(moving, fixed):
        return graph.copy(scopes[0], inputs[:2], (moving, fixed), (others, stored))

    def products(activations, moving, fixed, vector):
        constants = [tf.constant(value, t.dtype) for t, value in known]
        feeds = stored, *inputs, [t for t, _ in known]
        return graph.copy(scopes[1], feeds, (activations, moving, fixed, vector, constants), product)

    once, products = (tf.function(f, **_TRACED) for f in (once, products))
    return Linearization(once, products, [tf.TensorSpec(t.shape, t.dtype) for t in stored])


class _Graph:
    """The operations of a traced function, to be traced again in parts."""

    def __init__(self, traced: Any):
        self.operations = traced.graph.get_operations()
        self._captures = list(traced.graph.captures)
        self._definition = traced.graph.as_graph_def()
        for node in self._definition.node:  # order and place are those of the call; without side effects any will do
            inputs = [name for name in node.input if not name.startswith("^")]
            del node.input[:]
            node.input.extend(inputs)
            node.attr.pop("_class", None)
            node.device = ""

    def check(self, stored: list[tf.Tensor]) -> None:
        """Raise `Inseparable` where the operations cannot be traced in parts, or these tensors not be stored."""
        stateful = sorted({op.type for op in self.operations if op.op_def.is_stateful})
        if stateful:
            raise Inseparable(f"it has stateful operations, {', '.join(stateful)}")
        if len({op.device for op in self.operations}) > 1:
            raise Inseparable("some of its operations are placed on a device of their own")
        for t in stored:
            if t.dtype in (tf.variant, tf.resource):
                raise Inseparable(f"the operation {t.op.type} makes no plain tensors")
            if t.dtype.is_integer and t.op.type == "PartitionedCall":  # shapes, which XLA needs as constants
                raise Inseparable("a function that it calls makes shapes")

    def copy(self, scope: str, feeds: Any, values: Any, fetches: Any) -> Any:
        """Trace what leads from the feeds to the fetches once more, with the values in the place of the feeds."""
        tf.nest.assert_same_structure(feeds, values, check_types=False)
        feeds, values, wanted = (tf.nest.flatten(x) for x in (feeds, values, fetches))
        places = {inner.name: tf.identity(outer) for outer, inner in self._captures}
        places |= {t.name: value for t, value in zip(feeds, values, strict=True)}
        needed = {op.name: op for op in leading_to(wanted, stop=lambda t: t.name in places)}
        part = tf.compat.v1.GraphDef(versions=self._definition.versions, library=self._definition.library)
        part.node.extend(node for node in self._definition.node if node.name in needed)
        read = {t.name for op in needed.values() for t in op.inputs} & places.keys()
        made = [t.name for t in wanted if t.name not in places]
        results = tf.graph_util.import_graph_def(part, {name: places[name] for name in read}, made, name=scope)
        found = places | dict(zip(made, results, strict=True))
        outputs = [tf.ensure_shape(found[t.name], t.shape) for t in wanted]
        return tf.nest.pack_sequence_as(fetches, outputs)


def _cut(operations: list[tf.Operation], vector: list[tf.Tensor], product: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return tensors that do not depend on the vector, and that together with it give the product."""
    dependent = dependent_on(vector, operations)
    reading = leading_to(product, stop=lambda t: t.ref() not in dependent)
    read = [*product, *(t for op in reading for t in op.inputs)]
    cut = {t.ref(): t for t in read if t.ref() not in dependent}
    waiting = list(cut.values())
    while waiting:  # of a view what it shows is stored, and of what is made of few numbers these
        t = waiting.pop()
        inputs = list(t.op.inputs)
        few = t.op.type != "Placeholder" and all(_size(x) < _FEW for x in (t, *inputs))
        if (few or t.op.type in _VIEWS) and t.ref() in cut:
            del cut[t.ref()]
            cut |= {x.ref(): x for x in inputs}
            waiting += inputs
    for t in list(cut.values()):
        if t.op.type in _ONE_PASS and all(x.ref() in cut for x in t.op.inputs):
            del cut[t.ref()]
    return list(cut.values())


def _size(t: tf.Tensor) -> float:
    """Return how many numbers a tensor has, 0 for a row of integers whose number is not known: part of a shape."""
    count = t.shape.num_elements()
    if count is None:
        return 0 if t.dtype.is_integer and t.shape.rank == 1 else float("inf")
    return count


def _static_value(t: tf.Tensor) -> Any:
    """Return the value of a shape that is known while tracing, which XLA needs as a constant, else None."""
    if t.op.type in ("Shape", "ShapeN"):
        shape = t.op.inputs[t.value_index].shape
        return shape.as_list() if shape.is_fully_defined() else None
    return tf.get_static_value(t) if t.dtype.is_integer else None
