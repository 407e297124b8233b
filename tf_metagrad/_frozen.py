"""What the inner loop holds constant: the outputs of layers that no adapting weight reaches, computed once for a task.

With `adapt=[...]`, or under layers that are not trainable, a part of the network is the same function of the support
set at every inner step. Its outputs z, the "features" of ANIL, are computed once; the inner loop and HVPs work on

    l_trn(phi, psi) = h(phi, psi, z),   z = b(psi, x),

in which z stands beside the shared weights psi. What reaches z at all the steps is summed, and b is transposed once:

    d/dpsi l_trn = d/dpsi h + (db/dpsi)^T d/dz h.

The cut runs between calls of Keras layers. A call stays in the loop if what it returns depends on an adapting weight or
on state that changes (Dropout's seeds), if it adds a loss, or if its layer changes state. BatchNormalization may: no
call that writes its averages reads them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tf_metagrad import _masks
from tf_metagrad._graphs import dependent_on, inputs_of, leading_to
from tf_metagrad._second_order import substituted
from tf_metagrad._types import Params


@dataclasses.dataclass
class _Call:
    """A call of a layer while a model is traced; `size` counts it and the calls that it makes."""

    layer: keras.layers.Layer
    size: int = 0
    outputs: Any = None
    adds_loss: bool = False

    def leaves(self) -> list[tf.Tensor | None]:
        """Return the tensors that the call returned, and then the mask of each or None."""
        leaves = tf.nest.flatten(self.outputs)
        return [*leaves, *map(_masks.mask_of, leaves)]


class Plan:
    """Which calls of a model's layers are answered with features.

    Attributes:
        calls: all calls, in their order; of those that make others, it comes first.
        answers: specifications of the leaves of each call that is answered, by its number.
        kept: `(number of the call, number of the leaf)` of each feature; the other leaves are read by nobody.
        count: how many of the features, the first ones, depend on shared weights; the others are constants.
    """

    def __init__(self, calls: list[_Call], answers: dict[int, list[Any]], kept: list[tuple[int, int]], count: int):
        """Store the parts; see the class."""
        self.calls, self.answers, self.kept, self.count = calls, answers, kept, count

    def features(self, run: Callable[[], Any]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Return the features of `run()`, a call of the model: those that depend on shared weights, and the others."""
        calls: list[_Call] = []
        with _recorded(calls):
            run()
        found = [calls[call].leaves()[leaf] for call, leaf in self.kept]
        return [_wide(z) for z in found[: self.count]], found[self.count :]

    @contextlib.contextmanager
    def answered(self, features: Sequence[tf.Tensor]) -> Iterator[None]:
        """In this scope the calls are answered with the features."""
        known = dict(zip(self.kept, features, strict=True))
        number = 0

        def call(original, layer, *args, **kwargs):
            nonlocal number
            here, made = number, self.calls[number]
            if made.layer is not layer:
                raise RuntimeError(f"The model called {layer.name!r} where it had called {made.layer.name!r}.")
            if here not in self.answers:
                number += 1
                return original(layer, *args, **kwargs)
            number += made.size
            leaves = [_answer(spec, known.get((here, i))) for i, spec in enumerate(self.answers[here])]
            pairs = zip(leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :], strict=True)
            return tf.nest.pack_sequence_as(made.outputs, [_masks.copied(*pair) for pair in pairs])

        with _intercepted(call):
            yield


def _wide(z: tf.Tensor) -> tf.Tensor:
    """Return features of 16 bits as float32: what reaches them is summed over the steps."""
    return tf.cast(z, tf.float32) if z.dtype in (tf.float16, tf.bfloat16) else z


def _answer(spec: tf.TensorSpec | None, feature: tf.Tensor | None) -> tf.Tensor | None:
    """Return a feature as the layer returned it; zeros where nobody reads it."""
    if spec is None:
        return None
    if feature is not None:
        return tf.cast(feature, spec.dtype)
    zeros = tf.zeros([size or 1 for size in spec.shape], spec.dtype)
    return zeros if spec.shape.is_fully_defined() else tf.compat.v1.placeholder_with_default(zeros, spec.shape)


@contextlib.contextmanager
def _intercepted(function: Callable) -> Iterator[None]:
    """In this scope `function(original, layer, ...)` gets the calls of layers, but those in the body of a loop."""
    graph = tf.compat.v1.get_default_graph()

    def call(original, layer, *args, **kwargs):
        if tf.compat.v1.get_default_graph() is not graph:
            return original(layer, *args, **kwargs)
        return function(original, layer, *args, **kwargs)

    with substituted(keras.layers.Layer, "__call__", call):
        yield


@contextlib.contextmanager
def _recorded(calls: list[_Call]) -> Iterator[None]:
    """In this scope calls of layers are added to the list, a call before those that it makes."""

    def call(original, layer, *args, **kwargs):
        made, first, losses = _Call(layer), len(calls), len(layer.losses)
        calls.append(made)
        made.outputs = original(layer, *args, **kwargs)
        made.size, made.adds_loss = len(calls) - first, len(layer.losses) > losses
        return made.outputs

    with _intercepted(call):
        yield


def possible(model: keras.Model, adapting: Sequence[int]) -> bool:
    """Return whether a layer has weights none of which adapts."""
    chosen = {id(model.trainable_variables[i]) for i in adapting}
    layers = model._flatten_layers(include_self=False)
    return any(layer.weights and not any(id(v) in chosen for v in layer.weights) for layer in layers)


def plan(model: Any, weights: Params, state: Params, adapting: Sequence[int], x: Any, y: Any) -> Plan | None:
    """Return which calls to answer with features, or None where no layer with weights is among them.

    Args:
        model: the `FunctionalModel`.
        weights: specifications of all weights.
        state: of the model's state.
        adapting: the indices of the weights that adapt.
        x: of the examples of a support set.
        y: of their targets.
    """
    arguments = list(weights), list(state), x, y
    calls: list[_Call] = []

    def recorded(*arguments):
        with _recorded(calls):
            return model.loss(*arguments, training=True)

    def rest(features, *arguments):
        with Plan(calls, answers, kept, 0).answered(features):
            return model.loss(*arguments, training=True)

    with tf.init_scope():
        traced = tf.function(recorded, autograph=False).get_concrete_function(*arguments)
        answers = _constant_calls(calls, model.model, traced, arguments, adapting)
        if not any(calls[number].layer.weights for number in answers):
            return None
        kept = [(number, i) for number, specs in answers.items() for i, spec in enumerate(specs) if spec is not None]
        specs = [answers[number][i] for number, i in kept]
        try:
            shorter = tf.function(rest, autograph=False).get_concrete_function(specs, *arguments)
            meet = any(getattr(outer, "graph", None) is traced.graph for outer, _ in shorter.graph.captures)
            error = "layers meet in another way than by what they return" if meet else None
        except Exception as raised:  # the user's code, which took the features for something else
            error = raised
    if error:
        logging.info("What frozen layers compute is computed at every inner step: %s.", error)
        return None
    read = {t.ref() for op in leading_to(shorter.outputs, stop=lambda t: False) for t in op.outputs}
    features = inputs_of(shorter, (specs, *arguments))[0]
    kept = [key for key, t in zip(kept, features, strict=True) if t.ref() in read]
    values = {(number, i): calls[number].leaves()[i] for number, i in kept}
    shared = _dependent(traced, [t for i, t in enumerate(traced.inputs[: len(weights)]) if i not in set(adapting)])
    learned = [key for key, z in values.items() if z.dtype.is_floating and z.ref() in shared]
    for call in calls:  # let go of the graph
        call.outputs = tf.nest.map_structure(lambda _: 0, call.outputs)
    return Plan(calls, answers, learned + [key for key in kept if key not in learned], len(learned)) if kept else None


def _constant_calls(calls: list[_Call], model: keras.Model, traced: Any, arguments: Any, adapting: Sequence[int]):
    """Return the outermost calls that are the same at every step: by number, the specifications of their leaves."""
    weights, state, *_ = inputs_of(traced, arguments)
    _, (after, _) = traced.structured_outputs
    written = [i for i, (a, b) in enumerate(zip(state, after, strict=True)) if _source(b) is not a]
    random = [t for op in traced.graph.get_operations() if op.op_def.is_stateful for t in op.outputs]
    changing = _dependent(traced, [weights[i] for i in adapting] + [state[i] for i in written] + random)
    averages = {id(v) for layer in model._flatten_layers() if _normalizes(layer) for v in layer.variables}
    changed = {id(v) for i, v in enumerate(model.non_trainable_variables) if i in set(written)} - averages

    def constant(call):
        leaves = call.leaves()
        tensors = [t for t in leaves if t is not None]
        return (
            None not in leaves[: len(leaves) // 2]
            and all(isinstance(t, tf.Tensor) and t.graph is traced.graph and t.ref() not in changing for t in tensors)
            and not call.adds_loss
            and not any(id(v) in changed for v in call.layer.variables)
        )

    answers, number = {}, 0
    while number < len(calls):
        call, size = calls[number], 1
        if constant(call):
            answers[number] = [None if t is None else tf.TensorSpec(t.shape, t.dtype) for t in call.leaves()]
            size = call.size
        number += size
    return answers


def _normalizes(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.BatchNormalization


def _dependent(traced: Any, sources: list[tf.Tensor]) -> set[Any]:
    return dependent_on(sources, traced.graph.get_operations())


def _source(t: tf.Tensor) -> tf.Tensor:
    """Return the tensor that is handed on as this one."""
    while t.op.type == "Identity":
        t = t.op.inputs[0]
    return t
