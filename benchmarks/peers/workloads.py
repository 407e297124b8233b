"""The four workloads of the comparison: sizes, data and initial weights, made once with NumPy for every library."""

import dataclasses
import math
import pathlib

import numpy as np

TASK = ("support_x", "support_y", "query_x", "query_y")
HEADS, BLOCKS, HIDDEN_LAYERS, EPSILON = 8, 4, 2, 1e-3
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A net and the tasks it adapts to.

    Attributes:
        name: what the tables call it.
        net: `"mlp"`, `"conv2d"` or `"transformer"`.
        shape: of one input.
        width: units, filters, or units of the feed-forward layer.
        tasks: tasks of one meta-gradient.
        rate: the inner learning rate alpha.
        ways: outputs: classes, or 1 for the regression.
        shots: support examples of each class.
        queries: query examples of each class.
        steps: K.
    """

    name: str
    net: str
    shape: tuple[int, ...]
    width: int
    tasks: int
    rate: float
    ways: int = 5
    shots: int = 1
    queries: int = 15
    steps: int = 5


_ALL = [
    Workload("sinusoid", "mlp", (1,), width=40, tasks=25, rate=0.01, ways=1, shots=10, queries=10),
    Workload("omniglot", "conv2d", (28, 28, 1), width=64, tasks=4, rate=0.1),
    Workload("mini_imagenet", "conv2d", (84, 84, 3), width=32, tasks=4, rate=0.01),
    Workload("transformer", "transformer", (128, 128), width=512, tasks=2, rate=0.01, queries=5),
]
WORKLOADS = {workload.name: workload for workload in _ALL}
_SMALLER = {
    "sinusoid": {"tasks": 3, "width": 8},
    "omniglot": {"tasks": 2, "width": 4, "queries": 2},
    "mini_imagenet": {"tasks": 2, "width": 4, "queries": 2, "shape": (32, 32, 3)},
    "transformer": {"tasks": 2, "width": 16, "queries": 2, "shape": (6, 32)},
}


def workload(name: str, small: bool = False) -> Workload:
    """Return a workload, or one like it that a test can run in seconds."""
    found = WORKLOADS[name]
    return dataclasses.replace(found, **_SMALLER[name], steps=2) if small else found


def _layer(name: str, kernel: tuple[int, ...], bias: tuple[int, ...], fan_in: int) -> list[tuple]:
    return [(f"{name}/kernel", kernel, math.sqrt(2 / fan_in)), (f"{name}/bias", bias, 0.1)]


def _norm(name: str, width: int) -> list[tuple]:
    return [(f"{name}/scale", (width,), 0.1), (f"{name}/offset", (width,), 0.1)]


def weight_shapes(work: Workload) -> list[tuple[str, tuple[int, ...], float]]:
    """Return `(name, shape, deviation)` of each weight, in the order of the Keras model's trainable variables."""
    found, width, size = [], work.width, work.shape[-1]
    if work.net == "mlp":
        for i in range(HIDDEN_LAYERS):
            found += _layer(f"dense{i}", (size, width), (width,), size)
            size = width
    if work.net == "conv2d":
        for i in range(BLOCKS):
            found += _layer(f"conv{i}", (3, 3, size, width), (width,), 9 * size) + _norm(f"norm{i}", width)
            size = width
        size = width * (work.shape[0] // 2**BLOCKS) * (work.shape[1] // 2**BLOCKS)
    if work.net == "transformer":
        for name in ("query", "key", "value"):
            found += _layer(name, (size, HEADS, size // HEADS), (HEADS, size // HEADS), size)
        found += _layer("output", (HEADS, size // HEADS, size), (size,), size) + _norm("norm0", size)
        found += _layer("dense0", (size, width), (width,), size) + _layer("dense1", (width, size), (size,), width)
        found += _norm("norm1", size)
    return found + _layer("head", (size, work.ways), (work.ways,), size)


def _tasks(work: Workload, rng: np.random.Generator) -> Arrays:
    if work.net == "mlp":
        amplitude, phase = (rng.uniform(*r, size=(work.tasks, 1, 1)) for r in ((0.1, 5.0), (0.0, np.pi)))
        xs = [rng.uniform(-5, 5, size=(work.tasks, count, 1)) for count in (work.shots, work.queries)]
        ys = [amplitude * np.sin(x - phase) for x in xs]
        return dict(zip(TASK, [xs[0], ys[0], xs[1], ys[1]], strict=True))
    classes, found = rng.normal(size=(work.tasks, work.ways, *work.shape)), []
    for each in (work.shots, work.queries):
        x = np.repeat(classes, each, axis=1)
        found += [x + rng.normal(size=x.shape), np.tile(np.repeat(np.arange(work.ways), each), (work.tasks, 1))]
    return dict(zip(TASK, found, strict=True))


def write(work: Workload, path: pathlib.Path, seed: int = 0) -> None:
    """Write tasks `[tasks, examples, ...]` and initial weights, in Keras' layouts, float32 and int32."""
    rng = np.random.default_rng(seed)
    arrays = _tasks(work, rng)
    for name, shape, deviation in weight_shapes(work):
        arrays[name] = float(name.endswith("/scale")) + deviation * rng.normal(size=shape)
    kinds = {name: "int32" if value.dtype.kind == "i" else "float32" for name, value in arrays.items()}
    np.savez(path, **{name: value.astype(kinds[name]) for name, value in arrays.items()})


def read(path: pathlib.Path, double: bool = False) -> tuple[Arrays, Arrays]:
    """Return `(tasks, weights)` as they were written or in float64, the weights in their order."""
    with np.load(path) as file:
        arrays = dict(file)
    if double:
        arrays = {n: a.astype("float64") if a.dtype == np.float32 else a for n, a in arrays.items()}
    return {name: arrays.pop(name) for name in TASK}, arrays


def pack(weights: Arrays) -> Arrays:
    """Return the weights with the three projections of attention as one matrix product, as PyTorch keeps them."""
    if "query/kernel" not in weights:
        return dict(weights)
    packed, size = dict(weights), len(weights["query/kernel"])
    kernels, biases = zip(*((packed.pop(f"{n}/kernel"), packed.pop(f"{n}/bias")) for n in ("query", "key", "value")),
                          strict=True)  # fmt: skip
    packed["qkv/kernel"] = np.concatenate([k.reshape(size, size) for k in kernels], axis=1)
    packed["qkv/bias"] = np.concatenate([b.reshape(size) for b in biases])
    packed["output/kernel"] = packed["output/kernel"].reshape(size, size)
    return packed


def unpack(work: Workload, packed: Arrays) -> np.ndarray:
    """Return weights as `pack` makes them, or their gradients, as one vector in Keras' order."""
    weights = dict(packed)
    if "qkv/kernel" in weights:
        kernels, biases = np.split(weights["qkv/kernel"], 3, axis=1), np.split(weights["qkv/bias"], 3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            weights |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
    return np.concatenate([np.ravel(weights[name]).astype("float64") for name, *_ in weight_shapes(work)])
