"""Times the steps that `parallelism.py --export=FOLDER` wrote, on the device that JAX has; needs JAX and NumPy only.

  python gpu_run.py FOLDER [SECONDS_FOR_EACH]

Programs are compiled by JAX's runtime and run in turns, beside JAX's own exact MAML on the same arguments (the gradient
through the unrolled loop, `vmap` over the tasks). Printed are the medians, XLA's scratch memory, the time relative to
MAML's, and the relative difference of the meta-gradient from what TensorFlow got where it was exported.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib import xla_client

BN_EPSILON = 1e-3  # Keras' default


def load(serialized: bytes):
    """Return the executable of a serialised program, and the device that it is for."""
    device = jax.devices()[0]
    module = xla_client._xla.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(serialized))
    devices = xla_client.DeviceList((device,)) if hasattr(xla_client, "DeviceList") else [device]
    return device.client.compile_and_load(module, devices, xla_client.CompileOptions()), device


def logits(theta: list, x, pool: bool, blocks: int):
    """Return the outputs of `mg.models.conv2d`."""
    for kernel, bias, scale, offset in (theta[4 * i : 4 * i + 4] for i in range(blocks)):
        stride = 1 if pool else 2
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x + bias
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + BN_EPSILON) * scale + offset)
        if pool:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1) @ theta[-2] + theta[-1]


def maml(theta: list, tasks: list, workload: dict) -> list:
    """Return the exact meta-gradient and the query losses, as the exported steps do."""

    def loss(weights, x, y):
        z = logits(weights, x, workload["pool"], workload["blocks"])
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1).mean()

    def adapted(weights, support_x, support_y, query_x, query_y):
        for _ in range(workload["steps"]):
            gradient = jax.grad(loss)(weights, support_x, support_y)
            weights = [w - workload["rate"] * g for w, g in zip(weights, gradient, strict=True)]
        return loss(weights, query_x, query_y)

    def mean(weights):
        losses = jax.vmap(adapted, (None, 0, 0, 0, 0))(weights, *tasks)
        return losses.mean(), losses

    gradient, losses = jax.grad(mean, has_aux=True)(theta)
    return [*gradient, losses]


def asked(executable) -> int:
    """Return the number of loops before whose trips the host is asked, for XLA does not know how many there are."""
    lines = executable.hlo_modules()[0].to_string().splitlines()
    return sum(" while(" in line and "known_trip_count" not in line for line in lines)


def steps(folder: pathlib.Path) -> dict[str, tuple[Callable, float, float, int]]:
    """Return `{name: (run, compile seconds, scratch MiB, loops that ask the host)}`."""
    with np.load(folder / "inputs.npz") as file:
        arguments = [jax.device_put(file[name]) for name in file.files]
    workload, found = json.loads((folder / "workload.json").read_text()), {}

    def add(name, compile_step):
        start = time.perf_counter()
        run, executable = compile_step()
        memory = executable.get_compiled_memory_stats().temp_size_in_bytes / 2**20
        found[name] = run, time.perf_counter() - start, memory, asked(executable)

    def exported(path):
        executable, _ = load(path.read_bytes())

        def run():
            outputs = executable.execute_sharded(arguments).disassemble_into_single_device_arrays()
            return jax.block_until_ready([shards[0] for shards in outputs])

        return run, executable

    def own():
        theta, tasks = arguments[: 4 * workload["blocks"] + 2], arguments[-4:]
        compiled = jax.jit(lambda theta, tasks: maml(theta, tasks, workload)).lower(theta, tasks).compile()
        return lambda: jax.block_until_ready(compiled(theta, tasks)), compiled.runtime_executable()

    for path in sorted(folder.glob("*.hlo")):
        add(path.stem, lambda path=path: exported(path))
    if workload["policy"] == "float32":
        add("JAX MAML vmap", own)
    return found


def relative_difference(outputs: list, folder: pathlib.Path, name: str) -> float:
    """Return |gradient - expected| / |expected|; the last output is the losses."""
    with np.load(folder / f"{name}.npz") as file:
        expected = np.concatenate([np.ravel(file[key]) for key in file.files[:-1]])
    value = np.concatenate([np.ravel(np.asarray(g)) for g in outputs[:-1]])
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def main(folder: pathlib.Path, seconds: float) -> None:
    """Print a table."""
    found, times = steps(folder), {}
    differences = {
        name: relative_difference(run(), folder, "MAML vectorize" if name.startswith("JAX") else name)
        for name, (run, *_) in found.items()
    }
    end = time.perf_counter() + seconds * len(found)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, (run, *_) in found.items():
            start = time.perf_counter()
            run()
            times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    device = jax.devices()[0]
    print(f"{device.platform}, {device.device_kind}, JAX {jax.__version__}\n")
    heads = "median (ms)", "least (ms)", "to MAML vectorize", "XLA temp (MiB)", "compiled in (s)", "loops that ask"
    print("| step | " + " | ".join(heads) + " | difference |\n" + "|---" * 8 + "|")
    base = np.median(times.get("MAML vectorize", [np.nan]))
    for name, (_, compile_s, memory, loops) in found.items():
        median, least = np.median(times[name]), min(times[name])
        row = f"{median:.2f} | {least:.2f} | {median / base:.2f} | {memory:.1f} | {compile_s:.1f} | {loops}"
        print(f"| {name} | {row} | {differences[name]:.0e} |")
    for name in found:
        order = name.removeprefix("BinomMAML").removesuffix(" vectorize")
        if f"TruncMAML{order} vectorize" in found and name.startswith("BinomMAML"):
            ratio = np.median(times[name]) / np.median(times[f"TruncMAML{order} vectorize"])
            print(f"\nBinomMAML{order} takes {ratio:.2f} times what TruncMAML{order} does.")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)
