"""Time from the call to the end of the first meta-update, and the median of the next 100.

python benchmarks/step_time.py [--estimators="MAML;BinomMAML(1)"] [--net=omniglot] [--nopool] [--tasks=4] [--steps=100]
    [--store_activations=false,true]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import itertools
import statistics
import time

import keras
import tensorflow as tf
from absl import app, flags
from nets import STORES, few_shot, net, omniglot

import tf_metagrad as mg

_ESTIMATORS = flags.DEFINE_string("estimators", "MAML;FOMAML;BinomMAML(1);BinomMAML(2)", "Separated by semicolons.")
_NET = flags.DEFINE_string("net", "omniglot", "See nets.py.")
_STORE = flags.DEFINE_list("store_activations", ["auto"], "Whether HVPs find activations stored: auto, true, false.")
_POOL = flags.DEFINE_bool("pool", True, "Max-pooling, or convolutions of stride 2.")
_TASKS = flags.DEFINE_integer("tasks", 4, "Tasks in a meta-update.")
_STEPS = flags.DEFINE_integer("steps", 100, "Meta-updates after the first.")
_SHARE = flags.DEFINE_bool("share_cores", True, "Call `mg.share_cores` first.")
_EXECUTION = flags.DEFINE_string("execution", "auto", "How tasks are run.")


def main(argv: list[str]) -> None:
    """Time each estimator, one after the other, alternating step by step."""
    if _SHARE.value:
        mg.share_cores(_TASKS.value)
    updates = {}
    for text, store in itertools.product(_ESTIMATORS.value.split(";"), _STORE.value):
        estimator = mg.estimators.parse(text)
        options = {"tasks": _TASKS.value, "execution": _EXECUTION.value, "store_activations": STORES[store]}
        if _NET.value == "omniglot":
            learner, batch = omniglot(estimator, pool=_POOL.value, **options)
        else:
            keras.utils.set_random_seed(0)
            learner, batch = few_shot(*net(_NET.value), estimator, **options)
        batch, seed = learner.check_tasks(batch), tf.constant(0, tf.int64)

        def update(learner=learner, batch=batch, seed=seed):
            start = time.perf_counter()
            learner.update(batch, seed)[0].numpy()
            return time.perf_counter() - start

        updates[text, store] = update, update(), estimator.hvps(5), learner.execution
    times = {key: [] for key in updates}
    for _ in range(_STEPS.value):
        for key, (update, *_) in updates.items():
            times[key].append(update())
    print(
        "| estimator | stored | HVPs a task | first step (s) | median step (ms) | run as |\n|---|---|---|---|---|---|"
    )
    for (text, store), (_, first, hvps, execution) in updates.items():
        way = f"{execution.tasks}{', XLA' if execution.jit_compile else ''}"
        median = 1e3 * statistics.median(times[text, store])
        print(f"| {text} | {store} | {hvps} | {first:.1f} | {median:.0f} | {way} |")


if __name__ == "__main__":
    app.run(main)
