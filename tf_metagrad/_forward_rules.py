"""Forward-mode rules of the operations that neural networks and their gradients are made of.

TensorFlow finds the tangent of an operation by transposing its gradient twice, in a function that is traced for every
operation and shape. The result is right; but most of the time to trace a product with the Hessian goes there, and a
tangent that is zero is multiplied like any other: a convolution of zeros at the first layer of every net. Here the rule
of an operation y = f(x) is written down,

    linear      y' = f(x')
    bilinear    y' = f(x', w) + f(x, w')
    others      y' = the derivative, in the letters of their definition,

and zeros stay zeros. Operations without a rule here, complex and eager tensors are left to TensorFlow.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import forwardprop

Tangent = tf.Tensor | None  # None: zero
Rule = Callable[[tf.Operation, list[Tangent]], list[Tangent]]

# operations that are linear in the inputs listed, the others being constants; two or more are linear together
_LINEAR = {
    "AddN": None, "AvgPool": (0,), "AvgPoolGrad": (1,), "BiasAdd": None, "BiasAddGrad": (0,), "BroadcastTo": (0,),
    "Cast": (0,), "ConcatV2": None, "ExpandDims": (0,), "GatherV2": (0,), "Identity": (0,), "MaxPoolGrad": (2,),
    "Mean": (0,), "Neg": (0,), "Pack": None, "Pad": (0,), "ReluGrad": (0,), "Reshape": (0,), "SelectV2": (1, 2),
    "Slice": (0,),
    "Squeeze": (0,), "StridedSlice": (0,), "Sum": (0,), "Tile": (0,), "Transpose": (0,),
}  # fmt: skip
# operations that are linear in each of these two inputs
_BILINEAR = {
    "BatchMatMulV2": (0, 1), "Conv2D": (0, 1), "Conv2DBackpropFilter": (0, 2), "Conv2DBackpropInput": (1, 2),
    "DepthwiseConv2dNative": (0, 1), "DepthwiseConv2dNativeBackpropFilter": (0, 2),
    "DepthwiseConv2dNativeBackpropInput": (1, 2), "Einsum": (0, 1), "MatMul": (0, 1), "Mul": (0, 1),
}  # fmt: skip
_CALL = 2**18  # numbers that are copied in the time that a convolution of few images takes to start
_RENAMED = {"dim": "axis", "reduction_indices": "axis", "squeeze_dims": "axis"}  # by `tf.raw_ops`
_CONSTANT = {"Shape", "ShapeN", "Size", "Rank", "StopGradient", "ZerosLike", "OnesLike"}


def _again(op: tf.Operation, replaced: dict[int, tf.Tensor]) -> tf.Tensor:
    """Return the operation's output for other inputs, with the same attributes."""
    inputs, arguments = list(op.inputs), {}
    for index, value in replaced.items():
        inputs[index] = value
    for argument in op.op_def.input_arg:
        count = op.get_attr(argument.number_attr) if argument.number_attr else 1
        taken, inputs = inputs[:count], inputs[count:]
        arguments[argument.name] = taken if argument.number_attr else taken[0]
    inferred = {a.type_attr for a in op.op_def.input_arg} | {a.number_attr for a in op.op_def.input_arg}
    arguments |= {a.name: op.get_attr(a.name) for a in op.op_def.attr if a.name not in inferred}
    return getattr(tf.raw_ops, op.type)(**{_RENAMED.get(name, name): value for name, value in arguments.items()})


def _sum(parts: list[Tangent]) -> Tangent:
    parts = [p for p in parts if p is not None]
    return None if not parts else parts[0] if len(parts) == 1 else tf.add_n(parts)


def _linear(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    chosen = _LINEAR[op.type]
    chosen = [i for i, x in enumerate(op.inputs) if x.dtype.is_floating] if chosen is None else chosen
    if all(tangents[i] is None for i in chosen):
        return [None]
    filled = {i: tf.zeros_like(op.inputs[i]) if tangents[i] is None else tangents[i] for i in chosen}
    return [_again(op, filled)]


def _bilinear(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    if op.type == "Einsum" and len(op.inputs) == 1:
        return [None if tangents[0] is None else _again(op, {0: tangents[0]})]
    moving = [i for i in _BILINEAR[op.type] if tangents[i] is not None]
    axes = _joined_axes(op) if len(moving) == 2 else None
    if axes is None:
        return [_sum([_again(op, {i: tangents[i]}) for i in moving])]
    (i, k), (along_i, along_k) = moving, axes
    x = tf.concat([tangents[i], op.inputs[i]], along_i)
    w = tf.concat([op.inputs[k], tangents[k]], along_k)
    return [_again(op, {i: x, k: w})]


def _joined_axes(op: tf.Operation) -> tuple[int, int] | None:
    """Return the axes that the operation sums over, where f(x', w) + f(x, w') is better one f([x', x], [w, w']).

    That saves a call of the kernel and the passes of a sum over the output, and costs a copy of the inputs.
    """
    x, w = (op.inputs[i].shape for i in _BILINEAR[op.type])
    output = op.outputs[0].shape
    if not (x.is_fully_defined() and w.is_fully_defined() and output.is_fully_defined()):
        return None
    start = _CALL if op.type.startswith("Conv2D") else 0
    if 2 * (x.num_elements() + w.num_elements()) > 2 * output.num_elements() + start:
        return None
    if op.type == "MatMul":
        return (0 if op.get_attr("transpose_a") else 1), (1 if op.get_attr("transpose_b") else 0)
    if op.type == "BatchMatMulV2" and x[:-2] == w[:-2]:
        last = len(x) - 1
        along_x, along_w = (last - 1 if op.get_attr("adj_x") else last), (last if op.get_attr("adj_y") else last - 1)
        return None if x[along_x] == 1 else (along_x, along_w)  # XLA makes a product of one term part of other loops
    if op.type == "Conv2D" and op.get_attr("data_format") == b"NHWC" and x[-1] == w[2]:
        return 3, 2
    if op.type == "Conv2DBackpropInput" and op.get_attr("data_format") == b"NHWC" and output[-1] == x[2]:
        return 3, 3
    return (0, 0) if op.type == "Conv2DBackpropFilter" else None


def _to_output(op: tf.Operation, tangent: tf.Tensor) -> tf.Tensor:
    """Return the tangent of one term, broadcast to the sum's shape."""
    output = op.outputs[0]
    if output.shape.is_fully_defined() and tangent.shape == output.shape:
        return tangent
    return tf.broadcast_to(tangent, tf.shape(output))


def _add(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    a, b = tangents
    if a is None or b is None:
        return [None if a is b else _to_output(op, b if a is None else a)]
    return [a + b]


def _subtract(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    a, b = tangents
    if a is None or b is None:
        return [None if a is b else _to_output(op, -b if a is None else a)]
    return [a - b]


def _quotient(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    """Of y = a / b: y' = (a' - y b') / b."""
    a, b = tangents
    change = _sum([None if a is None else _to_output(op, a), None if b is None else -op.outputs[0] * b])
    return [None if change is None else getattr(tf.raw_ops, op.type)(x=change, y=op.inputs[1])]


def _squared_difference(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    change = _subtract(op, tangents)[0]
    return [None if change is None else 2 * (op.inputs[0] - op.inputs[1]) * change]


def _maximum(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    """The tangent of the larger one, of equal ones that of the first, as the gradient has it."""
    if tangents[0] is tangents[1] is None:
        return [None]
    a, b = (tf.zeros([], op.outputs[0].dtype) if t is None else t for t in tangents)
    return [tf.where(op.inputs[0] >= op.inputs[1], a, b)]


def _rsqrt_gradient(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    """d(y, g) = -y^3 g / 2, linear in g."""
    y, g = op.inputs
    y_t, g_t = tangents
    along_y = None if y_t is None else -1.5 * y * y * g * y_t
    return [_sum([along_y, None if g_t is None else _again(op, {1: g_t})])]


def _cross_entropy(op: tf.Operation, tangents: list[Tangent]) -> list[Tangent]:
    """Loss l and gradient p - e of logits z: l' = <p - e, z'>, p' = p z' - p <p, z'>."""
    z = tangents[0]
    if z is None:
        return [None, None]
    weighted = (p := tf.nn.softmax(op.inputs[0])) * z
    return [tf.reduce_sum(op.outputs[1] * z, -1), weighted - p * tf.reduce_sum(weighted, -1, keepdims=True)]


def _unary(derivative: Callable[[tf.Operation, tf.Tensor], tf.Tensor]) -> Rule:
    """Return the rule of an operation with one input."""
    return lambda op, tangents: [None if tangents[0] is None else derivative(op, tangents[0])]


def _softmax(op: tf.Operation, t: tf.Tensor) -> tf.Tensor:
    weighted = op.outputs[0] * t
    return weighted - op.outputs[0] * tf.reduce_sum(weighted, -1, keepdims=True)


def _max_pool(op: tf.Operation, t: tf.Tensor) -> tf.Tensor:
    """The tangent where the maximum is: windows that do not overlap are summed over the places that the gradient takes.

    TensorFlow's own kernel is several times slower, and may choose another place among equals than the gradient does.
    """
    attributes = {name: op.get_attr(name) for name in ("ksize", "strides", "padding", "data_format")}
    x, y, ksize = op.inputs[0], op.outputs[0], attributes["ksize"]
    tiled = x.shape[1:].is_fully_defined() and all(n % k == 0 for n, k in zip(x.shape[1:], ksize[1:], strict=True))
    if not (tiled and ksize == attributes["strides"] and attributes["data_format"] == b"NHWC"):
        return tf.raw_ops.MaxPoolGradGrad(orig_input=x, orig_output=y, grad=t, **attributes)
    taken = tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=y, grad=tf.ones_like(y), **attributes)
    return math.prod(ksize) * tf.raw_ops.AvgPool(value=t * taken, **attributes)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(_BILINEAR, _bilinear),
    **dict.fromkeys(_CONSTANT, lambda op, tangents: [None] * len(op.outputs)),
    **dict.fromkeys(("Add", "AddV2"), _add),
    **dict.fromkeys(("RealDiv", "DivNoNan"), _quotient),
    "Sub": _subtract,
    "SquaredDifference": _squared_difference,
    "RsqrtGrad": _rsqrt_gradient,
    "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
    "Exp": _unary(lambda op, t: op.outputs[0] * t),
    "Log": _unary(lambda op, t: t / op.inputs[0]),
    "Maximum": _maximum,
    "MaxPool": _unary(_max_pool),
    "Relu": _unary(lambda op, t: tf.raw_ops.ReluGrad(gradients=t, features=op.outputs[0])),
    "Rsqrt": _unary(lambda op, t: tf.raw_ops.RsqrtGrad(y=op.outputs[0], dy=t)),
    "Sigmoid": _unary(lambda op, t: tf.raw_ops.SigmoidGrad(y=op.outputs[0], dy=t)),
    "Softmax": _unary(_softmax),
    "Square": _unary(lambda op, t: 2 * op.inputs[0] * t),
    "Tanh": _unary(lambda op, t: tf.raw_ops.TanhGrad(y=op.outputs[0], dy=t)),
}


def is_zero(tangent: Any) -> bool:
    """Return whether the tangent is known to be zero: TensorFlow gives zeros to what does not move."""
    if tangent is None or tangent.op.type == "ZerosLike":
        return True
    if tangent.op.type == "Fill":
        tangent = tangent.op.inputs[1]
    if tangent.op.type != "Const":
        return False
    return not tf.get_static_value(tangent).any()


def _dispatch(op_name, attr_tuple, inputs, outputs, tangents, use_batch=False):
    """Return the tangents of the outputs; called by TensorFlow for every operation that an accumulator sees."""
    rule = _RULES.get(op_name)
    known = [*inputs, *outputs]
    eager = tf.executing_eagerly() or any(isinstance(t, tf.__internal__.EagerTensor) for t in known)
    conjugated = any(t.dtype.is_complex for t in known)  # by some gradients
    if rule is None or use_batch or eager or conjugated or not outputs or outputs[0].op.type != op_name:
        return forwardprop._jvp_dispatch(op_name, attr_tuple, inputs, outputs, tangents, use_batch)
    found = rule(outputs[0].op, [None if is_zero(t) else t for t in tangents])
    return [
        tf.zeros_like(output) if tangent is None and output.dtype.is_floating else tangent
        for tangent, output in zip(found, outputs, strict=True)
    ]


_lock, _entered = threading.Lock(), []


@contextlib.contextmanager
def forward_rules() -> Iterator[None]:
    """Let accumulators use these rules, in a scope; they are as right for another thread that looks in meanwhile."""
    with _lock:
        _entered.append(None)
        pywrap_tfe.TFE_Py_RegisterJVPFunction(_dispatch)
    try:
        yield
    finally:
        with _lock:
            _entered.pop()
            if not _entered:
                pywrap_tfe.TFE_Py_RegisterJVPFunction(forwardprop._jvp_dispatch)
