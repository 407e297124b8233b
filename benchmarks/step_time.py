"""Time from the call to the end of the first meta-update, and the median of the next 100.

python benchmarks/step_time.py [--estimators="MAML;BinomMAML(1)"] [--net=omniglot] [--nopool] [--tasks=4] [--steps=100]
    [--store_activations=false,true] [--adapt=all,head] [--shots=1]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import itertools
import statistics
import time

import keras
import tensorflow as tf
from absl import app, flags
from nets import STORES, few_shot, net

import tf_metagrad as mg

_ESTIMATORS = flags.DEFINE_string("estimators", "MAML;FOMAML;BinomMAML(1);BinomMAML(2)", "Separated by semicolons.")
_NET = flags.DEFINE_string("net", "omniglot", "See nets.py.")
_STORE = flags.DEFINE_list("store_activations", ["auto"], "Whether HVPs find activations stored: auto, true, false.")
_ADAPT = flags.DEFINE_list("adapt", ["all"], "What adapts: all, or the head, which is the last layer.")
_SHOTS = flags.DEFINE_integer("shots", 1, "Support examples a class.")
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
    for text, store, adapt in itertools.product(_ESTIMATORS.value.split(";"), _STORE.value, _ADAPT.value):
        estimator = mg.estimators.parse(text)
        keras.utils.set_random_seed(0)
        model, queries = net(_NET.value, _POOL.value)
        learner, batch = few_shot(
            model, queries, estimator, tasks=_TASKS.value, shots=_SHOTS.value, execution=_EXECUTION.value,
            store_activations=STORES[store], adapt=model.layers[-1].name if adapt == "head" else adapt,
        )  # fmt: skip
        batch, seed = learner.check_tasks(batch), tf.constant(0, tf.int64)

        def update(learner=learner, batch=batch, seed=seed):
            start = time.perf_counter()
            learner.update(batch, seed)[0].numpy()
            return time.perf_counter() - start

        updates[text, adapt, store] = update, update(), estimator.hvps(5), learner.execution
    times = {key: [] for key in updates}
    for _ in range(_STEPS.value):
        for key, (update, *_) in updates.items():
            times[key].append(update())
    print(
        "| estimator | adapts | stored | HVPs a task | first step (s) | median step (ms) | run as |\n"
        "|---|---|---|---|---|---|---|"
    )
    for (text, adapt, store), (_, first, hvps, execution) in updates.items():
        way = f"{execution.tasks}{', XLA' if execution.jit_compile else ''}"
        median = 1e3 * statistics.median(times[text, adapt, store])
        print(f"| {text} | {adapt} | {store} | {hvps} | {first:.1f} | {median:.0f} | {way} |")


if __name__ == "__main__":
    app.run(main)
