"""The forward-mode rules against differences in float64, and against what TensorFlow would do at more expense."""

import numpy as np
import pytest
import tensorflow as tf
from references import relative_error
from tensorflow.python.eager import forwardprop

import tf_metagrad as mg
from tf_metagrad import _forward_rules
from tf_metagrad._forward_rules import forward_rules
from tf_metagrad._hvp import forward_over_reverse, value_and_gradient

RNG = np.random.default_rng(0)
raw = tf.raw_ops
CONV = {"strides": [1, 2, 1, 1], "padding": "SAME"}
POOL = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
OVERLAPPING = {"ksize": [1, 3, 3, 1], "strides": [1, 2, 2, 1], "padding": "SAME"}
IMAGES, FILTER, SMALL = (2, 4, 6, 3), (3, 2, 3, 5), (2, 2, 6, 5)
DEEP, DEEP_SMALL = (3, 2, 3, 2), (2, 2, 6, 6)  # depthwise


def normal(*shape):
    return RNG.normal(size=shape)


def positive(*shape):
    return RNG.uniform(0.5, 2.0, size=shape)


def case(function, *shapes, draw=normal):
    return function, [draw(*s) for s in shapes]


# op type, or op type and what is special: a function of the inputs that move, and those
CASES = {
    "Add": case(lambda x, y: raw.Add(x=x, y=y), (2, 3), (3,)),
    "AddN": case(lambda x, y: raw.AddN(inputs=[x, y, x]), (2, 3), (2, 3)),
    "AddV2": case(lambda x, y: x + y, (2, 1, 3), (4, 1)),
    "AddV2, constant": case(lambda x: tf.ones([2, 3], x.dtype) + x, (3,)),
    "AvgPool": case(lambda x: raw.AvgPool(value=x, **POOL), IMAGES),
    "AvgPoolGrad": case(lambda g: raw.AvgPoolGrad(orig_input_shape=IMAGES, grad=g, **POOL), (2, 2, 3, 3)),
    "BatchMatMulV2": case(lambda x, y: tf.matmul(x, y, transpose_b=True), (2, 3, 4), (2, 5, 4)),
    "BatchMatMulV2, first adjoint": case(lambda x, y: tf.matmul(x, y, transpose_a=True), (2, 3, 4), (2, 3, 5)),
    "BatchMatMulV2, broadcast": case(lambda x, y: raw.BatchMatMulV2(x=x, y=y), (2, 9, 3), (1, 3, 9)),
    "BiasAdd": case(lambda x, y: tf.nn.bias_add(x, y), (2, 3), (3,)),
    "BiasAddGrad": case(lambda x: raw.BiasAddGrad(out_backprop=x), (2, 4, 3)),
    "BroadcastTo": case(lambda x: tf.broadcast_to(x, [2, 3]), (3,)),
    "Cast": case(lambda x: tf.cast(tf.cast(x, tf.float32), tf.float64), (3,)),
    "ConcatV2": case(lambda x, y: tf.concat([x, y], 1), (2, 3), (2, 4)),
    "Conv2D": case(lambda x, w: raw.Conv2D(input=x, filter=w, **CONV), IMAGES, FILTER),
    "Conv2D, groups": case(lambda x, w: raw.Conv2D(input=x, filter=w, **CONV), (2, 4, 6, 6), (3, 2, 3, 4)),
    "Conv2DBackpropFilter": case(
        lambda x, g: raw.Conv2DBackpropFilter(input=x, filter_sizes=FILTER, out_backprop=g, **CONV), IMAGES, SMALL
    ),
    "Conv2DBackpropInput": case(
        lambda w, g: raw.Conv2DBackpropInput(input_sizes=IMAGES, filter=w, out_backprop=g, **CONV), FILTER, SMALL
    ),
    "DepthwiseConv2dNative": case(
        lambda x, w: raw.DepthwiseConv2dNative(input=x, filter=w, strides=[1, 1, 1, 1], padding="SAME"), IMAGES, DEEP
    ),
    "DepthwiseConv2dNativeBackpropFilter": case(
        lambda x, g: raw.DepthwiseConv2dNativeBackpropFilter(
            input=x, filter_sizes=DEEP, out_backprop=g, strides=[1, 1, 1, 1], padding="SAME"
        ),
        IMAGES,
        (2, 4, 6, 6),
    ),
    "DepthwiseConv2dNativeBackpropInput": case(
        lambda w, g: raw.DepthwiseConv2dNativeBackpropInput(
            input_sizes=IMAGES, filter=w, out_backprop=g, strides=[1, 1, 1, 1], padding="SAME"
        ),
        DEEP,
        (2, 4, 6, 6),
    ),
    "DivNoNan": case(lambda x, y: raw.DivNoNan(x=x, y=y), (2, 3), (3,), draw=positive),
    "Einsum": case(lambda x, y: raw.Einsum(inputs=[x, y], equation="abc,acd->bd"), (2, 3, 4), (2, 4, 5)),
    "Einsum, one": case(lambda x: raw.Einsum(inputs=[x], equation="abc->cb"), (2, 3, 4)),
    "Exp": case(tf.exp, (3,)),
    "ExpandDims": case(lambda x: tf.expand_dims(x, 1), (2, 3)),
    "GatherV2": case(lambda x: tf.gather(x, [2, 0, 2], axis=1), (2, 3)),
    "Identity": case(lambda x: raw.Identity(input=x), (3,)),
    "Log": case(tf.math.log, (3,), draw=positive),
    "MatMul": case(lambda x, y: tf.matmul(x, y, transpose_a=True), (3, 9), (3, 8)),
    "MatMul, joined": case(lambda x, y: tf.matmul(x, y, transpose_b=True), (9, 3), (8, 3)),
    "MaxPool": case(lambda x: raw.MaxPool(input=x, **POOL), IMAGES),
    "MaxPool, overlapping": case(lambda x: raw.MaxPool(input=x, **OVERLAPPING), IMAGES),
    "MaxPoolGrad": case(
        lambda x, g: raw.MaxPoolGrad(orig_input=x, orig_output=raw.MaxPool(input=x, **POOL), grad=g, **POOL),
        IMAGES,
        (2, 2, 3, 3),
    ),
    "Maximum": case(tf.maximum, (2, 3), (3,)),
    "Maximum, constant": case(lambda x: tf.maximum(x, tf.zeros([2, 3], x.dtype)), (3,)),
    "Mean": case(lambda x: tf.reduce_mean(x, [0, 2]), (2, 3, 4)),
    "Mul": case(lambda x, y: x * y, (2, 3), (3,)),
    "Neg": case(lambda x: -x, (3,)),
    "OnesLike, ZerosLike, Shape": case(
        lambda x: x * raw.OnesLike(x=x) + raw.ZerosLike(x=x) + tf.cast(raw.Shape(input=x)[0], x.dtype), (3,)
    ),
    "Pack": case(lambda x, y: tf.stack([x, y], 1), (3,), (3,)),
    "Pad": case(lambda x: raw.Pad(input=x, paddings=[[1, 0], [0, 2]]), (2, 3)),
    "StopGradient": case(lambda x: x * raw.StopGradient(input=tf.ones_like(x)), (3,)),
    "RealDiv": case(lambda x, y: x / y, (3,), (2, 3), draw=positive),
    "RealDiv, constant": case(lambda x: x / tf.fill([2, 3], tf.constant(3.0, x.dtype)), (3,)),
    "Relu": case(tf.nn.relu, (5,)),
    "ReluGrad": case(lambda g, x: raw.ReluGrad(gradients=g, features=x), (5,), (5,)),
    "Reshape": case(lambda x: tf.reshape(x, [3, 2]), (2, 3)),
    "Rsqrt": case(tf.math.rsqrt, (3,), draw=positive),
    "RsqrtGrad": case(lambda y, g: raw.RsqrtGrad(y=y, dy=g), (3,), (3,), draw=positive),
    "SelectV2": case(lambda x, y: tf.where([True, False, True], x, y), (2, 3), (3,)),
    "ShapeN, Size, Rank": case(
        lambda x, y: x * tf.cast(raw.Size(input=raw.ShapeN(input=[x, y])[1]) + raw.Rank(input=x), x.dtype), (3,), (2, 3)
    ),
    "Sigmoid": case(tf.sigmoid, (3,)),
    "Slice": case(lambda x: tf.slice(x, [0, 1], [2, 2]), (2, 3)),
    "Softmax": case(tf.nn.softmax, (2, 3)),
    "SparseSoftmaxCrossEntropyWithLogits": case(
        lambda z: tf.concat(
            [
                tf.reshape(part, [-1])
                for part in raw.SparseSoftmaxCrossEntropyWithLogits(features=z, labels=tf.constant([2, 0]))
            ],
            0,
        ),
        (2, 3),
    ),
    "Square": case(tf.square, (3,)),
    "SquaredDifference": case(tf.math.squared_difference, (2, 3), (3,)),
    "SquaredDifference, constant": case(lambda y: tf.math.squared_difference(tf.ones([2, 3], y.dtype), y), (3,)),
    "Squeeze": case(lambda x: tf.squeeze(x, [1]), (2, 1, 3)),
    "StridedSlice": case(lambda x: x[:, ::-2], (2, 3)),
    "Sub": case(lambda x, y: x - y, (2, 3), (3,)),
    "Sub, constant": case(lambda y: tf.ones([2, 3], y.dtype) - y, (3,)),
    "Sum": case(lambda x: tf.reduce_sum(x, 1, keepdims=True), (2, 3)),
    "Tanh": case(tf.tanh, (3,)),
    "Tile": case(lambda x: tf.tile(x, [2, 3]), (2, 3)),
    "Transpose": case(lambda x: tf.transpose(x, [1, 0]), (2, 3)),
}


def tangent(function, inputs, vector):
    def run():
        values, moved = ([tf.constant(a) for a in arrays] for arrays in (inputs, vector))
        with forward_rules(), tf.autodiff.ForwardAccumulator(values, moved) as accumulator:
            outputs = function(*values)
        return accumulator.jvp(outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return tf.function(run, autograph=False)()


@pytest.mark.parametrize("name", CASES)
def test_the_rule_equals_differences(name, monkeypatch):
    function, inputs = CASES[name]
    used = []
    expected = {n.strip() for n in name.split(",")} & set(_forward_rules._RULES)
    for kind, rule in _forward_rules._RULES.items():
        monkeypatch.setitem(
            _forward_rules._RULES, kind, lambda op, tangents, rule=rule: used.append(op.type) or rule(op, tangents)
        )
    vector = [normal(*i.shape) for i in inputs]
    found = tangent(function, inputs, vector)
    h = 1e-3 if "Cast" in name else 1e-5
    ends = [function(*(tf.constant(i + s * h * v) for i, v in zip(inputs, vector, strict=True))) for s in (1, -1)]
    assert relative_error([found], [(ends[0] - ends[1]) / (2 * h)]) < (1e-3 if "Cast" in name else 1e-8)
    assert expected - _forward_rules._CONSTANT <= set(used)  # of what does not move the numbers alone are compared


def test_every_rule_has_a_case():
    named = {part.strip() for name in CASES for part in name.split(",")}
    assert set(_forward_rules._RULES) - named == set()


def test_zeros_stay_zeros():
    """The first layer of a net is not multiplied with the zero tangent of its inputs."""
    x, w = tf.constant(normal(*IMAGES)), normal(*FILTER)

    def loss(weights):
        return tf.reduce_sum(raw.Conv2D(input=x, filter=weights[0], **CONV) ** 2), None

    traced = tf.function(lambda: forward_over_reverse(loss, [tf.constant(w)], [0], [tf.constant(w)])[1])
    kinds = [op.type for op in traced.get_concrete_function().graph.get_operations()]
    assert (kinds.count("Conv2D"), kinds.count("Conv2DBackpropFilter")) == (2, 2)


def test_what_has_no_rule_and_eager_tensors_are_left_to_tensorflow():
    x, v = tf.constant([0.3, 0.7]), tf.constant([1.0, 2.0])
    with forward_rules(), tf.autodiff.ForwardAccumulator(x, v) as accumulator:
        y = tf.sin(x) * x
    expected = (np.cos(x) * x + np.sin(x)) * v
    np.testing.assert_allclose(accumulator.jvp(y), expected, rtol=1e-6)
    np.testing.assert_allclose(
        tangent(lambda a: tf.math.erf(a), [x.numpy()], [v.numpy()]),
        2 / np.sqrt(np.pi) * np.exp(-(x.numpy() ** 2)) * v,
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["AddN", "ConcatV2", "SquaredDifference"])
def test_complex_tensors_are_left_to_tensorflow(name):
    """Their kernels conjugate. The HVP of a real weight through them equals differences of the gradient."""
    functions = {
        "AddN": lambda f: tf.reduce_sum(tf.abs(f) ** 3) + tf.reduce_sum(tf.math.real(f**3)),
        "ConcatV2": lambda f: tf.reduce_sum(tf.abs(tf.concat([f, f**2], 0)) ** 3),
        "SquaredDifference": lambda f: tf.reduce_sum(tf.math.real(tf.math.squared_difference(f, f[::-1])) ** 2),
    }

    def loss(weights):
        return functions[name](tf.signal.rfft(tf.tanh(weights[0]))), None

    w, v, h = normal(8), normal(8), 1e-5
    product = tf.function(lambda: forward_over_reverse(loss, [tf.constant(w)], [0], [tf.constant(v)])[1])()
    ends = [value_and_gradient(loss, [tf.constant(w + s * h * v)], [0])[2][0] for s in (1, -1)]
    assert relative_error(product, [(ends[0] - ends[1]) / (2 * h)]) < 1e-7


def test_the_scope_ends(monkeypatch):
    with forward_rules(), pytest.raises(ZeroDivisionError), forward_rules():
        raise ZeroDivisionError
    asked = []
    original = forwardprop._jvp_dispatch
    monkeypatch.setitem(_forward_rules._RULES, "Tanh", lambda op, tangents: asked.append(op) or original)

    @tf.function
    def run(x):
        with tf.autodiff.ForwardAccumulator(x, x) as accumulator:
            y = tf.tanh(x)
        return accumulator.jvp(y)

    np.testing.assert_allclose(run(tf.constant(0.5)), 0.5 * (1 - np.tanh(0.5) ** 2), rtol=1e-6)
    assert not asked


@pytest.mark.parametrize(
    "make", [lambda: mg.models.conv2d(5, (16, 16, 1), 4), lambda: mg.models.conv1d(3), mg.models.mlp]
)
def test_the_nets_of_the_papers_take_forward_over_reverse(make):
    """The fallback, for what forward mode cannot do, would hide an error in a rule."""
    model = make()
    inner = mg.inner.GradientDescent(1, 0.1)
    learner = mg.MetaLearner(model, "mse", inner)
    shape = model.input_shape[1:], model.output_shape[1:]
    learner.meta_gradient(mg.Task(*(normal(2, 4, *s).astype("float32") for s in shape * 2)))
    modes = [functions.hvp.mode for functions in learner._runner._functions.values()]
    assert modes == [forward_over_reverse]
