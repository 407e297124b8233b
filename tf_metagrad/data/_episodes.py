"""Few-shot episodes from labelled arrays, as a `tf.data` pipeline that any machine reproduces.

Episode number i of a stream is a pure function of (seed, i). The pipeline counts episodes, turns each number into
random bits with a stateless generator (Philox, named explicitly, so that no device picks another), and only then
touches the data. Nothing is remembered from one episode to the next, so a stream can begin anywhere at no cost.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_metagrad._types import Task

RNG = "philox"

_MINIMUM = {
    "ways": (2, "a classification task tells at least two classes apart"),
    "shots": (1, "adaptation needs at least one support example"),
    "queries": (1, "the meta-loss needs at least one query example"),
    "meta_batch": (1, "a batch holds at least one task"),
    "start": (0, "it counts the batches to skip from the beginning of the stream"),
    "seed": (0, "any whole number from 0 to 2**63 - 1 names a stream"),
}


def check_sizes(**sizes: int) -> None:
    """Raises ValueError unless every argument is a whole number in the range that its name calls for."""
    for name, value in sizes.items():
        minimum, reason = _MINIMUM[name]
        bits = 63 if name in ("seed", "start") else 31
        try:
            valid = minimum <= operator.index(value) < 2**bits
        except TypeError:
            valid = False
        if not valid:
            shown = repr(value)[:80]
            raise ValueError(
                f"{name} is {shown}, expected a whole number of at least {minimum} and below 2**{bits}: {reason}."
            )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}: choose one of these.")


def stream(
    draw: Callable[[tf.Tensor], Any],
    assemble: Callable[..., Task],
    *,
    meta_batch: int,
    seed: int,
    start: int,
) -> tf.data.Dataset:
    """Counts episodes, draws each from its own key, and assembles batches of them, without end.

    Args:
        draw: maps a stateless seed `[seed, episode]` of shape [2] to the random part of one episode.
        assemble: maps `meta_batch` such draws, stacked along a new leading axis, to a batch of tasks.
        meta_batch: tasks in a batch.
        seed: names the stream.
        start: number of the first batch.

    Returns:
        An infinite dataset of what `assemble` returns.
    """
    if (start + 1) * meta_batch >= 2**62:
        raise ValueError(
            f"start is {start} with meta_batch {meta_batch}, expected fewer than 2**62 tasks before the first batch: "
            "lower start."
        )

    def episode(number: tf.Tensor) -> Any:
        return draw(tf.stack([tf.constant(seed, tf.int64), number]))

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    draws = tf.data.Dataset.counter(start * meta_batch).map(episode, **parallel)
    return draws.batch(meta_batch, drop_remainder=True).map(assemble, **parallel).prefetch(tf.data.AUTOTUNE)


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
    check_sizes(ways=ways, shots=shots, queries=queries, meta_batch=meta_batch, seed=seed, start=start)
    with tf.device("CPU:0"):  # where tf.data runs; a copy on an accelerator would be fetched back for every batch
        examples, labels = _converted("x", tf.convert_to_tensor, x), _converted("y", np.asarray, y)
        order, counts = _group_by_class(examples, labels, ways, shots + queries)
        draw = _index_sampler(order, counts, ways, shots, queries)
    convert = transform or _to_float
    labels = [tf.repeat(tf.range(ways), per_class) for per_class in (shots, queries)]

    def assemble(support: tf.Tensor, query: tf.Tensor) -> Task:
        x_and_y = []
        for index, label in zip((support, query), labels, strict=True):
            x_and_y += [convert(tf.gather(examples, index)), tf.tile(label[tf.newaxis], [meta_batch, 1])]
        return Task(*x_and_y)

    tasks = stream(draw, assemble, meta_batch=meta_batch, seed=seed, start=start)
    _check_transformed(tasks.element_spec, meta_batch, ways * shots, ways * queries)
    return tasks


def _to_float(x: tf.Tensor) -> tf.Tensor:
    if x.dtype == tf.uint8:
        return tf.cast(x, tf.float32) / 255.0
    return tf.cast(x, tf.float32) if x.dtype.is_floating else x


def _index_sampler(order: np.ndarray, counts: np.ndarray, ways: int, shots: int, queries: int) -> Callable:
    """Returns the function from an episode's key to the positions of its support and of its query examples.

    One random integer per class and one per example of the chosen classes: the largest `ways`, then the largest
    `shots + queries` of each row, are random ordered subsets. Short classes are padded with the smallest integer,
    which is never among the largest as they hold `shots + queries` examples or more. The time of a draw grows with
    the classes and with `ways` times the largest class: some 0.1 ms up to a thousand, 5 ms at a hundred thousand.
    """
    classes, longest = len(counts), int(counts.max())
    order, counts, first = (tf.constant(a, tf.int32) for a in (order, counts, np.cumsum(counts) - counts))

    def draw(key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        bits = tf.random.stateless_uniform(
            [classes + ways * longest], key, minval=None, maxval=None, dtype=tf.int32, alg=RNG
        )
        chosen = tf.math.top_k(bits[:classes], ways).indices
        exists = tf.range(longest) < tf.gather(counts, chosen)[:, tf.newaxis]
        rank = tf.where(exists, tf.reshape(bits[classes:], [ways, longest]), tf.int32.min)
        members = tf.math.top_k(rank, shots + queries).indices
        index = tf.gather(order, tf.gather(first, chosen)[:, tf.newaxis] + members)
        return tf.reshape(index[:, :shots], [-1]), tf.reshape(index[:, shots:], [-1])

    return draw


def _converted(name: str, convert: Callable, value: Any) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, MemoryError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{name} of type {type(value).__name__} does not make an array ({reason}), expected one: "
            "pass an array of numbers, or lists of equal lengths."
        ) from error


def _group_by_class(x: tf.Tensor, y: np.ndarray, ways: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Checks the data; returns the positions of the examples, class after class, and the size of every class."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"y has dtype {y.dtype} and shape {y.shape}, expected one integer per example: "
            "pass class numbers (for one-hot rows, y.argmax(-1))."
        )
    if x.shape.rank == 0 or x.shape[0] != len(y):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y has {len(y)} labels, expected as many examples as labels: "
            "pass arrays whose first axes agree."
        )
    classes, counts = np.unique(y, return_counts=True)
    if ways > len(classes):
        raise ValueError(
            f"ways is {ways} and y holds {len(classes)} classes, expected ways between 2 and the number of classes: "
            "lower ways or add classes."
        )
    if counts.min() < per_class:
        small = np.argmin(counts)
        raise ValueError(
            f"class {classes[small]} has {counts[small]} examples, expected at least shots + queries = {per_class}: "
            "lower shots or queries, or drop the class."
        )
    if x.dtype.is_floating:
        finite = tf.reduce_all(tf.math.is_finite(tf.reshape(x, [len(y), -1])), axis=1).numpy()
        if not finite.all():
            raise ValueError(
                f"x holds NaN or infinity in {np.sum(~finite)} of {len(y)} examples, the first at position "
                f"{np.argmin(finite)}, expected finite values: repair or drop these examples."
            )
    return np.argsort(y, kind="stable"), counts


def _check_transformed(spec: Task, meta_batch: int, support: int, query: int) -> None:
    for x, count in ((spec.support_x, support), (spec.query_x, query)):
        if not x.shape[:2].is_compatible_with([meta_batch, count]):
            raise ValueError(
                f"transform returned shape {tuple(x.shape)}, expected [{meta_batch}, {count}, ...]: "
                "it receives a whole batch and must keep the first two axes."
            )
