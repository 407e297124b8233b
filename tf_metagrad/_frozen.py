"""What the inner loop holds constant: the outputs of layers that no adapting weight reaches, computed once for a task.

With `adapt=[...]`, or under layers that are not trainable, a part of the network is the same function of the support
set at every inner step. Its outputs z, the "features" of ANIL, are computed once; the inner loop and HVPs work on

    l_trn(phi, psi) = h(phi, psi, z),   z = b(psi, x),

in which z stands beside the shared weights psi. What reaches z at all the steps is summed, and b is transposed once:

    d/dpsi l_trn = d/dpsi h + (db/dpsi)^T d/dz h.

So is the query loss cut, where an estimator looks at it at many points of a task (`Problem.judged_often`).

The cut runs between calls of Keras layers. A call stays in the loop if what it returns depends on an adapting weight or
on state that changes (Dropout's seeds); if it adds a loss, or changes state other than averages of BatchNormalization
that nothing reads; if anything but what it returns is read elsewhere, or it sets an attribute of a layer; or if the
user's code differentiates around it. Nothing is cut where z would be larger than what it is made of, psi and x: an
adjoint of its size goes along.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from absl import logging
from tensorflow.python.ops import gradients_util

from tf_metagrad._features import Call, Plan, recorded
from tf_metagrad._graphs import dependent_on, inputs_of, leading_to
from tf_metagrad._second_order import substituted
from tf_metagrad._types import Params
from tf_metagrad._user_derivatives import user_derivatives

_PASSING = {"Placeholder", "Identity", "NoOp"}


def possible(model: keras.Model, adapting: Sequence[int]) -> bool:
    """Return whether a layer has weights none of which adapts."""
    chosen = {id(model.trainable_variables[i]) for i in adapting}
    layers = model._flatten_layers(include_self=False)
    return any(layer.weights and not any(id(v) in chosen for v in layer.weights) for layer in layers)


class Cut(NamedTuple):
    """How a loss is cut.

    Attributes:
        plan: which calls to answer with features, or None where it is not worth it, or cannot be done.
        written: the indices of the state that the loss changes; None where that is not known.
    """

    plan: Plan | None = None
    written: frozenset[int] | None = None


def cut(
    model: Any, weights: Params, state: Params, adapting: Sequence[int], x: Any, y: Any, changing: Iterable[int]
) -> Cut:
    """Return how to cut the loss of a set.

    Args:
        model: the `FunctionalModel`.
        weights: specifications of all weights.
        state: of the model's state.
        adapting: the indices of the weights that adapt.
        x: of the examples of a support or query set.
        y: of their targets.
        changing: the indices of state that is another at every step, whether this loss changes it or not.
    """
    try:
        return _cut(model, (list(weights), list(state), x, y), adapting, frozenset(changing))
    except Exception as error:  # the user's code, which may take features for something else; without them it runs
        logging.info("What frozen layers compute is computed at every inner step: %s", error)
        return Cut()


def _cut(model: Any, arguments: Any, adapting: Sequence[int], changing: frozenset[int]) -> Cut:
    calls: list[Call] = []
    replaced: list[range] = []

    def whole(*arguments):
        with user_derivatives(), recorded(calls):
            return model.loss(*arguments, training=True)

    def rest(features, *arguments):
        with Plan(calls, answers, kept, 0).answered(features) as ranges:
            result = model.loss(*arguments, training=True)
        replaced.extend(ranges)
        return result

    with _symbolic_gradients() as symbolic:
        traced = tf.function(whole, autograph=False).get_concrete_function(*arguments)
    trace = _Trace(traced, arguments, adapting, changing)
    answers = trace.constant_calls(calls, model.model.non_trainable_variables, _averages(model, trace, arguments))
    none = Cut(written=trace.written)
    if symbolic or not any(calls[number].layer.weights for number in answers):
        return none
    kept = [(number, i) for number, specs in answers.items() for i, spec in enumerate(specs) if spec is not None]
    specs = [answers[number][i] for number, i in kept]
    shorter = tf.function(rest, autograph=False).get_concrete_function(specs, *arguments)
    trace.check_same(shorter.graph, replaced, [range(calls[number].first, calls[number].end) for number in answers])
    effects = [t for op in shorter.graph.get_operations() if op.op_def.is_stateful for t in op.inputs]
    read = {t.ref() for op in leading_to([*shorter.outputs, *effects], lambda t: False) for t in op.outputs}
    features = inputs_of(shorter, (specs, *arguments))[0]
    kept = [key for key, t in zip(kept, features, strict=True) if t.ref() in read]
    learned = [(number, i) for number, i in kept if trace.learned(calls[number].leaves()[i])]
    if not kept or _size(answers[number][i] for number, i in learned) > trace.size:
        return none
    for call in calls:  # let go of the graph
        call.outputs = tf.nest.map_structure(lambda _: 0, call.outputs)
    kept = learned + [key for key in kept if key not in learned]
    return Cut(Plan(calls, answers, kept, len(learned)), trace.written)


@contextlib.contextmanager
def _symbolic_gradients() -> Iterator[list[bool]]:
    """Yield a list that has an entry for each call of `tf.gradients` in the scope."""
    found: list[bool] = []

    def call(original, *args, **kwargs):
        found.append(True)
        return original(*args, **kwargs)

    with substituted(gradients_util, "_GradientsHelper", call):
        yield found


def _size(tensors: Iterable[Any]) -> int:
    """Return how many numbers there are; an axis of unknown size counts as one."""
    return sum(math.prod(size or 1 for size in t.shape) for t in tensors)


def _averages(model: Any, trace: "_Trace", arguments: Any) -> set[int]:
    """Return the indices of averages of BatchNormalization that change and that nothing reads, in use neither."""
    owned = {id(v) for layer in model.model._flatten_layers() if _normalizes(layer) for v in layer.variables}
    found = {i for i, v in enumerate(model.model.non_trainable_variables) if i in trace.written and id(v) in owned}
    if not found:
        return found
    served = tf.function(lambda *arguments: model.loss(*arguments, training=False), autograph=False)
    served = _Trace(served.get_concrete_function(*arguments), arguments, [], frozenset())
    while read := {i for i in found if trace.reads(i, found) or served.reads(i, found)}:
        found -= read
    return found


class _Trace:
    """A loss, traced, and what depends on what in it.

    Attributes:
        written: the indices of the state that it changes.
        size: how many numbers the weights that do not adapt have, and the examples.
    """

    def __init__(self, traced: Any, arguments: Any, adapting: Sequence[int], changing: frozenset[int]):
        self._graph, self._outputs = traced.graph, traced.outputs
        self._operations = traced.graph.get_operations()
        self._number = {op.name: number for number, op in enumerate(self._operations)}
        weights, self._state, x, _ = inputs_of(traced, arguments)
        loss, (self._after, predictions) = traced.structured_outputs
        self._results = [t for t in tf.nest.flatten([loss, predictions]) if tf.is_tensor(t)]
        pairs = zip(self._state, self._after, strict=True)
        self._written = {i: _source(b) for i, (a, b) in enumerate(pairs) if _source(b) is not a}
        self.written = frozenset(self._written)
        adapting = [weights[i] for i in adapting]
        shared = [w for w in weights if not any(w is a for a in adapting)]
        random = [t for op in self._operations if op.op_def.is_stateful for t in op.outputs]
        state = [self._state[i] for i in self.written | changing]
        self._changing = dependent_on([*adapting, *state, *random], self._operations)
        self._shared = dependent_on(shared, self._operations)
        self.size = _size([*shared, *tf.nest.flatten(x)])

    def learned(self, t: tf.Tensor) -> bool:
        """Return whether a tensor has a derivative by weights that do not adapt."""
        return t.ref() in self._shared and t.dtype.is_floating

    def reads(self, index: int, others: set[int]) -> bool:
        """Return whether anything but these others of the state depends on this one, as it was before."""
        after = [t for i, t in enumerate(self._after) if i not in others]
        found = dependent_on([self._state[index]], self._operations)
        return any(t.ref() in found for t in [*self._results, *after])

    def constant_calls(self, calls: list[Call], state: Sequence[Any], averages: set[int]) -> dict[int, list[Any]]:
        """Return the outermost calls that are the same at every step: by number, the specifications of their leaves.

        `state` are the model's non-trainable variables; of those of `averages` it does not matter that they change.
        """
        changed = {i: id(state[i]) for i in self.written - averages}
        answers, number = {}, 0
        while number < len(calls):
            call, size = calls[number], 1
            if call.whole and self._constant(call) and self._closed(call) and not self._changes(call, changed):
                answers[number] = [None if t is None else tf.TensorSpec(t.shape, t.dtype) for t in call.leaves()]
                size = call.size
            number += size
        return answers

    def check_same(self, graph: Any, replaced: list[range], by: list[range]) -> None:
        """Raise `ValueError` where a graph differs from this one in more than these ranges of theirs and ours."""
        ours, theirs = _kinds(self._operations, by), _kinds(graph.get_operations(), replaced)
        if ours != theirs or any(getattr(outer, "graph", None) is self._graph for outer, _ in graph.captures):
            raise ValueError("layers meet in another way than by what they return")

    def _constant(self, call: Call) -> bool:
        """Return whether a call returns plain tensors that are the same at every step."""
        leaves = call.leaves()
        return None not in leaves[: len(leaves) // 2] and all(
            isinstance(t, tf.Tensor)
            and getattr(t, "graph", None) is self._graph  # an eager tensor has none
            and t.ref() not in self._changing
            and t.shape.rank is not None
            and not t.dtype.is_complex
            for t in leaves
            if t is not None
        )

    def _closed(self, call: Call) -> bool:
        """Return whether nothing but what a call returns is read outside of it, or handed out as new state."""
        given = {t.ref() for t in call.leaves() if t is not None}
        handed_out = {t.op.name for t in self._outputs}
        return all(
            t.ref() in given or op.name in handed_out or call.first <= self._number[op.name] < call.end
            for made in self._operations[call.first : call.end]
            for t in made.outputs
            for op in t.consumers()
        )

    def _changes(self, call: Call, changed: dict[int, int]) -> bool:
        """Return whether a call or its layer changes state."""
        made = any(call.first <= self._number[self._written[i].op.name] < call.end for i in changed)
        return made or any(id(v) in changed.values() for v in call.layer.variables)


def _kinds(operations: list[tf.Operation], without: list[range]) -> list[Any]:
    """Return the types of operations, and the values of those that are numbers; not those in the given ranges."""
    out = {number for numbers in without for number in numbers}
    kept = [op for number, op in enumerate(operations) if number not in out and op.type not in _PASSING]
    number = [op.type == "Const" and op.outputs[0].dtype != tf.string for op in kept]  # messages name tensors
    return [(o.type, n and o.get_attr("value").SerializeToString()) for o, n in zip(kept, number, strict=True)]


def _normalizes(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.BatchNormalization


def _source(t: tf.Tensor) -> tf.Tensor:
    """Return the tensor that is handed on as this one."""
    while t.op.type == "Identity":
        t = t.op.inputs[0]
    return t
