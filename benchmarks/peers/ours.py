"""This library's side of the comparison."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from peers import workloads
from peers.workloads import Workload

import tf_metagrad as mg


def transformer(work: Workload) -> keras.Model:
    """Return a block of attention and feed-forward layers, its mean classified (FO-B-MAML, appendix D.5)."""
    width = work.shape[-1]
    x = start = keras.Input(work.shape)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(workloads.HEADS, width // workloads.HEADS)(x, x))
    hidden = layers.Dense(work.width, activation="relu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(width)(hidden))
    return keras.Model(start, layers.Dense(work.ways)(layers.GlobalAveragePooling1D()(x)))


def model(work: Workload) -> keras.Model:
    """Return the net."""
    if work.net == "mlp":
        return mg.models.mlp(hidden=[work.width] * workloads.HIDDEN_LAYERS)
    if work.net == "conv2d":
        return mg.models.conv2d(work.ways, work.shape, work.width, workloads.BLOCKS)
    return transformer(work)


def learner(work: Workload, weights: workloads.Arrays, **options: Any) -> mg.MetaLearner:
    """Return a learner with these initial weights."""
    net = model(work)
    for variable, value in zip(net.trainable_variables, weights.values(), strict=True):
        variable.assign(value)
    loss = "mse" if work.net == "mlp" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return mg.MetaLearner(net, loss, mg.inner.GradientDescent(work.steps, work.rate), mg.estimators.MAML(), **options)


def prepare(work: Workload, path: pathlib.Path, double: bool) -> tuple[dict[str, Callable[[], Any]], Callable]:
    """Return the variants, and what makes one float64 vector and the loss of their results."""
    tasks, weights = workloads.read(path, double)
    if double:
        keras.config.set_floatx("float64")
    batch = mg.Task(**tasks)
    runs = {}
    for jit in ("auto",) if double else ("auto", True, False):
        for way in ("auto",) if jit == "auto" else ("vectorize", "map", "loop"):
            made = learner(work, weights, execution=way, jit_compile=jit)
            name = "as chosen" if way == "auto" else f"{way}{', XLA' if jit else ''}"
            runs[name] = _compiled(made, made.check_tasks(batch))
    whole = learner(work, weights)
    runs["meta_gradient"] = lambda: whole.meta_gradient(batch)[:2]
    return runs, _vector


def _compiled(made: mg.MetaLearner, batch: mg.Task) -> Callable[[], Any]:
    """Return a call of the compiled gradient on prepared tensors; what `meta_gradient` checks is left out."""
    seed, shard = tf.constant(0, tf.int64), tf.constant(0)

    def run():
        (gradients, losses, *_), finite = made._meta_update.function(made.estimator)(
            batch, seed, shard, made.snapshot()
        )
        finite.numpy()  # wait
        return gradients, losses

    return run


def _vector(result: Any) -> tuple[np.ndarray, float]:
    gradients, losses = result
    return np.concatenate([np.ravel(g).astype("float64") for g in gradients]), float(np.mean(losses))
