"""How far a step is from the limit: its convolutions and products, in the step and alone.

python benchmarks/efficiency.py [--workloads=omniglot,mini_imagenet,transformer] [--rounds=7]

The floating point operations of a step's convolutions and matrix products (`flops.py`) are divided by the time of the
step, and by the time that the same convolutions and products take alone, on random inputs, as fast as this machine
runs them: each kind by itself, several independent ones at a time. Both take turns; medians.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import collections
import pathlib
import statistics
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags
from flops import KINDS, Product, count
from peers import ours, workloads

import tf_metagrad as mg

_WORKLOADS = flags.DEFINE_list("workloads", ["omniglot", "mini_imagenet", "transformer"], "What to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of the step and of its products alone.", 1)


def alone(product: Product):
    """Return a function that runs the product once for each of `_COPIES`, and how many that are."""
    copies = 16 if product.flops < 1e8 else 4
    rng = np.random.default_rng(0)
    arguments = [
        {
            name: tf.constant(shape) if dtype == "int32" else tf.constant(rng.normal(size=shape), dtype)
            for name, shape, dtype in product.inputs
        }
        for _ in range(2)
    ]

    @tf.function(autograph=False)
    def run(arguments):
        outputs = []
        for i in range(copies):  # moved apart, or TensorFlow would run one for all
            values = dict(arguments[i % 2])
            small = min((n for n, v in values.items() if v.dtype.is_floating), key=lambda n: np.prod(values[n].shape))
            values[small] = values[small] + float(i)
            outputs.append(tf.reshape(getattr(tf.raw_ops, product.kind)(**values, **dict(product.attributes)), [-1])[0])
        return tf.stack(outputs)

    return (lambda: run(arguments).numpy()), copies


def seconds(call) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str) -> dict:
    """Return FLOPs and medians of seconds, of the step and by kind of product."""
    work = workloads.WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "arrays.npz")
        workloads.write(work, path)
        tasks, weights = workloads.read(path)
    learner = ours.learner(work, weights)
    batch, seed, shard = learner.check_tasks(mg.Task(**tasks)), tf.constant(0, tf.int64), tf.constant(0)
    function = learner._meta_update.function(learner.estimator)
    snapshot = learner.snapshot()
    compiled = function.trace(batch, seed, shard, snapshot)[0]
    products = count(compiled)
    runs = {product: alone(product) for product in products}

    def step():
        return compiled(batch, seed, shard, snapshot)[1].numpy()

    for call in (step, *(run for run, _ in runs.values())):
        call()
    steps, times = [], collections.defaultdict(list)
    for _ in range(_ROUNDS.value):
        steps.append(seconds(step))
        for product, (run, copies) in runs.items():
            times[product].append(seconds(run) / copies)
    kinds = {kind: [0, 0.0] for kind in KINDS.values()}
    for product, number in products.items():
        kinds[KINDS[product.kind]][0] += number * product.flops
        kinds[KINDS[product.kind]][1] += number * statistics.median(times[product])
    return {"step": statistics.median(steps), "kinds": {k: v for k, v in kinds.items() if v[0]}}


def main(argv: list[str]) -> None:
    """Print a table."""
    mg.share_cores(min(workloads.WORKLOADS[name].tasks for name in _WORKLOADS.value))
    print("| workload | GFLOP a step | step (ms) | GFLOP/s | products alone (ms) | GFLOP/s | reached |")
    print("|---|---|---|---|---|---|---|")
    details = []
    for name in _WORKLOADS.value:
        found = measure(name)
        flops, lone = (sum(values) for values in zip(*found["kinds"].values(), strict=True))
        step = found["step"]
        print(
            f"| {name} | {flops / 1e9:.1f} | {1e3 * step:.0f} | {flops / step / 1e9:.0f} | {1e3 * lone:.0f} | "
            f"{flops / lone / 1e9:.0f} | {lone / step:.2f} |",
            flush=True,
        )
        details += [(name, kind, *values) for kind, values in found["kinds"].items()]
    print("\n| workload | kind | GFLOP a step | alone (ms) | GFLOP/s |\n|---|---|---|---|---|")
    for name, kind, flops, lone in details:
        print(f"| {name} | {kind} | {flops / 1e9:.1f} | {1e3 * lone:.0f} | {flops / lone / 1e9:.0f} |")


if __name__ == "__main__":
    app.run(main)
