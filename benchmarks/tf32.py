"""A traced function run with the operands of its matrix products and convolutions as TF32 has them.

A GPU that computes in TF32 rounds the operands of a product to 11 significant bits, and multiplies and adds in float32.
So it is computed here, anywhere: in a function's graph, and in the functions that it calls, the bits of both operands
of each product get half of the last place that stays, and lose what is behind it, which rounds to nearest. It is the
graph that is changed and not the calls that make it: so gradients and tangents are rounded, too.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

# products of float32, and which of their inputs are operands
OPERANDS = {
    "MatMul": (0, 1), "BatchMatMul": (0, 1), "BatchMatMulV2": (0, 1), "Einsum": (0, 1), "Conv2D": (0, 1),
    "Conv2DBackpropInput": (1, 2), "Conv2DBackpropFilter": (0, 2), "Conv3D": (0, 1), "Conv3DBackpropInputV2": (1, 2),
    "Conv3DBackpropFilterV2": (0, 2), "DepthwiseConv2dNative": (0, 1), "DepthwiseConv2dNativeBackpropInput": (1, 2),
    "DepthwiseConv2dNativeBackpropFilter": (0, 2),
}  # fmt: skip
_HALF, _STAY = 2**12, -(2**13)  # of float32's 23 bits behind the first 10 stay


def in_tf32(concrete: Callable, arguments: Sequence[tf.Tensor]) -> list[np.ndarray]:
    """Return the flat results of `concrete`, a concrete function without captures, in TF32.

    It runs in a graph of its own, where functions may be others than those of the same names in this process.

    Raises:
        ValueError: it has captures, or XLA is to compile it.
    """
    definition, own = concrete.graph.as_graph_def(), concrete.function_def
    functions = [own, *definition.library.function]
    compiled = [f.attr for f in functions] + [n.attr for f in functions for n in f.node_def]
    if concrete.captured_inputs or any("_XlaMustCompile" in a and a["_XlaMustCompile"].b for a in compiled):
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
        operands = [i for i in OPERANDS[node.op] if i < len(node.input) and not node.input[i].startswith("^")]
        for index in operands if len(operands) == 2 else ():  # an Einsum of one is no product
            node.input[index] = _rounded(nodes, f"{node.name}/tf32_{index}", node.input[index], inside)


def _rounded(nodes, name: str, operand: str, inside: bool) -> str:
    """Add what rounds the operand, and return its name."""

    def add(op, part, output, *inputs, **types):
        node = nodes.add(name=f"{name}_{part}", op=op, input=inputs)
        for key, dtype in types.items():
            node.attr[key].type = dtype.as_datatype_enum
        return node, f"{node.name}:{output}:0" if inside else node.name

    def constant(part, value):
        node, tensor = add("Const", part, "output", dtype=tf.int32)
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.int32))
        return tensor

    bits = add("Bitcast", "bits", "output", operand, T=tf.float32, type=tf.int32)[1]
    bits = add("AddV2", "more", "z", bits, constant("half", _HALF), T=tf.int32)[1]
    bits = add("BitwiseAnd", "high", "z", bits, constant("stay", _STAY), T=tf.int32)[1]
    return add("Bitcast", "value", "output", bits, T=tf.int32, type=tf.float32)[1]
