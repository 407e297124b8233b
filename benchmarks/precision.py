"""Error of the meta-gradient in lower precisions, estimator after estimator, relative to the same one in float64.

  python benchmarks/precision.py [--nopool] [--filters=16] [--size=28] [--activation=tanh] [--estimators="MAML;FOMAML"]

Two tasks, 5-way 1-shot, 5 queries a class, K = 5, the same weights in every precision; an image is the class' own, a
tenth of its pixels set, with 2 % of them flipped. "mixed" is Keras' policy: the layers compute in the lower precision;
weights, iterates, the loss and all vectors are float32. "rounded weights" computes in the precision of the reference,
and only the initial weights are rounded to 16 bits: what no arithmetic of 16 bits can be expected to stay below. ESMAML
is relative to float32: float64 draws others. "TF32" is what a GPU computes of float32 by default: measured there, and
elsewhere, without XLA, computed in float32 from products whose operands are rounded (`tf32.py`).
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from tf32 import in_tf32

import tf_metagrad as mg

_ESTIMATORS = flags.DEFINE_string(
    "estimators",
    'FOMAML;MAML;MAML("unrolled");TruncMAML(2);BinomMAML(1);BinomMAML(2);BinomTruncMAML(2, 3);Reptile;IMAML;FOBMAML;'
    'FOBMAML("tangent");ESMAML(sigma=0.01);ESMAML(sigma=0.3)',
    "Separated by semicolons.",
)
_NET = flags.DEFINE_enum("net", "conv2d", ["conv2d", "mlp"], "The Omniglot net, or an MLP 40-40 with tanh.")
_POOL = flags.DEFINE_bool("pool", False, "Max-pooling, or convolutions of stride 2.")
_ACTIVATION = flags.DEFINE_string("activation", "", "In the place of the net's own; a name of keras.activations.")
_FILTERS = flags.DEFINE_integer("filters", 16, "Filters of a convolution.")
_SIZE = flags.DEFINE_integer("size", 28, "Height and width of an image.")
_EXECUTION = flags.DEFINE_string("execution", "loop", "How tasks are run.")
_JIT = flags.DEFINE_bool("jit", False, "Compile by XLA.")


def build(precision: str) -> keras.Model:
    """Return the net with a dtype policy."""
    keras.config.set_dtype_policy(precision)
    if _NET.value == "mlp":
        return mg.models.mlp(_SIZE.value, outputs=5, activation=_ACTIVATION.value or "tanh")
    model = mg.models.conv2d(5, (_SIZE.value, _SIZE.value, 1), _FILTERS.value, pool=_POOL.value)
    return keras.models.clone_model(model, clone_function=_activated) if _ACTIVATION.value else model


def _activated(layer: keras.layers.Layer) -> keras.layers.Layer:
    relu = isinstance(layer, keras.layers.ReLU)
    return keras.layers.Activation(_ACTIVATION.value) if relu else type(layer).from_config(layer.get_config())


def tasks() -> mg.Task:
    """Return two tasks."""
    rng = np.random.default_rng(0)
    shape = (_SIZE.value,) if _NET.value == "mlp" else (_SIZE.value, _SIZE.value, 1)
    support, query = np.arange(5), np.repeat(np.arange(5), 5)
    images = rng.uniform(size=(2, 5, *shape))[:, np.concatenate([support, query])] < 0.1
    images = (images ^ (rng.uniform(size=images.shape) < 0.02)).astype("float32")
    return mg.Task(images[:, :5], np.tile(support, (2, 1)), images[:, 5:], np.tile(query, (2, 1)))


def gradient(model: keras.Model, estimator: mg.estimators.Estimator, emulated: bool = False) -> np.ndarray:
    """Return the meta-gradient as one vector of float64; emulated, its products are rounded to TF32."""
    inner = mg.inner.GradientDescent(5, 0.1)
    if isinstance(estimator, mg.estimators.IMAML | mg.estimators.FOBMAML):
        inner = mg.inner.ProximalGradientDescent(5, 0.1, weight=2.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=model.variable_dtype)
    learner = mg.MetaLearner(model, loss, inner, estimator, execution=_EXECUTION.value, jit_compile=_JIT.value)
    gradients = _emulated(learner) if emulated else learner.meta_gradient(tasks()).gradients
    return np.concatenate([np.ravel(g).astype("float64") for g in gradients])


def _emulated(learner: mg.MetaLearner) -> list[np.ndarray]:
    arguments = learner.check_tasks(tasks()), tf.constant(0, tf.int64), tf.constant(0), learner.snapshot()
    concrete, _ = learner._meta_update.function(learner.estimator).trace(*arguments)
    return in_tf32(concrete, tf.nest.flatten(arguments))[: len(arguments[-1].theta)]


def rounded(weights: list[np.ndarray], precision: str) -> list[np.ndarray]:
    """Return weights as a format of 16 bits has them."""
    return [tf.cast(tf.cast(w, precision), tf.float64).numpy() for w in weights]


def main(argv: list[str]) -> None:
    """Print a table."""
    keras.utils.set_random_seed(0)
    gpu = bool(tf.config.list_physical_devices("GPU"))
    columns = {"float32": ("float32", False)} | ({"TF32": ("float32", True)} if gpu or not _JIT.value else {})
    columns |= {name: (name, True) for name in ("mixed_bfloat16", "mixed_float16")}
    models = {name: build(name) for name in ("float64", "float32", "mixed_bfloat16", "mixed_float16")}
    weights = models["float32"].get_weights()
    for model in models.values():
        model.set_weights(weights)
    formats = ("bfloat16", "float16")
    headings = [*columns, *(f"rounded weights, {name}" for name in formats)]
    print("| estimator | " + " | ".join(headings) + " |\n" + "|---" * (1 + len(headings)) + "|")
    for text in _ESTIMATORS.value.split(";"):
        estimator = mg.estimators.parse(text)
        exact = "float32" if isinstance(estimator, mg.estimators.ESMAML) else "float64"
        tf.config.experimental.enable_tensor_float_32_execution(False)
        reference, found = gradient(models[exact], estimator), []
        for name, (policy, fast) in columns.items():
            tf.config.experimental.enable_tensor_float_32_execution(fast)
            found.append(gradient(models[policy], estimator, emulated=name == "TF32" and not gpu))
        tf.config.experimental.enable_tensor_float_32_execution(False)
        for name in formats:
            models[exact].set_weights(rounded(weights, name))
            found.append(gradient(models[exact], estimator))
        models[exact].set_weights(weights)
        errors = [np.linalg.norm(g - reference) / np.linalg.norm(reference) for g in found]
        print(f"| {text} | " + " | ".join(f"{error:.1e}" if error else "" for error in errors) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
