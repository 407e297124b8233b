"""The nets in JAX, as functions of a dictionary of weights. Images are NHWC."""

import jax
import jax.numpy as jnp
from peers.workloads import BLOCKS, EPSILON, HEADS, HIDDEN_LAYERS

Weights = dict[str, jax.Array]


def _dense(w: Weights, name: str, x: jax.Array) -> jax.Array:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def _normalize(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    centred = x - x.mean(axes, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(axes, keepdims=True) + EPSILON)


def _norm(w: Weights, i: int, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return _normalize(x, axes) * w[f"norm{i}/scale"] + w[f"norm{i}/offset"]


def _max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling as maxima: on a CPU a little faster to differentiate than `reduce_window`."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def mlp(w: Weights, x: jax.Array) -> jax.Array:
    """Return the outputs of one task's examples `[n, 1]`."""
    for i in range(HIDDEN_LAYERS):
        x = jax.nn.relu(_dense(w, f"dense{i}", x))
    return _dense(w, "head", x)


def conv2d(w: Weights, x: jax.Array) -> jax.Array:
    """Return the logits of one task's images `[n, h, w, c]`."""
    for i in range(BLOCKS):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, w[f"conv{i}/kernel"], (1, 1), "SAME", dimension_numbers=layout)
        x = _max_pool(jax.nn.relu(_norm(w, i, x + w[f"conv{i}/bias"], (0, 1, 2))))
    return _dense(w, "head", x.reshape(len(x), -1))


def transformer(w: Weights, x: jax.Array) -> jax.Array:
    """Return the logits of one task's sequences `[n, length, d]`."""
    n, length, d = x.shape
    q, k, v = jnp.moveaxis(_dense(w, "qkv", x).reshape(n, length, 3, HEADS, d // HEADS), 2, 0)
    scores = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / jnp.sqrt(d // HEADS).astype(x.dtype), axis=-1)
    attended = jnp.einsum("nhqk,nkhd->nqhd", scores, v).reshape(n, length, d)
    x = _norm(w, 0, x + _dense(w, "output", attended), (-1,))
    x = _norm(w, 1, x + _dense(w, "dense1", jax.nn.relu(_dense(w, "dense0", x))), (-1,))
    return _dense(w, "head", x.mean(1))


NETS = {"mlp": mlp, "conv2d": conv2d, "transformer": transformer}
