"""Calls of a model's layers that are answered with features: what the layers returned when they were called once.

`_frozen` says which, and why.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _masks
from tf_metagrad._second_order import substituted
from tf_metagrad._user_derivatives import differentiates

_OF_KERAS = {"_called", "built", "_convert_input_args", "_dropout_mask", "_recurrent_dropout_mask"}  # set in calls


@dataclasses.dataclass
class Call:
    """A call of a layer while a model is traced.

    Attributes:
        layer: what was called.
        first: number of the first operation that it made.
        end: number of the first one after it.
        size: how many calls it is, with those that it makes.
        outputs: what it returned.
        whole: whether that is all that it did, as far as Keras and the tapes know: it added no loss, set no attribute
            of a layer, and no tape or accumulator of the user's was recording.
    """

    layer: keras.layers.Layer
    first: int
    end: int = 0
    size: int = 0
    outputs: Any = None
    whole: bool = False

    def leaves(self) -> list[tf.Tensor | None]:
        """Return the tensors that the call returned, and then the mask of each or None."""
        leaves = tf.nest.flatten(self.outputs)
        return [*leaves, *map(_masks.mask_of, leaves)]


class Plan:
    """Which calls of a model's layers are answered with features.

    Attributes:
        calls: all calls, in their order; of those that make others, it comes first.
        answers: specifications of the leaves of each call that is answered, by its number.
        kept: `(number of the call, number of the leaf)` of each feature; the other leaves lead to nothing but these.
        count: how many of the features, the first ones, have a derivative by shared weights; the others need none.
    """

    def __init__(self, calls: list[Call], answers: dict[int, list[Any]], kept: list[tuple[int, int]], count: int):
        """Store the parts; see the class."""
        self.calls, self.answers, self.kept, self.count = calls, answers, kept, count

    def features(self, run: Callable[[], Any]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Return the features of `run()`, a call of the model: those that depend on shared weights, and the others."""
        calls: list[Call] = []
        with recorded(calls):
            run()
        found = [calls[call].leaves()[leaf] for call, leaf in self.kept]
        return [_wide(z) for z in found[: self.count]], found[self.count :]

    @contextlib.contextmanager
    def answered(self, features: Sequence[tf.Tensor]) -> Iterator[list[range]]:
        """In this scope the calls are answered with the features; yield the numbers of the operations that do so."""
        known, graph = dict(zip(self.kept, features, strict=True)), tf.compat.v1.get_default_graph()
        number, ranges = 0, []

        def call(original, layer, *args, **kwargs):
            nonlocal number
            here, made = number, self.calls[number]
            if made.layer is not layer:
                raise RuntimeError(f"The model called {layer.name!r} where it had called {made.layer.name!r}.")
            if here not in self.answers:
                number += 1
                return original(layer, *args, **kwargs)
            number += made.size
            first = graph.version
            leaves = [_answer(spec, known.get((here, i))) for i, spec in enumerate(self.answers[here])]
            pairs = zip(leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :], strict=True)
            outputs = tf.nest.pack_sequence_as(made.outputs, [_masks.copied(*pair) for pair in pairs])
            ranges.append(range(first, graph.version))
            return outputs

        with _intercepted(call):
            yield ranges


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
def recorded(calls: list[Call]) -> Iterator[None]:
    """In this scope calls of layers are added to the list, a call before those that it makes."""
    graph, going = tf.compat.v1.get_default_graph(), []

    def call(original, layer, *args, **kwargs):
        made, number = Call(layer, graph.version, whole=not differentiates()), len(calls)
        calls.append(made)
        going.append(made)
        made.outputs = original(layer, *args, **kwargs)
        made.end, made.size = graph.version, len(calls) - number
        going.pop()
        return made.outputs

    def set_attribute(original, layer, name, value):
        if name not in _OF_KERAS:
            do_more()
        original(layer, name, value)

    def add_loss(original, layer, loss):
        do_more()
        original(layer, loss)

    def do_more():
        for made in going:
            made.whole = False

    hooks = {"__setattr__": set_attribute, "add_loss": add_loss}
    with _intercepted(call), contextlib.ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(substituted(keras.layers.Layer, name, hook))
        yield
