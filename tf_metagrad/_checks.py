"""Checks of what users hand in: each raises `ValueError` with what was received, what was expected, and the fix."""

import difflib
import operator
import os
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad._types import Task
from tf_metagrad.inner import InnerOptimizer
from tf_metagrad.inner._base import is_one_of


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
        raise ValueError(
            f"`model` must have trainable weights. Received: {model.name!r}, which has none. "
            "A subclassed model makes them when it is called once on a batch of data."
        )


def known(module: ModuleType, value: Any, what: str) -> Any:
    """Return `module.get(value)`, of `keras.losses` or its like; raise `ValueError` where it is none of these."""
    found = _get(module, value)
    if found is None:
        names = sorted({name.lower() for name in dir(module)} | {"accuracy"})  # not a name of the module, but known
        close = difflib.get_close_matches(value.lower(), names) if isinstance(value, str) else []
        hint = next((f" Did you mean {name!r}?" for name in close if _get(module, name) is not None), "")
        raise ValueError(f"{what}. Received: {value!r}.{hint}")
    return found


def _get(module: ModuleType, value: Any) -> Any:
    try:
        return module.get(value)
    except (ValueError, TypeError):
        return None


_OF_ONE_HOTS = {"categoricalaccuracy", "categoricalcrossentropy", "topkcategoricalaccuracy"}


def check_metrics(metrics: Any, ways: int | None) -> None:
    """Raise unless `metrics` is what Keras takes, a list, whose texts are names of metrics, and takes such targets."""
    if metrics is not None and not isinstance(metrics, list | tuple | dict):
        raise ValueError(f'`metrics` must be a list, such as metrics=["accuracy"]. Received: {metrics!r}.')
    for metric in keras.tree.flatten(metrics):
        if metric is not None and metric not in ("accuracy", "acc", "crossentropy", "ce"):  # Keras' own short names
            known(keras.metrics, metric, "`metrics` must hold metrics of `keras.metrics` or their names")
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
        own = isinstance(metric, str) or (getattr(metric, "__module__", None) or "").startswith("keras.")
        if ways is not None and own and str(name).replace("_", "").lower() in _OF_ONE_HOTS:
            raise ValueError(
                '`metrics` must be of class labels, as the loss is: "accuracy", or one of keras.metrics.Sparse... '
                f"Received: {name!r}, which takes one-hot targets."
            )


def check_nonfinite(on_nonfinite: Any, answers: Sequence[str]) -> None:
    """Raise unless this is one of the answers to a task that diverges."""
    if not is_one_of(on_nonfinite, answers):
        raise ValueError(f'`on_nonfinite` must be "raise" or "skip". Received: {on_nonfinite!r}.')


def check_path(name: str, path: Any, what: str) -> None:
    """Raise unless this can be the path of a file or a folder."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        raise ValueError(f"`{name}` must be the path of {what}. Received: {path!r}.")


def as_seed(seed: Any) -> tf.Tensor:
    """Return a seed as int64; raise unless it is a whole number of 64 bits."""
    try:
        return tf.constant(operator.index(seed), tf.int64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"`seed` must be a whole number of at most 64 bits. Received: {seed!r}.") from None


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
    adapt = [adapt] if isinstance(adapt, str) else adapt
    if not isinstance(adapt, Sequence) or not adapt or not all(isinstance(name, str) for name in adapt):
        raise ValueError(f'`adapt` must be "all" or names of layers. Received: adapt={adapt!r}.')
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


def as_batches(tasks: Any) -> Iterable[Any]:
    """Return batches of tasks, where one batch may stand for itself."""
    if not isinstance(tasks, Iterable):
        raise ValueError(f"`tasks` must be batches of tasks, such as a dataset. Received: {type(tasks).__name__}.")
    return [tasks] if isinstance(tasks, Task) else tasks


def check_shapes(parts: dict[str, Any], axes: tuple[str, ...]) -> None:
    """Raise unless all parts have as many tasks, and inputs as many examples as their targets."""
    shapes = {name: [tuple(leaf.shape) for leaf in tf.nest.flatten(part)] for name, part in parts.items()}
    lead, received = len(axes), ", ".join(f"{n} {v[0]}" for n, v in shapes.items() if v)
    sets = [{s[:lead] for n, v in shapes.items() if n.startswith(kind) for s in v} for kind in ("support", "query")]
    found = [one for one in sets if one or lead == 2]
    if any(0 in shape for shape in set().union(*found)):
        raise ValueError(
            "A batch must have at least one task, and a task at least one support and one query example. "
            f"Received: {received}."
        )
    agree = all(len(one) == 1 and len(min(one)) == lead for one in found)
    if agree and len({min(one)[: lead - 1] for one in found}) == 1:
        return
    if lead == 1:
        raise ValueError(
            "`support_x` and `support_y` must have the shapes [examples, ...], with as many targets as inputs. "
            f"Received: {received}."
        )
    raise ValueError(
        "The parts of a batch of tasks must have the shapes [tasks, examples, ...], with the same number of tasks, "
        f"and as many targets as inputs. Received: {received}."
    )


def check_example(
    name: str, values: Any, like: tuple[int | None, ...], what: str, axes: tuple[str, ...], ways: int | None = None
) -> None:
    """Raise unless each example has the shape `like`; a last axis of 1 may be there or not, as Keras has it."""
    whole, lead = tuple(values.shape), len(axes)
    if _fits(whole[lead:], like):
        return
    hint = ""
    if ways is not None and whole[lead:] == (ways,):
        hint = " One-hot targets need keras.losses.CategoricalCrossentropy."
    elif lead == 1 and len(whole) > 1 and _fits(whole[2:], like):
        hint = f" It looks like a batch of tasks; hand in one at a time, such as {name}[0]."
    elif lead == 2 and _fits(whole[1:], like):
        hint = f" It looks like one task; give it an axis of tasks, such as {name}[None], or the dataset .batch(1)."
    first = "The first two axes are tasks and examples" if lead == 2 else "The first axis is examples"
    raise ValueError(
        f"Each example of `{name}` must have the shape of {what}, {like}. Received: {whole[lead:]}, in "
        f"{'a batch' if lead == 2 else 'an array'} of shape {whole}. {first}.{hint}"
    )


def _fits(shape: tuple[int | None, ...], like: tuple[int | None, ...]) -> bool:
    one, other = (s[:-1] if s and s[-1] == 1 else s for s in (shape, like))
    return tf.TensorShape(one).is_compatible_with(other)


def as_array(name: str, leaf: Any) -> Any:
    """Return a leaf as a tensor or an array; raise `ValueError` unless it holds numbers."""
    if leaf is None:
        raise ValueError(f"`{name}` must hold numbers. Received: None.")
    if not isinstance(leaf, tf.Tensor):
        try:
            leaf = np.asarray(leaf)
        except ValueError:
            raise ValueError(f"`{name}` must be one array. Received: a list whose parts differ in shape.") from None
    try:
        dtype = tf.as_dtype(leaf.dtype)
    except TypeError:  # objects, dates
        dtype = tf.variant
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        kind = leaf.dtype if dtype == tf.variant else dtype.name
        raise ValueError(f"`{name}` must hold numbers. Received: dtype {kind}. Convert it first.")
    return leaf


def is_floating(leaf: Any) -> bool:
    """Return whether an array or a tensor holds floating-point numbers."""
    return tf.as_dtype(leaf.dtype).is_floating


def check_whole(name: str, leaf: Any, what: str) -> None:
    """Raise where an array has fractions."""
    if is_floating(leaf) and np.any(np.asarray(leaf) % 1):
        raise ValueError(f"`{name}` must be {what}. Received: dtype {tf.as_dtype(leaf.dtype).name}, with fractions.")


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
