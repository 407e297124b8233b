"""Time of a meta-update against K, against the tasks, and against L.

  python benchmarks/scaling.py --sweep=steps [--net=small] [--values=1,2,...,64] [--rounds=15] [--estimator=MAML]
  python benchmarks/scaling.py --sweep=tasks [--net=small] [--values=1,2,...,64]
  python benchmarks/scaling.py --sweep=order [--net=omniglot]                      Trunc(L), Binom(L) and MAML, K = 5

The first step is from the call on, tracing included. The others take turns, and medians are shown. For a sweep of n,
t = a + b n is fitted to the times, each weighted by 1/t, so that the misfit is a share of the time; the growth is
log2(t(2n) / t(n)), which comes to 1 where the cost is linear and a is past.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import math
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from nets import few_shot, net

import tf_metagrad as mg

_SWEEP = flags.DEFINE_enum("sweep", "steps", ["steps", "tasks", "order"], "What is varied.")
_NET = flags.DEFINE_string("net", "small", "See nets.py.")
_VALUES = flags.DEFINE_list("values", ["1", "2", "4", "8", "16", "32", "64"], "Of K or of tasks.")
_ESTIMATOR = flags.DEFINE_string("estimator", "MAML", "Of the sweeps of K and of tasks.")
_STEPS = flags.DEFINE_integer("steps", 5, "K, where it is not varied.")
_TASKS = flags.DEFINE_integer("tasks", 4, "Tasks, where they are not varied.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each.", 1)
_SECONDS = flags.DEFINE_float("seconds", 240.0, "No round begins after so many seconds; the first round is run.")
_EXECUTION = flags.DEFINE_string("execution", "auto", "How tasks are run.")


def make_update(text: str, steps: int, tasks: int) -> tuple[Callable[[], float], str]:
    """Return a meta-update that returns its seconds, and how it is run."""
    keras.utils.set_random_seed(0)
    model, queries = net(_NET.value)
    estimator = mg.estimators.parse(text)
    learner, batch = few_shot(model, queries, estimator, steps, tasks, 0.01, execution=_EXECUTION.value)
    batch, seed = learner.check_tasks(batch), tf.constant(0, tf.int64)

    def update() -> float:
        start = time.perf_counter()
        learner.update(batch, seed)[0].numpy()
        return time.perf_counter() - start

    way = learner.execution
    return update, f"{way.tasks}{', XLA' if way.jit_compile else ''}"


def medians(updates: dict[str, Callable[[], float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of each first step, and the medians of the others, which take turns."""
    began = time.perf_counter()
    first = {name: update() for name, update in updates.items()}
    times = {name: [] for name in updates}
    for turn in range(_ROUNDS.value):
        if turn and time.perf_counter() - began > _SECONDS.value:
            break
        for name, update in updates.items():
            times[name].append(update())
    return first, {name: statistics.median(values) for name, values in times.items()}


def line(counts: list[int], times: list[float]) -> tuple[float, float, list[float]]:
    """Return a and b of t = a + b n, and (fit - t) / t for each."""
    n, t = np.array(counts, float), np.array(times)
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones_like(t), rcond=None)
    return float(a), float(b), list((a + b * n - t) / t)


def sweep(counts: list[int]) -> None:
    """Print a table over K or tasks, and the fit."""
    sizes = {str(n): (n, _TASKS.value) if _SWEEP.value == "steps" else (_STEPS.value, n) for n in counts}
    made = {name: make_update(_ESTIMATOR.value, *size) for name, size in sizes.items()}
    first, times = medians({name: update for name, (update, _) in made.items()})
    seconds = list(times.values())
    a, b, misfits = line(counts, seconds)
    print(f"{_NET.value}, {_ESTIMATOR.value}, run as {made[str(counts[0])][1]}:\n")
    print(f"| {_SWEEP.value} | first step (s) | median step (ms) | growth | fit (ms) |\n|---|---|---|---|---|")
    for i, (n, t) in enumerate(zip(counts, seconds, strict=True)):
        growth = f"{math.log(t / seconds[i - 1]) / math.log(n / counts[i - 1]):.2f}" if i else "-"
        print(f"| {n} | {first[str(n)]:.1f} | {1e3 * t:.1f} | {growth} | {1e3 * (a + b * n):.1f} |")
    worst = max(map(abs, misfits))
    print(f"\nFit: {1e3 * a:.2f} ms + {1e3 * b:.2f} ms for each; at most {100 * worst:.0f} % off.")


def orders() -> None:
    """Print a table over L."""
    steps = _STEPS.value
    texts = ["FOMAML", *(f"{kind}({L})" for kind in ("TruncMAML", "BinomMAML") for L in range(1, steps + 1)), "MAML"]
    made = {text: make_update(text, steps, _TASKS.value) for text in texts}
    first, times = medians({text: update for text, (update, _) in made.items()})
    print(f"{_NET.value}, {_TASKS.value} tasks, K = {steps}, run as {made['MAML'][1]}:\n")
    print("| estimator | HVPs a task | in sequence | first step (s) | median step (ms) |\n|---|---|---|---|---|")
    for text in texts:
        estimator = mg.estimators.parse(text)
        depth = getattr(estimator, "truncation", estimator.hvps(steps))
        print(f"| {text} | {estimator.hvps(steps)} | {depth} | {first[text]:.1f} | {1e3 * times[text]:.1f} |")


def main(argv: list[str]) -> None:
    """Print a table."""
    if _SWEEP.value == "order":
        orders()
    else:
        sweep(sorted(map(int, _VALUES.value)))


if __name__ == "__main__":
    app.run(main)
