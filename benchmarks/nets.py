"""The workloads of the benchmarks: few-shot tasks of random inputs, and nets by name.

| name          | net                                                                          | queries a class |
|---------------|------------------------------------------------------------------------------|-----------------|
| `omniglot`    | four blocks of 64 filters, 28x28 images                                      | 15              |
| `channelsN`   | the same with N filters                                                      | 15              |
| `transformer` | FO-B-MAML, appendix D.5: 8 heads, feed-forward 512, width 128, length 128    | 5               |
| `lengthN`     | the same for sequences of length N                                           | 5               |
| `small`       | two blocks of 16 filters, 14x14 images: a step of some milliseconds          | 5               |
"""

import re

import keras
import numpy as np
from keras import layers

import tf_metagrad as mg

WAYS = 5
STORES = {"auto": "auto", "true": True, "false": False}  # values of the flags `--store_activations`


def transformer(length: int = 128, width: int = 128, outputs: int = WAYS) -> keras.Model:
    """Return a block of attention and feed-forward layers over `[length, width]`, its mean classified."""
    x = start = keras.Input((length, width))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(8, width // 8)(x, x))
    hidden = layers.Dense(512, activation="relu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(width)(hidden))
    return keras.Model(start, layers.Dense(outputs)(layers.GlobalAveragePooling1D()(x)))


def net(name: str, pool: bool = True) -> tuple[keras.Model, int]:
    """Return a net by name, and the queries a class of its tasks; see the module."""
    kind, number = re.fullmatch(r"([a-z]+)(\d*)", name).groups()
    if kind in ("transformer", "length"):
        return transformer(int(number or 128)), 5
    if kind == "small":
        return mg.models.conv2d(WAYS, (14, 14, 1), filters=16, blocks=2), 5
    return mg.models.conv2d(WAYS, filters=int(number or 64), pool=pool), 15


def few_shot(
    model: keras.Model, queries: int, estimator: mg.estimators.Estimator, steps: int = 5, tasks: int = 4,
    rate: float = 0.1, shots: int = 1, **options,
):  # fmt: skip
    """Return `(learner, batch of tasks)`; estimators of the proximal solution get a proximal inner optimiser."""
    inner = mg.inner.GradientDescent(steps, rate)
    if isinstance(estimator, mg.estimators.IMAML | mg.estimators.FOBMAML):
        inner = mg.inner.ProximalGradientDescent(steps, rate, weight=2.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, inner, estimator, **options)
    learner.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    rng, support = np.random.default_rng(0), WAYS * shots
    inputs = rng.uniform(size=(tasks, support + WAYS * queries, *model.input_shape[1:])).astype("float32")
    labels = [np.tile(np.repeat(np.arange(WAYS), each), (tasks, 1)) for each in (shots, queries)]
    return learner, mg.Task(inputs[:, :support], labels[0], inputs[:, support:], labels[1])


def omniglot(estimator: mg.estimators.Estimator, steps: int = 5, tasks: int = 4, pool: bool = True, **options):
    """Return `(learner, batch of tasks)` of the Omniglot net, 5-way 1-shot, 15 queries a class."""
    keras.utils.set_random_seed(0)
    return few_shot(mg.models.conv2d(WAYS, pool=pool), 15, estimator, steps, tasks, **options)
