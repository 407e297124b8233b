"""Latency and throughput of an exported model that adapts to 5-way 1-shot requests.

  python benchmarks/serving.py [--requests=200] [--threads=1,2,4] [--tasks=8] [--nopool]

The Omniglot net of `nets.py`, K = 5: 5 support and 75 query images a request. The model is exported and loaded again:
what runs is the SavedModel. The first row of each signature is one client that waits for each answer.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import concurrent.futures
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags
from nets import omniglot

import tf_metagrad as mg

_REQUESTS = flags.DEFINE_integer("requests", 200, "Requests a row, after 5 that are not counted.")
_THREADS = flags.DEFINE_list("threads", ["1", "2", "4"], "Clients at a time.")
_TASKS = flags.DEFINE_integer("tasks", 8, "Tasks in a request to `adapt_and_predict_batch`.")
_POOL = flags.DEFINE_bool("pool", True, "Max-pooling, or convolutions of stride 2.")


def milliseconds(function, inputs: dict[str, tf.Tensor]) -> float:
    """Return how long one request takes."""
    start = time.perf_counter()
    next(iter(function(**inputs).values())).numpy()
    return 1e3 * (time.perf_counter() - start)


def measure(function, inputs: dict[str, tf.Tensor], threads: int, requests: int) -> tuple[float, float, float]:
    """Return p50 and p99 of the latency in ms, and requests a second."""
    for _ in range(5):
        milliseconds(function, inputs)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        times = list(pool.map(lambda _: milliseconds(function, inputs), range(requests)))
        return *np.percentile(times, (50, 99)), requests / (time.perf_counter() - start)


def main(argv: list[str]) -> None:
    """Print a table."""
    learner, batch = omniglot(mg.estimators.MAML(), tasks=_TASKS.value, pool=_POOL.value)
    with tempfile.TemporaryDirectory() as folder:
        served = tf.saved_model.load(mg.export(learner, f"{folder}/1")).signatures
    x, y, query, _ = (tf.constant(part) for part in batch)
    support = {"support_x": x[0], "support_y": tf.cast(y[0], tf.int32)}
    weights = served["adapt"](**support)["weights"]
    whole = {"support_x": x, "support_y": tf.cast(y, tf.int32), "query_x": query}
    rows = [("adapt_and_predict", {**support, "query_x": query[0]}, 1), ("adapt", support, 1)]
    rows += [("predict_adapted", {"weights": weights, "query_x": query[0]}, 1), ("predict", {"query_x": query[0]}, 1)]
    rows += [("adapt_and_predict_batch", whole, _TASKS.value)]
    print("| signature | clients | p50 (ms) | p99 (ms) | tasks a second |\n|---|---|---|---|---|")
    for name, inputs, tasks in rows:
        for threads in map(int, _THREADS.value if name == "adapt_and_predict" else ["1"]):
            p50, p99, rate = measure(served[name], inputs, threads, max(_REQUESTS.value // tasks, 1))
            print(f"| `{name}` | {threads} | {p50:.1f} | {p99:.1f} | {rate * tasks:.1f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
