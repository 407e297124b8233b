"""Checks of what users hand in: each raises `ValueError` with what was received, what was expected, and the fix."""

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad._types import Task
from tf_metagrad.inner import InnerOptimizer


def check_model(model: Any) -> None:
    """Raise unless `model` is a built Keras model with something to train."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"`model` must be built, so that its weights exist. Received: {model.name!r}, which is not built. "
            "Give it a `keras.Input`, or call it once on a batch of data, before making the learner."
        )
    if not model.trainable_variables:
        raise ValueError(f"`model` must have trainable weights. Received: {model.name!r}, which has none.")


def check_normalization(normalization: Any, model: keras.Model, inner: InnerOptimizer) -> None:
    """Raise unless `normalization` is a known kind that the model and the inner optimiser can take."""
    if normalization not in ("batch", "stored", "per_step"):
        raise ValueError(f'`normalization` must be "batch", "stored" or "per_step". Received: {normalization!r}.')
    if normalization == "per_step" and not batch_norm_averages(model):
        raise ValueError(
            'normalization="per_step" needs a model with BatchNormalization layers that are trainable. '
            f"Received: {model.name!r}, which has none. Use the default."
        )
    if normalization == "per_step" and inner.tolerance:
        raise ValueError(
            'normalization="per_step" needs the same number of inner steps for every task. '
            f"Received: an inner optimiser with tolerance={inner.tolerance}. Use tolerance=0."
        )


def batch_norm_averages(model: keras.Model) -> list[int]:
    """Return the indices, among the non-trainable variables, of the moving averages of batch normalisation."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    averages = {id(v) for layer in layers if layer.trainable for v in (layer.moving_mean, layer.moving_variance)}
    return [i for i, v in enumerate(model.non_trainable_variables) if id(v) in averages]


def adapting_indices(model: keras.Model, adapt: Any) -> list[int]:
    """Return the indices, among the model's trainable variables, of those that adapt.

    Raises:
        ValueError: `adapt` is neither "all" nor names of layers with trainable weights.
    """
    variables = model.trainable_variables
    if adapt == "all":
        return list(range(len(variables)))
    if isinstance(adapt, str) or not adapt or not all(isinstance(name, str) for name in adapt):
        raise ValueError(f'`adapt` must be "all" or a list of layer names. Received: adapt={adapt!r}.')
    layers = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    chosen = set()
    for name in adapt:
        if name not in layers or not layers[name].trainable_variables:
            known = sorted(n for n, layer in layers.items() if layer.trainable_variables)
            raise ValueError(
                f"`adapt` must name layers of the model that have trainable weights. Received: {name!r}. "
                f"The model {model.name!r} has: {', '.join(known)}."
            )
        chosen |= {id(v) for v in layers[name].trainable_variables}
    return [i for i, v in enumerate(variables) if id(v) in chosen]


def layer_numbers(variables: list[keras.Variable]) -> list[int]:
    """Return for each variable the number of the layer that owns it, counting layers in order of appearance."""
    owners = [variable.path.rpartition("/")[0] for variable in variables]
    order = list(dict.fromkeys(owners))
    return [order.index(owner) for owner in owners]


def check_tasks(task: Task, ways: int | None) -> None:
    """Raise where a batch of tasks has NaN, labels outside 0 .. ways-1, or a support set that lacks a class.

    Args:
        task: a batch of tasks, with a leading axis.
        ways: number of classes where targets are class labels `[tasks, examples]`; None for other targets.
    """
    task = as_batch(task)
    for name, part in task._asdict().items():
        for leaf in tf.nest.flatten(part):
            check_finite(name, np.asarray(leaf))
    if ways is None:
        return
    for name in ("support_y", "query_y"):
        check_labels(name, np.asarray(getattr(task, name)), ways)
    for index, labels in enumerate(np.asarray(task.support_y)):
        check_support(labels, ways, f"task {index} of the batch")


def as_batch(task: Any) -> Task:
    """Return a batch of tasks as a `Task`; raise where its parts do not agree."""
    if not isinstance(task, tuple) or len(task) != len(Task._fields):
        raise ValueError(f"A batch of tasks must be a `Task`, ({', '.join(Task._fields)}). Received: {type(task)}.")
    check_shapes(Task(*task))
    return Task(*task)


def check_fit(task: Task, model: keras.Model, loss: Any, ways: int | None) -> None:
    """Raise unless inputs have the model's shape and a dtype it can read, and targets fit the loss."""
    for name, part in task._asdict().items():
        for leaf in tf.nest.flatten(part):
            if not (leaf.dtype.is_floating or leaf.dtype.is_integer or leaf.dtype.is_bool):
                raise ValueError(f"`{name}` must hold numbers. Received: dtype {leaf.dtype.name}. Convert it first.")
    inputs = getattr(model, "inputs", None) or []
    for name in ("support_x", "query_x"):
        for leaf, like in zip(tf.nest.flatten(getattr(task, name)), inputs, strict=False):
            _check_shape(name, leaf, tuple(like.shape)[1:], "the model's inputs")
    output = getattr(model, "output_shape", None)
    for name in ("support_y", "query_y"):
        targets = getattr(task, name)
        if ways is not None:
            _check_shape(name, targets, (), "class labels")
            if targets.dtype.is_floating and np.any(np.asarray(targets) % 1):
                raise ValueError(f"`{name}` must be class labels, whole numbers. Received: dtype {targets.dtype.name}.")
        elif _is_keras(loss) and isinstance(output, tuple) and tf.is_tensor(targets):
            _check_shape(name, targets, output[1:], "the model's outputs")


def _is_keras(loss: Any) -> bool:
    """Return whether a loss is one of Keras' that compare targets with outputs of the same shape."""
    kind = loss if inspect.isfunction(loss) else type(loss)
    return kind.__module__.startswith("keras.src.losses") and "sparse" not in kind.__name__.lower()


def _check_shape(name: str, values: tf.Tensor, like: tuple[int | None, ...], what: str) -> None:
    """Raise unless each example has the shape `like`; a last axis of 1 may be there or not, as Keras has it."""
    shape = tuple(values.shape[2:])
    one, other = (s[:-1] if s and s[-1] == 1 else s for s in (shape, like))
    if not tf.TensorShape(one).is_compatible_with(other):
        raise ValueError(
            f"Each example of `{name}` must have the shape of {what}, {like}. Received: {shape}, in a batch of shape "
            f"{tuple(values.shape)}. The first two axes are tasks and examples."
        )


def check_shapes(task: Task) -> None:
    """Raise unless all parts have as many tasks, and inputs as many examples as their targets."""
    shapes = {name: [tuple(np.shape(leaf)) for leaf in tf.nest.flatten(part)] for name, part in task._asdict().items()}
    support = {shape[:2] for shape in shapes["support_x"] + shapes["support_y"]}
    query = {shape[:2] for shape in shapes["query_x"] + shapes["query_y"]}
    if any(0 in shape for shape in support | query):
        raise ValueError(
            "A batch must have at least one task, and a task at least one support and one query example. "
            f"Received: {', '.join(f'{n} {v[0]}' for n, v in shapes.items() if v)}."
        )
    agree = len(support) == len(query) == 1 and all(len(shape) == 2 for shape in support | query)
    if not agree or len({shape[0] for shape in support | query}) != 1:
        raise ValueError(
            "The parts of a batch of tasks must have the shapes [tasks, examples, ...], with the same number of tasks, "
            f"and as many targets as inputs. Received: {', '.join(f'{n} {v[0]}' for n, v in shapes.items())}."
        )


def check_finite(name: str, values: np.ndarray) -> None:
    """Raise where floating-point values are NaN or infinite."""
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"`{name}` must be finite. Received: {values[first]} at index {first}. Remove or fill such values."
        )


def check_labels(name: str, labels: np.ndarray, ways: int) -> None:
    """Raise where a class label is outside of 0 .. ways-1."""
    if labels.size and not (0 <= labels.min() and labels.max() < ways):
        wrong = labels[(labels < 0) | (labels >= ways)].flat[0]
        raise ValueError(
            f"`{name}` must be in 0 .. {ways - 1}, the model's {ways} outputs. Received: {int(wrong)}. "
            "Relabel the task's classes from 0, or give the model as many outputs as there are ways."
        )


def check_support(labels: np.ndarray, ways: int, where: str = "the task") -> None:
    """Raise where a support set has no example of a class."""
    missing = sorted(set(range(ways)) - set(labels.ravel().tolist()))
    if missing:
        raise ValueError(
            f"A support set must have at least one example of each of the {ways} classes. Received: {where} without "
            f"class {missing}. Draw tasks with `shots` examples of every class."
        )
