"""JAX: the gradient through the unrolled loop, and forward-over-reverse with a custom VJP (as MixFlow-MG does)."""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import jax_nets, workloads
from peers.workloads import TASK, Workload

LOOPS, TASKS = ("scan", "unrolled"), ("vmap", "map", "unrolled", "calls")


def task_loss(work: Workload, w: jax_nets.Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean loss of one task."""
    out = jax_nets.NETS[work.net](w, x)
    if work.net == "mlp":
        return jnp.mean((out - y) ** 2)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], axis=1))


def _add(phi: jax_nets.Weights, factor: float, other: jax_nets.Weights) -> jax_nets.Weights:
    return jax.tree.map(lambda p, g: p + factor * g, phi, other)


def _steps(body: Callable, carry: Any, xs: Any, count: int, loop: str, reverse: bool = False) -> tuple[Any, Any]:
    if loop == "scan":
        return jax.lax.scan(body, carry, xs, length=count, reverse=reverse)
    outputs = [None] * count
    for k in reversed(range(count)) if reverse else range(count):
        carry, outputs[k] = body(carry, None if xs is None else xs[k])
    return carry, outputs


def reverse_mode(work: Workload, loop: str) -> Callable:
    """Return the inner loop `(theta, x, y) -> phi^K`, for JAX to differentiate."""
    gradient = jax.grad(functools.partial(task_loss, work))

    def adapt(theta, x, y):
        return _steps(lambda phi, _: (_add(phi, -work.rate, gradient(phi, x, y)), None), theta, None, work.steps, loop)

    return lambda *args: adapt(*args)[0]


def mixed_mode(work: Workload, loop: str) -> Callable:
    """Return the same with a VJP of its own: v <- v - alpha H^k v at the iterates, H v by forward over reverse."""
    gradient = jax.grad(functools.partial(task_loss, work))

    @jax.custom_vjp
    def adapt(theta, x, y):
        return forward(theta, x, y)[0]

    def forward(theta, x, y):
        def body(phi, _):
            return _add(phi, -work.rate, gradient(phi, x, y)), phi

        end, iterates = _steps(body, theta, None, work.steps, loop)
        return end, (iterates, x, y)

    def backward(residuals, adjoint):
        iterates, x, y = residuals

        def body(v, phi):
            return _add(v, -work.rate, jax.jvp(lambda p: gradient(p, x, y), (phi,), (v,))[1]), None

        return _steps(body, adjoint, iterates, work.steps, loop, reverse=True)[0], None, None

    adapt.defvjp(forward, backward)
    return adapt


def meta_gradient(work: Workload, mode: Callable, loop: str, tasks: str) -> Callable:
    """Return `(theta, batch) -> (mean loss, mean gradient)`."""
    adapt = mode(work, loop)

    def query(theta, task):
        support_x, support_y, query_x, query_y = task
        return task_loss(work, adapt(theta, support_x, support_y), query_x, query_y)

    one = jax.value_and_grad(query)

    def stack_mean(results):
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *results)

    def each(theta, batch, call):
        return [call(theta, [part[i] for part in batch]) for i in range(work.tasks)]

    def stacked(theta, batch):
        if tasks == "vmap":
            results = jax.vmap(one, (None, 0))(theta, batch)
        else:
            results = jax.lax.map(lambda task: one(theta, task), batch)
        return jax.tree.map(lambda t: t.mean(0), results)

    if tasks == "calls":
        compiled, mean = jax.jit(one), jax.jit(stack_mean)
        return lambda theta, batch: mean([compiled(theta, task) for task in batch])
    return jax.jit(stacked if tasks != "unrolled" else lambda theta, batch: stack_mean(each(theta, batch, one)))


def prepare(work: Workload, path: pathlib.Path, double: bool) -> tuple[dict[str, Callable[[], Any]], Callable]:
    """Return the variants, and what makes one float64 vector and the loss of their results."""
    tasks, weights = workloads.read(path, double)
    jax.config.update("jax_enable_x64", double)
    theta = {name: jnp.asarray(w) for name, w in workloads.pack(weights).items()}
    batch = [jnp.asarray(tasks[name]) for name in TASK]
    separate = [[jnp.asarray(tasks[name][i]) for name in TASK] for i in range(work.tasks)]
    jax.block_until_ready((theta, batch, separate))
    runs = {}
    for (kind, mode), loop, way in itertools.product((("unroll", reverse_mode), ("mixed", mixed_mode)), LOOPS, TASKS):
        function = meta_gradient(work, mode, loop, way)
        data = separate if way == "calls" else batch
        runs[f"{kind}, {loop}, tasks {way}"] = functools.partial(_ready, function, theta, data)
    return runs, functools.partial(_vector, work)


def _ready(function: Callable, *args: Any) -> Any:
    return jax.block_until_ready(function(*args))


def _vector(work: Workload, result: Any) -> tuple[np.ndarray, float]:
    loss, gradients = result
    return workloads.unpack(work, {name: np.asarray(g) for name, g in gradients.items()}), float(loss)
