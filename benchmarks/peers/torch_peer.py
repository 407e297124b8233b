"""PyTorch: `create_graph=True` through the inner loop (as learn2learn and higher do), and `torch.func`."""

import functools
import pathlib
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import torch_nets, workloads
from peers.workloads import TASK, Workload


def task_loss(net: Callable, w: torch_nets.Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of one task."""
    out = net(w, x)
    return F.mse_loss(out, y) if y.is_floating_point() else F.cross_entropy(out, y)


def summed_loss(net: Callable, w: torch_nets.Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the sum over the tasks of their mean losses; everything has a leading axis of tasks."""
    return len(x) * task_loss(lambda w, x: net(w, x).flatten(0, 1), w, x, y.flatten(0, 1))


def through_the_loop(loss: Callable, work: Workload, theta: torch_nets.Weights, start: torch_nets.Weights, task):
    """Return the gradient in theta of the query loss after K steps from `start`, a function of theta, and the loss."""
    support_x, support_y, query_x, query_y = task
    phi = start
    for _ in range(work.steps):
        gradients = torch.autograd.grad(loss(phi, support_x, support_y), list(phi.values()), create_graph=True)
        phi = {name: p - work.rate * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
    query = loss(phi, query_x, query_y)
    return torch.autograd.grad(query, list(theta.values())), query.detach()


def create_graph(work: Workload, theta: torch_nets.Weights, tasks: list[torch.Tensor]):
    """Return `(gradients, loss)`, task by task."""
    loss = functools.partial(task_loss, torch_nets.ONE[work.net])
    total, losses = None, 0
    for task in zip(*tasks, strict=True):
        gradients, query = through_the_loop(loss, work, theta, theta, task)
        total, losses = list(gradients) if total is None else torch._foreach_add(total, gradients), losses + query
    return dict(zip(theta, torch._foreach_div(total, work.tasks), strict=True)), losses / work.tasks


def create_graph_in_threads(work: Workload, theta: torch_nets.Weights, tasks: list[torch.Tensor]):
    """Return `(gradients, loss)`, as many tasks at a time as there are cores, each in a thread on one of them."""
    loss, cores = functools.partial(task_loss, torch_nets.ONE[work.net]), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with futures.ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            run = functools.partial(through_the_loop, loss, work, theta, theta)
            results = list(pool.map(run, zip(*tasks, strict=True)))
    finally:
        torch.set_num_threads(cores)
    gradients = [sum(parts) / work.tasks for parts in zip(*(g for g, _ in results), strict=True)]
    return dict(zip(theta, gradients, strict=True)), sum(q for _, q in results) / work.tasks


def create_graph_batched(work: Workload, theta: torch_nets.Weights, tasks: list[torch.Tensor]):
    """Return `(gradients, loss)`, all tasks at a time."""
    loss = functools.partial(summed_loss, torch_nets.BATCHED[work.net])
    start = {name: w.expand(work.tasks, *w.shape) for name, w in theta.items()}
    gradients, query = through_the_loop(loss, work, theta, start, tasks)
    return dict(zip(theta, torch._foreach_div(list(gradients), work.tasks), strict=True)), query / work.tasks


def functional(work: Workload) -> Callable:
    """Return `(theta, task) -> (gradient, query loss)` by `torch.func`."""
    loss = functools.partial(task_loss, torch_nets.ONE[work.net])
    inner = torch.func.grad(loss)

    def query(theta, task):
        support_x, support_y, query_x, query_y = task
        phi = theta
        for _ in range(work.steps):
            gradients = inner(phi, support_x, support_y)
            phi = {name: p - work.rate * gradients[name] for name, p in phi.items()}
        return loss(phi, query_x, query_y)

    return torch.func.grad_and_value(query)


def func_by_task(work: Workload, theta: torch_nets.Weights, tasks: list[torch.Tensor]):
    """Return `(gradients, loss)` by `torch.func`, task by task."""
    results = [functional(work)(theta, task) for task in zip(*tasks, strict=True)]
    total = {name: sum(gradients[name] for gradients, _ in results) / work.tasks for name in theta}
    return total, sum(loss for _, loss in results) / work.tasks


def func_vmap(work: Workload, theta: torch_nets.Weights, tasks: list[torch.Tensor]):
    """Return `(gradients, loss)` by `torch.func`, vectorised over the tasks."""
    gradients, losses = torch.func.vmap(functional(work), in_dims=(None, 0))(theta, tuple(tasks))
    return {name: g.mean(0) for name, g in gradients.items()}, losses.mean()


def to_torch(work: Workload, weights: workloads.Arrays) -> workloads.Arrays:
    """Return weights in PyTorch's layouts: OIHW kernels, and a head that reads flattened NCHW images."""
    found = workloads.pack(weights)
    if work.net == "conv2d":
        found |= {n: w.transpose(3, 2, 0, 1) for n, w in found.items() if w.ndim == 4}
        cells = [side // 2**workloads.BLOCKS for side in work.shape[:2]]
        head = found["head/kernel"].reshape(*cells, work.width, work.ways)
        found["head/kernel"] = head.transpose(2, 0, 1, 3).reshape(-1, work.ways)
    return found


def from_torch(work: Workload, result: Any) -> tuple[np.ndarray, float]:
    """Return the vector in Keras' order, and the loss."""
    found = {name: g.detach().numpy() for name, g in result[0].items()}
    if work.net == "conv2d":
        found |= {n: g.transpose(2, 3, 1, 0) for n, g in found.items() if g.ndim == 4}
        cells = [side // 2**workloads.BLOCKS for side in work.shape[:2]]
        head = found["head/kernel"].reshape(work.width, *cells, work.ways)
        found["head/kernel"] = head.transpose(1, 2, 0, 3)
    return workloads.unpack(work, found), float(result[1])


def prepare(work: Workload, path: pathlib.Path, double: bool) -> tuple[dict[str, Callable[[], Any]], Callable]:
    """Return the variants, and what makes one float64 vector and the loss of their results."""
    tasks, weights = workloads.read(path, double)
    if work.net == "conv2d":
        tasks |= {name: np.moveaxis(tasks[name], -1, 2) for name in ("support_x", "query_x")}
    batch = [torch.tensor(np.ascontiguousarray(tasks[name])) for name in TASK]
    batch = [part if part.is_floating_point() else part.long() for part in batch]
    theta = {n: torch.tensor(np.ascontiguousarray(w)) for n, w in to_torch(work, weights).items()}
    runs = {}

    def add(name, function, theta, batch):
        recorded = not name.startswith("torch.func")  # which needs no leaves, and would record the call once more
        leaves = {n: w.detach().requires_grad_(recorded) for n, w in theta.items()}
        runs[name] = lambda: function(work, leaves, batch)

    add("create_graph, by task", create_graph, theta, batch)
    add("create_graph, in threads", create_graph_in_threads, theta, batch)
    add("create_graph, batched", create_graph_batched, theta, batch)
    add("torch.func, by task", func_by_task, theta, batch)
    add("torch.func, vmap", func_vmap, theta, batch)
    if work.net == "conv2d":
        last = {n: _channels_last(w) for n, w in theta.items()}
        images = [torch.stack([_channels_last(x) for x in p]) if p.dim() == 5 else p for p in batch]
        images = [_each_channels_last(p) for p in images]
        add("create_graph, by task, channels last", create_graph, last, images)
        add("torch.func, by task, channels last", func_by_task, last, images)
    double = [part.double() if part.is_floating_point() else part for part in batch]
    add("float64", create_graph, {n: w.double() for n, w in theta.items()}, double)
    return runs, functools.partial(from_torch, work)


def _channels_last(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _each_channels_last(value: torch.Tensor) -> torch.Tensor:
    """Return images `[tasks, n, c, h, w]` of which each slice along the first axis is channels-last."""
    return value.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if value.dim() == 5 else value
