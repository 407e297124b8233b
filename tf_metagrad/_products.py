"""Matrix products by TensorFlow's fastest kernels, for nets that run without XLA, one task at a time.

`Einsum` transposes its operands at every call, in the gradient and in the tangents again; written as transposes and a
product of matrices they are shared. A batch of matrices times one matrix is one product of a taller matrix: as a
batched product its gradient with respect to the one matrix is made for every entry of the batch, and then summed.
"""

import contextlib
import math
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.ops import gen_linalg_ops, gen_math_ops

from tf_metagrad._second_order import substituted


def _batched_product(original, x, y, adj_x=False, adj_y=False, grad_x=False, grad_y=False, name=None):
    """`BatchMatMulV2` where y is one matrix."""
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    if adj_x or y.shape.rank != 2 or not (x.shape.rank or 0) > 2 or not x.shape[1:].num_elements():
        return original(x, y, adj_x=adj_x, adj_y=adj_y, grad_x=grad_x, grad_y=grad_y, name=name)
    product = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), y, adjoint_b=adj_y)
    return tf.reshape(product, [-1, *x.shape[1:-1], product.shape[-1]])


def _einsum(original, inputs, equation, name=None):
    """`Einsum` of two operands as transposes and a product; what it cannot write so is left to TensorFlow."""
    like = next((i.dtype for i in inputs if tf.is_tensor(i)), None)
    inputs = [i if tf.is_tensor(i) else tf.convert_to_tensor(i, like) for i in inputs]
    terms, _, output = equation.partition("->")
    labels = terms.split(",")
    plain = len(labels) == 2 and "." not in equation and all(len(set(t)) == len(t) for t in (*labels, output))
    a, b = labels if plain else ("", "")
    shared, both = set(a) & set(output), set(a) & set(b)
    if not plain or set(a) ^ set(b) != set(output) - both or any(not i.shape.is_fully_defined() for i in inputs):
        return original(inputs, equation, name=name)
    batch, contracted = [c for c in a if c in both & shared], [c for c in a if c in both - shared]
    rows, columns = [c for c in a if c not in both], [c for c in b if c not in both]
    size = {c: n for term, i in zip(labels, inputs, strict=True) for c, n in zip(term, i.shape, strict=True)}
    if any(size[c] != n for t, i in zip(labels, inputs, strict=True) for c, n in zip(t, i.shape, strict=True)):
        return original(inputs, equation, name=name)  # which says what is wrong

    def matrices(x, term, first, second):
        x = tf.transpose(x, [term.index(c) for c in (*batch, *first, *second)])
        return tf.reshape(
            x, [*(size[c] for c in batch), *(math.prod(size[c] for c in part) for part in (first, second))]
        )

    left, right = matrices(inputs[0], a, rows, contracted), matrices(inputs[1], b, columns, contracted)
    product = tf.reshape(tf.matmul(left, right, transpose_b=True), [size[c] for c in (*batch, *rows, *columns)])
    return tf.transpose(product, [(*batch, *rows, *columns).index(c) for c in output])


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Trace a model in this scope and its matrix products are written so."""
    with (
        substituted(gen_math_ops, "batch_mat_mul_v2", _batched_product),
        substituted(gen_linalg_ops, "einsum", _einsum),
    ):
        yield
