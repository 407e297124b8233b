"""SavedModels of a learned initialisation that adapt and predict where tf_metagrad is not installed."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _model_card
from tf_metagrad._checks import check_path
from tf_metagrad._folders import put_in_place
from tf_metagrad._signatures import Served
from tf_metagrad.learner import MetaLearner


def export(
    learner: MetaLearner, path: str | os.PathLike, overwrite: bool = False, about: Mapping[str, Any] | None = None
) -> str:
    """Write a SavedModel that adapts and predicts; the numbers of examples and of tasks are free.

    | signature                 | inputs                          | outputs                                           |
    |---------------------------|---------------------------------|---------------------------------------------------|
    | `adapt_and_predict`       | `support_x, support_y, query_x` | `predictions`, adapted to the support set          |
    | `adapt`                   | `support_x, support_y`          | `weights`, the adapted weights as one flat vector |
    | `predict_adapted`         | `weights, query_x`              | `predictions` of such a vector                    |
    | `predict`                 | `query_x`                       | `predictions` of the initialisation               |

    `adapt_and_predict_batch`, `adapt_batch` and `predict_adapted_batch` do the same for a leading axis of tasks.
    `serving_default` is `adapt_and_predict`. A request that cannot be answered (labels outside of the ways, an empty
    support set, NaN, counts that disagree, weights of another length) gets an `InvalidArgumentError` that says so. What
    `saved_model_cli` cannot show is in `assets.extra/model_card.json`. The folder appears whole or not at all;
    TensorFlow Serving wants it to be named by a number, the version: `export(learner, "saved_models/omniglot/1")`.

    Args:
        learner: the learner; its model has one input and one output tensor.
        path: the folder to write.
        overwrite: replace a SavedModel that is there.
        about: where the model comes from (data, command, seed, accuracy), as JSON can hold it; it goes into the card.

    Returns:
        The path.

    Raises:
        ValueError: the model has several inputs or outputs, or a free axis other than the first; no path; JSON cannot
            hold `about`.
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
    if not isinstance(learner, MetaLearner):
        raise ValueError(f"`learner` must be an mg.MetaLearner. Received: {type(learner).__name__}.")
    check_path("path", path, "the folder to write")
    path = os.fspath(path)
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(f"The folder {path!r} exists. Choose another, or pass overwrite=True to replace it.")
    if os.path.exists(path) and not tf.saved_model.contains_saved_model(path):
        raise FileExistsError(f"Only a SavedModel is replaced. Received: {path!r}, which is none. Choose another path.")
    _write_whole(Served(learner), path, _model_card.check_about(about))
    return path


def _write_whole(served: Served, path: str, about: dict[str, Any]) -> None:
    """Write the SavedModel beside its place and move it there, or leave what was there."""
    archive = _archive(served)
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".export-", dir=parent)
    try:
        whole, old = os.path.join(scratch, "saved_model"), os.path.join(scratch, "old")
        archive.write_out(whole, verbose=False)
        _model_card.write(served, whole, about)
        put_in_place(whole, path, old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _archive(served: Served) -> keras.export.ExportArchive:
    archive = keras.export.ExportArchive()
    archive.track(served.learner.model)
    for name, signature in served.signatures().items():
        archive.add_endpoint(name, signature.function, signature.inputs)
    return archive
