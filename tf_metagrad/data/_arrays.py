"""Few-shot tasks from any labelled arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_metagrad.data import _episodes


def from_arrays(
    x: Any,
    y: Any,
    *,
    ways: int,
    shots: int,
    queries: int,
    meta_batch: int,
    seed: int = 0,
    start: int = 0,
    transform: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Few-shot classification tasks drawn from labelled examples.

    A task takes `ways` of the classes in y, without replacement and in random order: the class drawn first becomes
    label 0, and so on. From each it takes `shots + queries` different examples, the first `shots` for the support set
    and the others for the query set, so that the two never overlap. Examples stand class by class, in label order.
    Every ordered choice is equally likely, classes of unequal size included.

    The examples are held once, in the type given, in host memory. uint8 becomes float32 in [0, 1] as batches are
    made, other floating-point types become float32, and the rest (token ids, say) stay what they are; `transform`
    replaces this.

    The stream never ends: `.take(n)` gives n batches, and `start=n` the same stream from batch n on. Task number i
    depends on the data, `ways`, `shots`, `queries`, `seed` and i alone, whatever the machine, the process or
    `meta_batch`.

    Args:
        x: examples, shape [examples, ...].
        y: integer class of each example, shape [examples]; the values themselves are arbitrary.
        ways: classes in a task.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream.
        start: number of the first batch, for resuming.
        transform: applied in the pipeline, in place of the conversion above, to the support and to the query examples
            of a batch, each of shape [meta_batch, count, ...] and of x's type; it keeps the first two axes.

    Returns:
        An infinite `tf.data.Dataset` of `Task`: support_x [meta_batch, ways * shots, ...], support_y int32
        [meta_batch, ways * shots], query_x [meta_batch, ways * queries, ...], query_y int32 [meta_batch, ways *
        queries].

    Raises:
        ValueError: the arrays or the sizes do not make episodes; the message says what to change.

    Example:
        >>> import numpy as np
        >>> import tf_metagrad as mg
        >>> x, y = np.zeros([60, 28, 28, 1], np.uint8), np.arange(60) // 10
        >>> tasks = mg.data.from_arrays(x, y, ways=5, shots=1, queries=3, meta_batch=4, seed=0)
        >>> task = next(iter(tasks))
        >>> print(task.support_x.shape, task.query_x.shape, task.query_x.dtype.name)
        (4, 5, 28, 28, 1) (4, 15, 28, 28, 1) float32
        >>> print(task.query_y[0].numpy())
        [0 0 0 1 1 1 2 2 2 3 3 3 4 4 4]

    References:
        Vinyals et al., 2016, Matching Networks for One Shot Learning, https://arxiv.org/abs/1606.04080
    """
    _episodes.check_sizes(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    with tf.device("CPU:0"):  # where tf.data runs; a copy on an accelerator would be fetched back for every batch
        examples, labels = _converted("x", tf.convert_to_tensor, x), _converted("y", np.asarray, y)
    _check_arrays(examples, labels)
    return _episodes.from_source(
        lambda index: tf.gather(examples, index),
        labels,
        ways=ways,
        shots=shots,
        queries=queries,
        meta_batch=meta_batch,
        seed=seed,
        start=start,
        transform=transform,
    )


def _converted(name: str, convert: Callable, value: Any) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, MemoryError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{name} of type {type(value).__name__} does not make an array ({reason}), expected one: "
            "pass an array of numbers, or lists of equal lengths."
        ) from error


def _check_arrays(x: tf.Tensor, y: np.ndarray) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        number = "np.unique(y, return_inverse=True)[1]" if y.ndim == 1 else "for one-hot rows, y.argmax(-1)"
        number = "y[:, 0]" if y.ndim == 2 and y.shape[1] == 1 else number
        raise ValueError(
            f"y has dtype {y.dtype} and shape {y.shape}, expected one integer per example: "
            f"pass class numbers ({number})."
        )
    if x.shape.rank == 0 or x.shape[0] != len(y):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y has {len(y)} labels, expected as many examples as labels: "
            "pass arrays whose first axes agree."
        )
    if x.dtype.is_floating:
        finite = tf.reduce_all(tf.math.is_finite(tf.reshape(x, [len(y), -1])), axis=1).numpy()
        if not finite.all():
            raise ValueError(
                f"x holds NaN or infinity in {np.sum(~finite)} of {len(y)} examples, the first at position "
                f"{np.argmin(finite)}, expected finite values: repair or drop these examples."
            )
