"""What runs in parallel in a compiled meta-gradient, read from the program that XLA gets; and the same, to be timed.

  python benchmarks/parallelism.py [--nopool] [--estimators="MAML;BinomMAML(2)"] [--looped="MAML"] [--temp]
  python benchmarks/parallelism.py --export=steps    then, where JAX has a GPU:  python gpu_run.py steps

The net is `mg.models.conv2d` on random images, 5-way 1-shot, K = 5. Loops are written as their trips, those inside of
others in brackets. "operations" counts convolutions and matrix products, those in loops as often as they run: what a
GPU has to start, for which the step is traced. "in a row" is the longest row of them in which each one needs the
results of the one before.

Exported are, for each row, the program (`*.hlo`) and what TensorFlow gets from it (`*.npz`), and once the arguments
(`inputs.npz`) and what they are (`workload.json`).
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import contextlib
import json
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from hlo_graph import Loop, compiled, read

import tf_metagrad as mg
from tf_metagrad import _runner
from tf_metagrad._second_order import substituted

_ESTIMATORS = flags.DEFINE_string(
    "estimators",
    "FOMAML;TruncMAML(1);BinomMAML(1);TruncMAML(2);BinomMAML(2);TruncMAML(4);BinomMAML(4);MAML",
    "Run vectorised; separated by semicolons.",
)
_LOOPED = flags.DEFINE_string("looped", "BinomMAML(2);MAML", "Run task after task, too.")
_STEPS = flags.DEFINE_integer("steps", 5, "Inner steps K.")
_TASKS = flags.DEFINE_integer("tasks", 4, "Tasks in a step.")
_FILTERS = flags.DEFINE_integer("filters", 64, "Filters of a convolution.")
_BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of the net.")
_SIZE = flags.DEFINE_integer("size", 28, "Height and width of an image.")
_QUERIES = flags.DEFINE_integer("queries", 15, "Queries a class.")
_POOL = flags.DEFINE_bool("pool", True, "Max-pooling, or convolutions of stride 2.")
_POLICY = flags.DEFINE_string("policy", "float32", "Keras' dtype policy, such as mixed_bfloat16.")
_TEMP = flags.DEFINE_bool("temp", False, "Compile for the device that JAX has, and show XLA's scratch memory.")
_EXPORT = flags.DEFINE_string("export", None, "Write the steps to this folder.")
RATE = 0.1


def workload() -> tuple[keras.Model, mg.Task]:
    """Return the net and a batch of tasks."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(_POLICY.value)
    size, tasks = _SIZE.value, _TASKS.value
    model = mg.models.conv2d(5, (size, size, 1), _FILTERS.value, _BLOCKS.value, _POOL.value)
    images = np.random.default_rng(0).uniform(size=(tasks, 5 + 5 * _QUERIES.value, size, size, 1)).astype("float32")
    support, query = np.arange(5), np.repeat(np.arange(5), _QUERIES.value)
    return model, mg.Task(images[:, :5], np.tile(support, (tasks, 1)), images[:, 5:], np.tile(query, (tasks, 1)))


def step(model: keras.Model, batch: mg.Task, text: str, execution: str) -> tuple[Callable, list[tf.Tensor]]:
    """Return the compiled step, from flat tensors to gradients and losses, and its arguments."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inner, estimator = mg.inner.GradientDescent(_STEPS.value, RATE), mg.estimators.parse(text)
    learner = mg.MetaLearner(model, loss, inner, estimator, execution=execution, jit_compile=True)
    snapshot, tasks = learner.snapshot(), learner.check_tasks(batch)
    arguments = [*snapshot.theta, *snapshot.state, *tasks]

    def flat(*tensors):
        theta, rest = tensors[: len(snapshot.theta)], tensors[len(snapshot.theta) :]
        now = snapshot._replace(theta=list(theta), state=list(rest[: len(snapshot.state)]))
        gradients, losses, *_ = learner.estimate(mg.Task(*rest[-4:]), 0, snapshot=now)
        return [*gradients, losses]

    traced = tf.function(flat, autograph=False)  # before XLA does, see `tf_metagrad/_execution.py`
    with substituted(_runner, "short_products", lambda original: contextlib.nullcontext()):  # they are for CPUs
        concrete = traced.get_concrete_function(*[tf.TensorSpec(t.shape, t.dtype) for t in arguments])
    return tf.function(lambda *tensors: concrete(*tensors), autograph=False, jit_compile=True), arguments


def shown(loops: list[Loop]) -> str:
    """Return the trips of loops as text."""
    texts = ("?" if loop.trips is None else str(loop.trips) for loop in loops)
    return (
        ", ".join("(" * loop.depth + text + ")" * loop.depth for loop, text in zip(loops, texts, strict=True)) or "none"
    )


def main(argv: list[str]) -> None:
    """Print a table, and export."""
    folder = pathlib.Path(_EXPORT.value) if _EXPORT.value else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        options = {"steps": _STEPS.value, "rate": RATE, "pool": _POOL.value, "policy": _POLICY.value}
        (folder / "workload.json").write_text(json.dumps(options | {"blocks": _BLOCKS.value}))
    head = ["estimator", "tasks", "HVPs", "loops", "operations", "in a row", "on the host"]
    head += ["XLA temp (MiB)"] if _TEMP.value else []
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    wanted = [(text, "vectorize") for text in _ESTIMATORS.value.split(";")]
    for text, execution in [*wanted, *((text, "map") for text in _LOOPED.value.split(";") if text)]:
        function, arguments = step(*workload(), text, execution)
        serialized = compiled(function, *arguments)
        found = read(serialized)
        hvps = mg.estimators.parse(text).hvps(_STEPS.value)
        cells = [text, execution, hvps, shown(found.loops), found.heavy, found.critical, len(found.host)]
        if _TEMP.value:
            from gpu_run import load

            cells.append(f"{load(serialized)[0].get_compiled_memory_stats().temp_size_in_bytes / 2**20:.1f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        if folder:
            name = folder / f"{text} {execution}"
            pathlib.Path(f"{name}.hlo").write_bytes(serialized)
            np.savez(f"{name}.npz", *[t.numpy() for t in function(*arguments)])
            np.savez(folder / "inputs.npz", *[t.numpy() for t in arguments])


if __name__ == "__main__":
    app.run(main)
