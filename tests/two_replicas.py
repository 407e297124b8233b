"""Meta-updates on two logical CPU devices and on one, from the same weights and tasks; prints the differences as JSON.

A script of its own, because the devices must be there before TensorFlow does anything.
"""

import functools
import json

import tensorflow as tf

if __name__ == "__main__":
    CPU = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras  # noqa: E402
import numpy as np  # noqa: E402
from estimator_cases import CASES, typical  # noqa: E402

import tf_metagrad as mg  # noqa: E402

OPTIMIZERS = {
    "clipped": lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.01),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "sngdm": lambda: mg.optimizers.SNGDM(0.1),
}


def make_tasks(count: int = 4) -> mg.Task:
    rng = np.random.default_rng(1)
    xs, xq = rng.normal(size=(2, count, 6, 3))
    ys, yq = rng.normal(size=(2, count, 6, 1))
    return mg.Task(xs, ys, xq, yq)


def updated(
    strategy, estimator, inner, optimizer, updates=2, tasks=None, on_nonfinite="raise", **options
) -> np.ndarray:
    """Return all that an update changes, as one vector."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        body = [
            keras.layers.Dense(4, "tanh", name="body"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
        ]
        model = keras.Sequential([keras.Input((3,)), *body, keras.layers.Dense(1, name="head")])
        learner = mg.MetaLearner(model, "mse", inner, estimator, execution="map", **{"jit_compile": False} | options)
        made = optimizer()
    learner.compile(made, metrics=["mae"])  # it enters the scope itself
    batch, seen = learner.check_tasks(tasks or make_tasks()), []
    for seed in range(updates):
        done = learner.update(batch, tf.constant(seed, tf.int64), on_nonfinite, full=True)
        seen += [*done.losses.numpy(), done.metrics["mae"].numpy()]
        seen += [x for gradient in done.gradients for x in np.ravel(gradient)]
        seen += [*np.ravel(done.predictions)] if tasks is None else []
    values = [*learner.meta_variables, *learner.step_statistics, *learner.optimizer.variables]
    return np.concatenate([seen, *(np.ravel(v.numpy()).astype("float64") for v in values)])


@functools.cache
def mirrored() -> tf.distribute.Strategy:
    """Return one strategy for the process: several would mix up their messages."""
    return mg.make_strategy("mirrored")


def difference(**options) -> float:
    two, one = (updated(strategy, **options) for strategy in (mirrored(), tf.distribute.get_strategy()))
    return float(np.linalg.norm(two - one) / np.linalg.norm(one))


def skipping(*args, **options) -> float:
    """Return the difference of two replicas that skip the last of four tasks to one device that has three."""
    tasks = make_tasks()
    three = mg.Task(*(part[:3] for part in tasks))
    tasks.query_y[3] = 1e200
    two = updated(mirrored(), *args, tasks=tasks, on_nonfinite="skip", **options)
    one = updated(tf.distribute.get_strategy(), *args, tasks=three, **options)
    return float(np.linalg.norm(two - one) / np.linalg.norm(one))


def runs() -> dict[str, dict]:
    """Return the arguments of `updated` by name: every estimator, every optimizer, learned rates, and XLA."""
    cases = [typical(kind) for kind in CASES]
    plain, learned = mg.inner.GradientDescent(3, 0.1), mg.inner.GradientDescent(3, 0.1, "per_layer_and_step")
    found = {}
    for case in cases:
        inner = mg.inner.ProximalGradientDescent(4, 0.1) if case.inner.proximal else case.inner
        sgd = functools.partial(keras.optimizers.SGD, 0.1)
        found[repr(case.estimator)] = dict(estimator=case.estimator, inner=inner, optimizer=sgd)
    for name, optimizer in OPTIMIZERS.items():
        found[name] = dict(estimator=mg.estimators.FOMAML(), inner=plain, optimizer=optimizer)
    found["per_step"] = dict(
        estimator=mg.estimators.MAML(), inner=learned, optimizer=OPTIMIZERS["sngdm"], normalization="per_step",
        adapt=["head"],
    )  # fmt: skip
    found["features"] = dict(estimator=mg.estimators.MAML(), inner=plain, optimizer=OPTIMIZERS["sngdm"], adapt=["head"])
    found["xla"] = dict(estimator=mg.estimators.MAML(), inner=learned, optimizer=OPTIMIZERS["adam"], jit_compile=True)
    return found


def in_float64() -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


if __name__ == "__main__":
    in_float64()
    found = {name: difference(**options) for name, options in runs().items()}
    rates = mg.inner.GradientDescent(3, 0.1, "per_layer_and_step")
    found["skip"] = skipping(mg.estimators.MAML(), rates, OPTIMIZERS["adam"], normalization="per_step")
    print(json.dumps(found))
