"""Time from the call to the end of the first meta-update, and the median of the next 100.

python benchmarks/step_time.py [--estimators="MAML;BinomMAML(1)"] [--nopool] [--tasks=4] [--steps=100]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import statistics
import time

import tensorflow as tf
from absl import app, flags
from nets import omniglot

import tf_metagrad as mg

_ESTIMATORS = flags.DEFINE_string("estimators", "MAML;FOMAML;BinomMAML(1);BinomMAML(2)", "Separated by semicolons.")
_POOL = flags.DEFINE_bool("pool", True, "Max-pooling, or convolutions of stride 2.")
_TASKS = flags.DEFINE_integer("tasks", 4, "Tasks in a meta-update.")
_STEPS = flags.DEFINE_integer("steps", 100, "Meta-updates after the first.")
_EXECUTION = flags.DEFINE_string("execution", "auto", "How tasks are run.")


def main(argv: list[str]) -> None:
    """Time each estimator, one after the other, alternating step by step."""
    updates = {}
    for text in _ESTIMATORS.value.split(";"):
        estimator = mg.estimators.parse(text)
        learner, batch = omniglot(estimator, tasks=_TASKS.value, pool=_POOL.value, execution=_EXECUTION.value)
        batch, seed = learner.check_tasks(batch), tf.constant(0, tf.int64)

        def update(learner=learner, batch=batch, seed=seed):
            start = time.perf_counter()
            learner.update(batch, seed)[0].numpy()
            return time.perf_counter() - start

        updates[text] = update, update(), estimator.hvps(5), learner.execution
    times = {text: [] for text in updates}
    for _ in range(_STEPS.value):
        for text, (update, *_) in updates.items():
            times[text].append(update())
    print("| estimator | HVPs a task | first step (s) | median step (ms) | run as |\n|---|---|---|---|---|")
    for text, (_, first, hvps, execution) in updates.items():
        way = f"{execution.tasks}{', XLA' if execution.jit_compile else ''}"
        print(f"| {text} | {hvps} | {first:.1f} | {1e3 * statistics.median(times[text]):.0f} | {way} |")


if __name__ == "__main__":
    app.run(main)
