"""The nets in PyTorch, as functions of a dictionary of weights: of one task, and of all tasks at a time.

Images are NCHW. Attention is written out: PyTorch's fused one has no second derivative.
"""

import math

import torch
import torch.nn.functional as F
from peers.workloads import BLOCKS, EPSILON, HEADS, HIDDEN_LAYERS

Weights = dict[str, torch.Tensor]


def mlp(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return the outputs of one task's examples `[n, 1]`."""
    for i in range(HIDDEN_LAYERS):
        x = F.relu(torch.addmm(w[f"dense{i}/bias"], x, w[f"dense{i}/kernel"]))
    return torch.addmm(w["head/bias"], x, w["head/kernel"])


def conv2d(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of one task's images `[n, c, h, w]`."""
    for i in range(BLOCKS):
        x = F.conv2d(x, w[f"conv{i}/kernel"], w[f"conv{i}/bias"], padding=1)
        x = F.batch_norm(x, None, None, w[f"norm{i}/scale"], w[f"norm{i}/offset"], training=True, eps=EPSILON)
        x = F.max_pool2d(F.relu(x), 2)
    return torch.addmm(w["head/bias"], x.flatten(1), w["head/kernel"])


def transformer(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of one task's sequences `[n, length, d]`."""
    n, length, d = x.shape

    def dense(name, x):
        return torch.addmm(w[f"{name}/bias"], x.reshape(n * length, -1), w[f"{name}/kernel"]).reshape(n, length, -1)

    def norm(i, x):
        return F.layer_norm(x, (d,), w[f"norm{i}/scale"], w[f"norm{i}/offset"], EPSILON)

    q, k, v = dense("qkv", x).reshape(n, length, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
    scores = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(d // HEADS), -1)
    x = norm(0, x + dense("output", (scores @ v).transpose(1, 2)))
    x = norm(1, x + dense("dense1", F.relu(dense("dense0", x))))
    return torch.addmm(w["head/bias"], x.mean(1), w["head/kernel"])


# All tasks at a time: weights and inputs have a leading axis of tasks -------------------------------------------------


def _dense(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(w[f"{name}/bias"][:, None], x, w[f"{name}/kernel"])


def batched_mlp(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return the outputs `[tasks, n, 1]` of `[tasks, n, 1]`."""
    for i in range(HIDDEN_LAYERS):
        x = F.relu(_dense(w, f"dense{i}", x))
    return _dense(w, "head", x)


def batched_conv2d(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of `[tasks, n, c, h, w]`: the tasks are the groups of a grouped convolution."""
    tasks, n = x.shape[:2]
    x = x.transpose(0, 1).flatten(1, 2)
    for i in range(BLOCKS):
        x = F.conv2d(x, w[f"conv{i}/kernel"].flatten(0, 1), w[f"conv{i}/bias"].flatten(), padding=1, groups=tasks)
        scale, offset = w[f"norm{i}/scale"].flatten(), w[f"norm{i}/offset"].flatten()
        x = F.max_pool2d(F.relu(F.batch_norm(x, None, None, scale, offset, training=True, eps=EPSILON)), 2)
    return _dense(w, "head", x.reshape(n, tasks, -1).transpose(0, 1))


def batched_transformer(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of `[tasks, n, length, d]`."""
    tasks, n, length, d = x.shape

    def norm(i, x):
        scale, offset = w[f"norm{i}/scale"][:, None], w[f"norm{i}/offset"][:, None]
        return torch.addcmul(offset, F.layer_norm(x, (d,), eps=EPSILON), scale)

    x = x.reshape(tasks, n * length, d)
    q, k, v = _dense(w, "qkv", x).reshape(tasks * n, length, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
    scores = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(d // HEADS), -1)
    x = norm(0, x + _dense(w, "output", (scores @ v).transpose(1, 2).reshape(tasks, n * length, d)))
    x = norm(1, x + _dense(w, "dense1", F.relu(_dense(w, "dense0", x))))
    return _dense(w, "head", x.reshape(tasks, n, length, d).mean(2))


ONE = {"mlp": mlp, "conv2d": conv2d, "transformer": transformer}
BATCHED = {"mlp": batched_mlp, "conv2d": batched_conv2d, "transformer": batched_transformer}
