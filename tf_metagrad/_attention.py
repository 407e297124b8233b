"""Attention with derivatives of first and second order in few passes over its maps, for nets that run without XLA.

For each head, with q scaled, S = q k^T, P = softmax(S) by rows, O = P v, and D the gradient of O,

    dv = P^T D,   X = D v^T - rowsum(D * O),   dS = P * X,   dq = dS k,   dk = dS^T q,

the row sums being those of dP * P, which needs no pass over the maps (FlashAttention-2, Dao, 2023, arXiv:2307.08691,
section 3.1). Along (q', k', v', D')

    Z  = q' k^T + q k'^T - rowsum(q' * P k + q * P k'),   P' = P * Z,   O' = P' v + P v'
    X' = D' v^T + D v'^T - rowsum(D' * O + D * O'),       dS' = P' * X + P * X',
    dv' = P'^T D + P^T D',   dq' = dS' k + dS k',   dk' = dS'^T q + dS^T q'.

Each of S, X, Z and X' is one product: what is subtracted by rows is one column more of the left matrix, against ones.
What is left for the maps, the largest tensors of a Transformer by far, are a softmax and five passes, where
TensorFlow's rules for Keras' operations make about twenty and hold more maps at a time: exact MAML on the Transformer
of `benchmarks/` needs 56 MiB instead of 67, and the gradient of its attention four fifths of the time.
These derivatives are known to the tapes and accumulators around the model; inside of those that a layer opens itself,
attention is left to Keras (see `_user_derivatives`), and so are masks, learned biases and scales that are not scalars.
"""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
from keras.src.backend.tensorflow import nn
from tensorflow.python.eager import record

from tf_metagrad._second_order import substituted
from tf_metagrad._user_derivatives import differentiates


def _minus_rows(pairs: Sequence[tuple[tf.Tensor, tf.Tensor]], rows: tf.Tensor) -> tf.Tensor:
    """Return the sum of a b^T over the pairs, minus a number for each row."""
    left = tf.concat([*(a for a, _ in pairs), -rows], axis=-1)
    right = tf.concat([*(b for _, b in pairs), tf.ones_like(pairs[0][1][..., :1])], axis=-1)
    return tf.matmul(left, right, transpose_b=True)


def _rows(*pairs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Return the sum of a * b over the pairs and along rows, `[..., rows, 1]`."""
    return tf.reduce_sum(tf.add_n([a * b for a, b in pairs]), axis=-1, keepdims=True)


class _Heads:
    """q, k, v `[..., length, width]`, P and O of one call, and how they move."""

    def __init__(self, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor):
        """Compute P and O."""
        self.q, self.k, self.v = q, k, v
        self.p = tf.nn.softmax(tf.matmul(q, k, transpose_b=True))
        self.o = tf.matmul(self.p, v)
        self._moved: list[tuple] = []

    def along(self, q_t: tf.Tensor, k_t: tf.Tensor, v_t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return P' and O'; the tangents of O and of its gradient ask for the same ones."""
        for asked, found in self._moved:
            if all(a is b for a, b in zip(asked, (q_t, k_t, v_t), strict=True)):
                return found
        width = [self.k.shape[-1], k_t.shape[-1], v_t.shape[-1]]
        pk, pk_t, pv_t = tf.split(tf.matmul(self.p, tf.concat([self.k, k_t, v_t], axis=-1)), width, axis=-1)
        p_t = self.p * _minus_rows([(q_t, self.k), (self.q, k_t)], _rows((q_t, pk), (self.q, pk_t)))
        found = p_t, tf.matmul(p_t, self.v) + pv_t
        self._moved.append(((q_t, k_t, v_t), found))
        return found


def attention(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Return softmax(q k^T) v.

    Args:
        q: `[..., targets, width]`, scaled.
        k: `[..., sources, width]`.
        v: `[..., sources, width of the values]`.
    """
    with record.stop_recording():
        heads = _Heads(q, k, v)

    def backward(d):
        return _gradient(heads, d)

    def forward(*tangents):
        return [heads.along(*tangents)[1]]

    record.record_operation("Attention", [heads.o], [q, k, v], backward, forward)
    return heads.o


def _gradient(heads: _Heads, d: tf.Tensor) -> list[tf.Tensor]:
    """Return dq, dk and dv."""
    q, k, v, p, o = heads.q, heads.k, heads.v, heads.p, heads.o
    with record.stop_recording():
        x = _minus_rows([(d, v)], _rows((d, o)))
        s = p * x
        outputs = [tf.matmul(s, k), tf.matmul(s, q, transpose_a=True), tf.matmul(p, d, transpose_a=True)]

    def forward(d_t, q_t, k_t, v_t):
        p_t, o_t = heads.along(q_t, k_t, v_t)
        x_t = _minus_rows([(d_t, v), (d, v_t)], _rows((d_t, o), (d, o_t)))
        s_t = p_t * x + p * x_t
        return [
            tf.matmul(s_t, k) + tf.matmul(s, k_t),
            tf.matmul(s_t, q, transpose_a=True) + tf.matmul(s, q_t, transpose_a=True),
            tf.matmul(p_t, d, transpose_a=True) + tf.matmul(p, d_t, transpose_a=True),
        ]

    def backward(*cotangents):
        with tf.GradientTape() as outer:
            outer.watch([d, q, k, v])
            with tf.GradientTape() as inner:
                inner.watch([q, k, v])
                found = _Heads(q, k, v).o
            gradient = inner.gradient(found, [q, k, v], d)
        return outer.gradient(gradient, [d, q, k, v], list(cotangents))

    record.record_operation("AttentionGrad", outputs, [d, q, k, v], backward, forward)
    return outputs


def _dot_product_attention(original, query, key, value, bias=None, mask=None, scale=None, is_causal=False, **options):
    """`keras.ops.dot_product_attention` without masks, `[batch, length, heads, width]`."""
    q, k, v = (tf.convert_to_tensor(t) for t in (query, key, value))
    own = bias is None and mask is None and not is_causal and not any(options.values()) and not differentiates()
    own = own and q.dtype == k.dtype == v.dtype and q.dtype in (tf.float32, tf.float64)
    own = own and (scale is None or tf.convert_to_tensor(scale).shape.rank == 0)
    own = own and q.shape.rank == k.shape.rank == v.shape.rank == 4
    if not (own and all(q.shape[i] == k.shape[i] == v.shape[i] for i in (0, 2))):
        return original(query, key, value, bias=bias, mask=mask, scale=scale, is_causal=is_causal, **options)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (tf.transpose(t, [0, 2, 1, 3]) for t in (q * tf.cast(scale, q.dtype), k, v))
    return tf.transpose(attention(q, k, v), [0, 2, 1, 3])


@contextlib.contextmanager
def fast_attention() -> Iterator[None]:
    """Trace a model in this scope and its attention is computed so."""
    with substituted(nn, "dot_product_attention", _dot_product_attention):
        yield
