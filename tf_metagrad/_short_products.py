"""Weight gradients of few examples as sums of outer products, for nets that XLA runs on a CPU, all tasks at once.

The gradient of a layer's weights is a sum over the examples of a task, G = sum_n x_n d_n^T, and a task has few. XLA
hands the product of each task to a kernel made for long sums, stores G, and reads it again. Written as that sum it is
part of the loop that uses it, the step phi - alpha G or the adjoint's v - alpha H v; at 10 examples it takes a third of
the time.
"""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import gen_math_ops

from tf_metagrad import _tree
from tf_metagrad._forward_rules import is_zero
from tf_metagrad._second_order import substituted

_TERMS = 16  # examples up to which the sum is faster
_SIDE = 4  # smaller matrices gain nothing, and their loops take long to compile


def _outer_products(x: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """Return `[tasks, rows, columns]`, the sums over n of x_n d_n^T."""
    columns, rows = tf.unstack(tf.expand_dims(x, 3), axis=1), tf.unstack(tf.expand_dims(d, 2), axis=1)
    return tf.add_n(_tree.multiply(columns, rows))


def _is_short(x: tf.Tensor, d: tf.Tensor) -> bool:
    if not (x.shape.rank == d.shape.rank == 3 and x.shape.is_fully_defined() and d.shape.is_fully_defined()):
        return False
    return 0 < x.shape[1] <= _TERMS and min(x.shape[2], d.shape[2]) > _SIDE and x.dtype.is_floating


def _product(original, x, y, adj_x=False, adj_y=False, grad_x=False, grad_y=False, name=None):
    """`BatchMatMulV2`, where x is transposed and has few rows."""
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    if not (adj_x and not adj_y and _is_short(x, y) and x.shape[:2] == y.shape[:2]):
        return original(x, y, adj_x=adj_x, adj_y=adj_y, grad_x=grad_x, grad_y=grad_y, name=name)
    with record.stop_recording():
        product = _outer_products(x, y)

    def backward(dz):
        return [tf.matmul(y, dz, transpose_b=True), tf.matmul(x, dz)]

    def forward(x_t, y_t):
        parts = [_outer_products(a, b) for a, b in ((x_t, y), (x, y_t)) if not (is_zero(a) or is_zero(b))]
        return [tf.add_n(parts) if parts else tf.zeros_like(product)]

    record.record_operation("ShortProduct", [product], [x, y], backward, forward)
    return product


@contextlib.contextmanager
def short_products() -> Iterator[None]:
    """Trace gradients and HVPs in this scope and short products are written so."""
    with substituted(gen_math_ops, "batch_mat_mul_v2", _product):
        yield
