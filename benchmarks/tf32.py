"""A traced function run with the operands of its matrix products and convolutions as TF32 has them.

A GPU that computes in TF32 rounds the operands of a product to 11 significant bits, and multiplies and adds in float32.
So it is computed here, anywhere: in a function's graph, and in the functions that it calls, both operands of each
product pass through Veltkamp's splitting, hi = c - (c - x) with c = (2^13 + 1) x, which rounds to nearest. It is the
graph that is changed and not the calls that make it: so gradients and tangents are rounded, too.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

# products of float32, and which of their inputs are operands
OPERANDS = {
    "MatMul": (0, 1), "BatchMatMulV2": (0, 1), "Einsum": (0, 1), "Conv2D": (0, 1), "Conv2DBackpropInput": (1, 2),
    "Conv2DBackpropFilter": (0, 2),
}  # fmt: skip
_SPLIT = 2.0**13 + 1  # of 24 significant bits 11 stay


def in_tf32(concrete: Callable, arguments: Sequence[tf.Tensor]) -> list[np.ndarray]:
    """Return the flat results of `concrete`, a concrete function without captures, in TF32.

    It runs in a graph of its own, where functions may be others than those of the same names in this process.

    Raises:
        ValueError: it has captures, or XLA is to compile it.
    """
    definition = concrete.graph.as_graph_def()
    if concrete.captured_inputs or any(node.attr["_XlaMustCompile"].b for node in definition.node):
        raise ValueError("Only a function without captures, not compiled by XLA, can be rounded to TF32.")
    _round(definition.node, inside=False)
    for function in definition.library.function:
        _round(function.node_def, inside=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(definition, name="")
        feeds = {t.name: a.numpy() for t, a in zip(concrete.inputs, arguments, strict=True)}
        return session.run([t.name for t in concrete.outputs], feeds)


def _round(nodes, inside: bool) -> None:
    """Let each product of float32 read rounded operands; `inside` of a function, tensors have other names."""
    for node in [n for n in nodes if n.op in OPERANDS and n.attr["T"].type == tf.float32.as_datatype_enum]:
        for index in OPERANDS[node.op]:
            if index < len(node.input):
                node.input[index] = _rounded(nodes, f"{node.name}/tf32_{index}", node.input[index], inside)


def _rounded(nodes, name: str, operand: str, inside: bool) -> str:
    """Add what rounds the operand, and return its name."""
    factor = nodes.add(name=f"{name}_factor", op="Const")
    factor.attr["dtype"].type = tf.float32.as_datatype_enum
    factor.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(_SPLIT, tf.float32))
    factor = f"{factor.name}:output:0" if inside else factor.name

    def of(op, part, *inputs):
        node = nodes.add(name=f"{name}_{part}", op=op, input=inputs)
        node.attr["T"].type = tf.float32.as_datatype_enum
        return f"{node.name}:z:0" if inside else node.name

    product = of("Mul", "product", operand, factor)
    return of("Sub", "high", product, of("Sub", "rest", product, operand))
