"""SavedModels of a learned initialisation that adapt and predict where tf_metagrad is not installed."""

import os
import shutil
import tempfile
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._execution import Execution
from tf_metagrad._types import Task
from tf_metagrad.learner import MetaLearner

_ONE_TASK = Execution(tasks="loop", jit_compile=False)


def export(learner: MetaLearner, path: str | os.PathLike, overwrite: bool = False) -> str:
    """Write a SavedModel with four signatures; the first axes may have any size.

    | signature           | inputs                          | outputs                                           |
    |---------------------|---------------------------------|---------------------------------------------------|
    | `adapt_and_predict` | `support_x, support_y, query_x` | `predictions` of the weights adapted to the support set |
    | `adapt`             | `support_x, support_y`          | `weights`, the adapted weights as one flat vector |
    | `predict_adapted`   | `weights, query_x`              | `predictions` of such a vector                    |
    | `predict`           | `query_x`                       | `predictions` of the initialisation               |

    The folder appears whole or not at all.

    Args:
        learner: the learner; its model has one input and one output tensor.
        path: the folder to write.
        overwrite: replace a SavedModel that is there.

    Returns:
        The path.

    Raises:
        ValueError: the model has several inputs or outputs, or a free axis other than the first.
        FileExistsError: the folder exists and `overwrite` is False, or it is not a SavedModel.

    Example:
        >>> import tempfile
        >>> from tf_metagrad import inner, models
        >>> learner = MetaLearner(models.mlp(), "mse", inner.GradientDescent(steps=1))
        >>> folder = export(learner, tempfile.mkdtemp() + "/sinusoid")
        >>> served = tf.saved_model.load(folder)
        >>> x = tf.ones([7, 1])
        >>> served.signatures["adapt_and_predict"](support_x=x, support_y=x, query_x=x)["predictions"].shape
        TensorShape([7, 1])
    """
    path = os.fspath(path)
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(f"The folder {path!r} exists. Choose another, or pass overwrite=True to replace it.")
    if os.path.exists(path) and not tf.saved_model.contains_saved_model(path):
        raise FileExistsError(f"Only a SavedModel is replaced. Received: {path!r}, which is none. Choose another path.")
    archive = _archive(learner)
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".export-", dir=parent)
    try:
        whole, old = os.path.join(scratch, "saved_model"), os.path.join(scratch, "old")
        archive.write_out(whole, verbose=False)
        if os.path.exists(path):
            os.replace(path, old)
        try:
            os.replace(whole, path)
        except OSError:
            if os.path.exists(old):
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _archive(learner: MetaLearner) -> keras.export.ExportArchive:
    support_x, support_y, query_x, weights = _signature(learner)
    shapes = learner.adapting_weights.shapes
    archive = keras.export.ExportArchive()
    archive.track(learner.model)

    def adapted(x, y):
        task = Task(x[None], y[None], x[None], y[None])
        _, phi = learner.use(lambda problem: ([], problem.adapt().end), task, 0, execution=_ONE_TASK)
        return [p[0] for p in phi]

    def adapt_and_predict(support_x, support_y, query_x):
        return {"predictions": learner.predict_adapted(learner.full_weights(adapted(support_x, support_y)), query_x)}

    def adapt(support_x, support_y):
        return {"weights": _tree.ravel(adapted(support_x, support_y))}

    def predict_adapted(weights, query_x):
        full = learner.full_weights(_tree.unravel(weights, shapes))
        return {"predictions": learner.predict_adapted(full, query_x)}

    def predict(query_x):
        full = [tf.convert_to_tensor(v) for v in learner.model.trainable_variables]
        return {"predictions": learner.predict_adapted(full, query_x)}

    archive.add_endpoint("adapt_and_predict", adapt_and_predict, [support_x, support_y, query_x])
    archive.add_endpoint("adapt", adapt, [support_x, support_y])
    archive.add_endpoint("predict_adapted", predict_adapted, [weights, query_x])
    archive.add_endpoint("predict", predict, [query_x])
    return archive


def _signature(learner: MetaLearner) -> list[tf.TensorSpec]:
    """Return the specs of support_x, support_y, query_x and the flat weights."""
    x, y = _example_shape(learner.model, "input"), _example_shape(learner.model, "output")
    dtype = learner.model.inputs[0].dtype
    target = ([None], tf.int32) if learner.ways is not None else ([None, *y], dtype)
    size = sum(tf.TensorShape(shape).num_elements() for shape in learner.adapting_weights.shapes)
    return [
        tf.TensorSpec([None, *x], dtype, "support_x"),
        tf.TensorSpec(*target, "support_y"),
        tf.TensorSpec([None, *x], dtype, "query_x"),
        tf.TensorSpec([size], learner.model.trainable_variables[0].dtype, "weights"),
    ]


def _example_shape(model: keras.Model, end: str) -> tuple[int, ...]:
    shape: Any = getattr(model, f"{end}_shape", None)
    if not isinstance(shape, tuple) or not all(isinstance(n, int) for n in shape[1:]):
        raise ValueError(
            f"`export` needs a model with one {end} tensor whose axes after the first are fixed. Received: "
            f"{end} shape {shape}. Wrap the model in a functional one, keras.Model(keras.Input(...), ...)."
        )
    return shape[1:]
