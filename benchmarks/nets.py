"""The workload of the benchmarks: the Omniglot net, 4 tasks, 5-way 1-shot, 15 queries a class, random images."""

import keras
import numpy as np

import tf_metagrad as mg


def omniglot(estimator: mg.estimators.Estimator, steps: int = 5, tasks: int = 4, pool: bool = True, **options):
    """Return `(learner, batch of tasks)`; estimators of the proximal solution get a proximal inner optimiser."""
    inner = mg.inner.GradientDescent(steps, 0.1)
    if isinstance(estimator, mg.estimators.IMAML | mg.estimators.FOBMAML):
        inner = mg.inner.ProximalGradientDescent(steps, 0.1, weight=2.0)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    learner = mg.MetaLearner(
        mg.models.conv2d(ways=5, pool=pool),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        inner,
        estimator,
        **options,
    )
    learner.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    images = rng.uniform(size=(tasks, 80, 28, 28, 1)).astype("float32")
    support, query = np.arange(5), np.repeat(np.arange(5), 15)
    labels = np.tile(support, (tasks, 1)), np.tile(query, (tasks, 1))
    return learner, mg.Task(images[:, :5], labels[0], images[:, 5:], labels[1])
