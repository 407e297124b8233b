"""Tasks as users hand them in, brought to the structure, shapes and types that the compiled functions are made for.

So NumPy's float64 and int64 run what float32 and int32 have compiled, and no mistake waits for the middle of a run.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad._checks import (
    as_array,
    check_example,
    check_finite,
    check_labels,
    check_shapes,
    check_support,
    check_whole,
    is_floating,
)
from tf_metagrad._types import Params, Task

# Losses whose targets need not have the shape of the model's outputs; the empty name is a loss that is not of Keras.
_OTHER_TARGETS = {
    "", "SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy", "CTC", "Ctc", "Circle",
}  # fmt: skip


class TaskReader:
    """Checks tasks, and makes tensors of them, for one model and one loss.

    Inputs get the type that the model's `keras.Input` has, class labels become int32, and floating-point targets are no
    wider than the weights and Keras' default type; other types stay.

    Args:
        model: a built Keras model.
        loss: `loss(y_true, y_pred)`.
        ways: number of classes where targets are class labels `[examples]`; None for other targets.

    Attributes:
        targets: shape and type of the targets of one support example, as they were last; None before, and for several
            tensors.

    Raises:
        ValueError: the model has several outputs, and a loss of Keras takes one; or the loss takes probabilities, and
            the model makes logits.
    """

    def __init__(self, model: keras.Model, loss: Any, ways: int | None):
        """Store the parts; see the class."""
        self.model, self.ways, self.variables = model, ways, model.trainable_variables
        self.inputs = getattr(model, "inputs", None) or []  # a subclassed model declares none
        self.output = getattr(model, "output_shape", None)
        self.keras_loss = _keras_name(loss)
        types = [keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables]
        self.widest = tf.as_dtype(keras.backend.result_type(keras.config.floatx(), *types))
        if self.keras_loss and len(getattr(model, "outputs", None) or []) > 1:
            raise ValueError(
                f"A loss of `keras.losses` needs a model with one output. Received: {model.name!r}, which has "
                f"{len(model.outputs)}. Give a function of your own, loss(y_true, y_pred), that takes them all."
            )
        self.targets: tf.TensorSpec | None = None
        self._check_scores(loss)

    def batch(self, task: Any) -> Task:
        """Return a batch of tasks as tensors; raise `ValueError` where it is not fit to learn from."""
        self.check_model()
        if not isinstance(task, tuple) or len(task) != len(Task._fields):
            raise ValueError(f"A batch of tasks must be a `Task`, ({', '.join(Task._fields)}). Received: {type(task)}.")
        task = Task(*(self._arrays(name, part) for name, part in zip(Task._fields, task, strict=True)))
        check_shapes(task._asdict(), ("tasks", "examples"))
        task = self._read(task._asdict(), ("tasks", "examples"))
        if self.ways is not None:
            for index, labels in enumerate(np.asarray(task["support_y"])):
                check_support(labels, self.ways, f"task {index} of the batch")
        return Task(**task)

    def support(self, x: Any, y: Any) -> Task:
        """Return the support set of one task, which is the query set too, as a batch of one task."""
        self.check_model()
        parts = {name: self._arrays(name, part) for name, part in (("support_x", x), ("support_y", y))}
        check_shapes(parts, ("examples",))
        parts = self._read(parts, ("examples",))
        if self.ways is not None:
            check_support(np.asarray(parts["support_y"]), self.ways)
        x, y = (tf.nest.map_structure(lambda t: t[None], part) for part in parts.values())
        return Task(x, y, x, y)

    def query(self, x: Any) -> Any:
        """Return inputs `[examples, ...]` as tensors of the model's types."""
        self.check_model()
        x = self._arrays("query_x", x)
        self._check_inputs("query_x", x, ("examples",))
        return tf.nest.map_structure(tf.cast, x, self._input_types(x))

    def weights(self, weights: Any) -> Params:
        """Return the weights; raise `ValueError` unless there is one of the right shape for each of the model's."""
        self.check_model()
        variables = self.model.trainable_variables
        if not isinstance(weights, Sequence) or len(weights) != len(variables):
            count = f"{len(weights)}" if isinstance(weights, Sequence) else type(weights).__name__
            raise ValueError(
                f"`weights` must be the {len(variables)} arrays of `learner.adapt`, in a list. Received: {count}."
            )
        weights = [w if hasattr(w, "shape") else as_array("weights", w) for w in weights]
        for value, variable in zip(weights, variables, strict=True):
            if not tf.TensorShape(value.shape).is_compatible_with(variable.shape):
                raise ValueError(
                    f"`weights` must be what `learner.adapt` returns, with the shape {tuple(variable.shape)} for "
                    f"{variable.path!r}. Received: {tuple(value.shape)}."
                )
        return weights

    def check_model(self) -> None:
        """Raise `ValueError` where the model has other trainable weights than it had."""
        if [id(v) for v in self.model.trainable_variables] != [id(v) for v in self.variables]:
            raise ValueError(
                "The model must have the trainable weights that it had when the learner was made. Received: others, as "
                "layers were frozen, thawed or changed since. Make a new mg.MetaLearner after that."
            )

    # Parts -------------------------------------------------------------------------------------------------------

    def _check_scores(self, loss: Any) -> None:
        """Raise where Keras would clip logits as if they were probabilities, and leave the loss without a gradient."""
        if "Crossentropy" not in self.keras_loss:
            return
        config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {"from_logits": False}
        if config.get("from_logits", True):
            return
        for output in tf.nest.flatten(getattr(self.model, "outputs", None) or []):
            layer = output._keras_history.operation
            if getattr(layer, "activation", None) is keras.activations.linear:
                raise ValueError(
                    f"`loss` takes probabilities, and the model's last layer, {layer.name!r}, has no activation, so "
                    f"that it makes logits. Received: {self.keras_loss} with from_logits=False. Use keras.losses."
                    f'{self.keras_loss}(from_logits=True), or give the layer activation="softmax" or "sigmoid".'
                )

    def _arrays(self, name: str, part: Any) -> Any:
        """Return the part with its leaves as tensors or arrays of numbers; lists of numbers or examples are one."""
        one = len(self.inputs) == 1 if name.endswith("_x") else isinstance(self.output, tuple)
        if isinstance(part, list) and (one or all(np.isscalar(leaf) for leaf in tf.nest.flatten(part))):
            part = as_array(name, part)
        return tf.nest.map_structure(lambda leaf: as_array(name, leaf), part)

    def _read(self, parts: dict[str, Any], axes: tuple[str, ...]) -> dict[str, Any]:
        """Return the parts, found fit, as tensors of the types to compute with."""
        found = {}
        for name, part in parts.items():
            if name.endswith("_x"):
                self._check_inputs(name, part, axes)
                types = self._input_types(part)
            else:
                self._check_targets(name, part, axes)
                types = tf.nest.map_structure(self._target_type, part)
            found[name] = tf.nest.map_structure(tf.cast, part, types)
            for leaf in tf.nest.flatten(found[name]):
                check_finite(name, np.asarray(leaf))
        self._note_targets(found["support_y"], len(axes))
        return found

    def _note_targets(self, y: Any, axes: int) -> None:
        """Remember what the targets of a support set are like; an axis that was of several lengths is free."""
        if not tf.is_tensor(y):
            self.targets = None
            return
        shape, before = y.shape[axes:], self.targets
        if before is not None and before.shape.rank == shape.rank:
            shape = before.shape.most_specific_compatible_shape(shape)
        self.targets = tf.TensorSpec(shape, y.dtype)

    def _check_inputs(self, name: str, part: Any, axes: tuple[str, ...]) -> None:
        leaves, likes = tf.nest.flatten(part), self._declared(part)
        if self.inputs and len(leaves) < len(self.inputs):
            names = ", ".join(i.name for i in self.inputs)
            raise ValueError(
                f"`{name}` must have an array for each of the model's inputs, {names}. Received: {len(leaves)}."
            )
        for leaf, like in zip(leaves, likes, strict=True):
            if like is not None:
                check_example(name, leaf, tuple(like.shape)[1:], "the model's inputs", axes)
                if tf.as_dtype(like.dtype).is_integer:
                    check_whole(name, leaf, "whole numbers, as the model's inputs are")

    def _check_targets(self, name: str, part: Any, axes: tuple[str, ...]) -> None:
        if self.ways is not None and not hasattr(part, "shape"):
            raise ValueError(f"`{name}` must be one array of class labels. Received: {type(part).__name__}.")
        if self.ways is not None:
            check_example(name, part, (), "class labels", axes, self.ways)
            check_finite(name, np.asarray(part))
            check_labels(name, np.asarray(part), self.ways)
            check_whole(name, part, "class labels, whole numbers")
        elif self.keras_loss not in _OTHER_TARGETS and isinstance(self.output, tuple) and hasattr(part, "shape"):
            what = "the model's outputs"
            if "Categorical" in self.keras_loss and not is_floating(part):
                what = "one-hot targets (SparseCategoricalCrossentropy takes labels)"
            check_example(name, part, self.output[1:], what, axes)

    @property
    def _sparse(self) -> bool:
        return self.ways is not None or "Sparse" in self.keras_loss

    def _declared(self, part: Any) -> list[Any]:
        """Return the model's own description of each leaf, or None for a leaf that it has none of."""
        leaves, named = tf.nest.flatten(part), {i.name: i for i in self.inputs}
        if isinstance(part, dict) and named.keys() <= part.keys():
            return [named.get(key) for key in sorted(part)]  # as `tf.nest.flatten` has them
        return [*self.inputs, *[None] * len(leaves)][: len(leaves)]

    def _input_types(self, part: Any) -> Any:
        own = self.model.input_dtype if self.model.autocast else None
        types = [
            like.dtype if like is not None else own if own and is_floating(leaf) else leaf.dtype
            for leaf, like in zip(tf.nest.flatten(part), self._declared(part), strict=True)
        ]
        return tf.nest.pack_sequence_as(part, types)

    def _target_type(self, leaf: Any) -> Any:
        if self._sparse:
            return tf.int32
        wider = is_floating(leaf) and tf.as_dtype(leaf.dtype).size > self.widest.size
        return self.widest if wider else tf.as_dtype(leaf.dtype)


def _keras_name(loss: Any) -> str:
    """Return the class name of a loss of Keras, or of that which belongs to its function; empty for others."""
    kind = loss if inspect.isfunction(loss) else type(loss)
    if not (kind.__module__ or "").startswith("keras.src.losses"):
        return ""
    return "".join(word.capitalize() for word in kind.__name__.split("_")) if loss is kind else kind.__name__
