"""The card of a SavedModel: what its signatures mean, in words and as JSON."""

import json
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_metagrad._signatures import Served

FILE = os.path.join("assets.extra", "model_card.json")
_MEANING = {
    "support_x": "the examples to adapt to, one at least; finite",
    "support_y": "their targets",
    "query_x": "the examples to predict; finite, any number",
    "weights": "adapted weights as one vector, laid out as `adapted_weights` says",
    "predictions": "the outputs of the model for each query example",
}
_NORMALIZATION = {
    "batch": "the statistics of the examples at hand, so the predictions of a query set depend on the whole set",
    "stored": "stored averages, so a prediction does not depend on the rest of its query set",
    "per_step": "stored averages of each inner step, so a prediction does not depend on the rest of its query set",
}
_ERRORS = [
    "`support_x` and `support_y` differ in their number of examples (or tasks)",
    "an empty support set, or an empty batch of tasks",
    "NaN or infinity in an input; adapted weights that are not finite",
    "labels outside of 0 .. ways - 1",
    "`weights` of another length than `adapted_weights` says",
    "examples of another shape",
]


def write(served: Served, folder: str, about: dict[str, Any]) -> None:
    """Write the card into a SavedModel.

    Args:
        served: what was exported.
        folder: the SavedModel; shapes and types are read from it, as they are.
        about: what its maker says of it.
    """
    card = {"about": about, **_learned(served), "signatures": _signatures(served, folder), "errors": _ERRORS}
    os.makedirs(os.path.dirname(os.path.join(folder, FILE)), exist_ok=True)
    with open(os.path.join(folder, FILE), "w", encoding="utf-8") as file:
        plain = json.loads(json.dumps(card, default=_plain), parse_constant=lambda name: None)  # JSON has no NaN
        json.dump(plain, file, indent=2)
        file.write("\n")


def _learned(served: Served) -> dict[str, Any]:
    learner = served.learner
    inner, estimator = learner.inner, learner.estimator
    return {
        "model": {"name": learner.model.name, "parameters": learner.model.count_params()},
        "loss": _loss(learner.task_loss),
        "ways": learner.ways,
        "inner_optimizer": {"name": type(inner).__name__, **inner.get_config()},
        "estimator_at_export": {"name": type(estimator).__name__, **estimator.get_config()},
        "learned_with_the_initialisation": [_shape(v, v.name) for v in learner.hyperparameters],
        "normalization": {"kind": served.normalization, "meaning": _NORMALIZATION[served.normalization]},
        "adapted_weights": {
            "length": served.size,
            "dtype": served.dtype.name,
            "layout": [_shape(v, v.path) for v in served.variables],
        },
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }


def _loss(loss: Any) -> dict[str, Any]:
    """Return the name of a loss, and whether predictions are logits where the loss says so."""
    name = getattr(loss, "__name__", type(loss).__name__)
    if not isinstance(loss, keras.losses.Loss):
        return {"name": name}
    options = {key: value for key, value in loss.get_config().items() if key == "from_logits"}
    return {"name": name, **options}


def _signatures(served: Served, folder: str) -> dict[str, Any]:
    saved = saved_model_pb2.SavedModel()
    with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
        saved.ParseFromString(file.read())
    definitions = saved.meta_graphs[0].signature_def
    card = {}
    for name, signature in served.signatures().items():
        batch = name.endswith("_batch")
        ends = {end: _tensors(getattr(definitions[name], end), served, batch) for end in ("inputs", "outputs")}
        card[name] = {"description": signature.description, **ends}
    return card


def _tensors(infos: Any, served: Served, batch: bool) -> dict[str, dict[str, str]]:
    """Return shape, type and meaning of the tensors at one end of a signature."""
    free = {"support_x": "support", "support_y": "support", "weights": str(served.size)}
    tensors = {}
    for name, info in sorted(infos.items()):
        axes = tf.TensorShape(info.tensor_shape).as_list()
        names = ["tasks", free.get(name, "query")] if batch else [free.get(name, "query")]
        labels = f", labels in 0 .. {served.learner.ways - 1}" if name == "support_y" and served.learner.ways else ""
        tensors[name] = {
            "shape": f"[{', '.join([*names, *map(str, axes[len(names) :])])}]",
            "dtype": tf.as_dtype(info.dtype).name,
            "meaning": _MEANING[name] + labels + (", for each task" if batch else ""),
        }
    return tensors


def _shape(variable: keras.Variable, name: str) -> str:
    return f"{name} {list(variable.shape)}"


def check_about(about: Any) -> dict[str, Any]:
    """Return what a model's maker says of it; raise `ValueError` where JSON cannot hold it."""
    try:
        about = dict(about or {})
        json.dumps(about, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`about` must be a dict of what JSON can hold: text, numbers, lists. {error}.") from None
    return about


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"Received: {value!r}")
