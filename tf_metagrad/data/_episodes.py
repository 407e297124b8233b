"""Few-shot episodes of labelled examples, as a `tf.data` pipeline that any machine reproduces.

Episode number i of a stream is a pure function of (seed, i). The pipeline counts episodes, turns each number into
random bits with a stateless generator (Philox, named explicitly, so that no device picks another), and only then
touches the data. Nothing is remembered from one episode to the next, so a stream can begin anywhere at no cost.
"""

import operator
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_metagrad._types import Task

PHILOX = 1  # as TensorFlow numbers its generators
GROUP = 32  # episodes drawn in one call; each call of its own would cost more than a small draw

_MINIMUM = {
    "ways": (2, "a classification task tells at least two classes apart"),
    "shots": (1, "adaptation needs at least one support example"),
    "queries": (1, "the meta-loss needs at least one query example"),
    "meta_batch": (1, "a batch holds at least one task"),
    "start": (0, "it counts the batches to skip from the beginning of the stream"),
    "seed": (0, "any whole number from 0 to 2**63 - 1 names a stream"),
    "split_seed": (0, "it names an order of the classes"),
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


def check_shape(size: tuple[int, int], channels: int = 3) -> None:
    """Raises ValueError unless `size` is a height and a width in pixels, and `channels` is 1 or 3."""
    try:
        height, width = map(operator.index, size)
        valid = 0 < height <= 10_000 and 0 < width <= 10_000
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"size is {str(size)[:80]}, expected height and width in pixels, from 1 to 10000: pass (84, 84), say."
        )
    if channels not in (1, 3):
        raise ValueError(f"channels is {str(channels)[:80]}, expected 3 for colours or 1 for grey: choose one.")


def random_integers(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns all of int32, uniformly: `tf.random.stateless_uniform(..., alg="philox")`, in fewer operations."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[count], key=key, counter=counter, alg=PHILOX, dtype=tf.int32
    )


def random_uniform(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns float32 in [0, 1), uniformly; see `random_integers`."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    return tf.raw_ops.StatelessRandomUniformV2(shape=[count], key=key, counter=counter, alg=PHILOX)


def stream(
    draw: Callable[[tf.Tensor], tf.Tensor],
    assemble: Callable[..., Task],
    *,
    meta_batch: int,
    seed: int,
    start: int,
    load: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Counts episodes, draws each from its own key, and assembles batches of them, without end.

    Args:
        draw: maps a stateless seed `[seed, episode]` of shape [2] to the random part of one episode.
        assemble: maps `meta_batch` such draws, stacked along a new leading axis, to a batch of tasks.
        meta_batch: tasks in a batch.
        seed: names the stream.
        start: number of the first batch.
        load: replaces each number of a draw, which is then a vector, one by one and many at a time.

    Returns:
        An infinite dataset of what `assemble` returns.
    """
    if (start + 1) * meta_batch >= 2**62:
        raise ValueError(
            f"start is {start} with meta_batch {meta_batch}, expected fewer than 2**62 tasks before the first batch: "
            "lower start."
        )

    group = max(size for size in range(1, GROUP + 1) if meta_batch % size == 0)

    def episodes(number: tf.Tensor) -> tf.Tensor:
        numbers = number * group + tf.range(group, dtype=tf.int64)
        keys = tf.stack([tf.fill([group], tf.constant(seed, tf.int64)), numbers], axis=1)
        return tf.stack([draw(key) for key in tf.unstack(keys)])

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    numbers = tf.data.Dataset.counter(start * meta_batch // group)
    if load is None and group == meta_batch:  # one call for a batch
        return numbers.map(lambda number: assemble(episodes(number)), **parallel).prefetch(tf.data.AUTOTUNE)
    draws = numbers.map(episodes, **parallel)
    if load is None:
        draws = draws.rebatch(meta_batch, drop_remainder=True)
    else:
        count = draws.element_spec.shape[1]
        draws = draws.unbatch().unbatch().map(load, **parallel).batch(count, drop_remainder=True)
        draws = draws.batch(meta_batch, drop_remainder=True)
    return draws.map(assemble, **parallel).prefetch(tf.data.AUTOTUNE)


def from_source(
    fetch: Callable[[tf.Tensor], tf.Tensor],
    labels: np.ndarray,
    *,
    ways: int,
    shots: int,
    queries: int,
    meta_batch: int,
    seed: int,
    start: int,
    positions: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    transform: Callable[[tf.Tensor], tf.Tensor] | None = None,
    load: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Few-shot tasks from labelled examples, wherever they are: only the drawn ones are fetched.

    Args:
        fetch: maps positions, int32 [meta_batch, count], to examples [meta_batch, count, ...], within the pipeline;
            with `load` it gets examples already.
        labels: integer class of each example that may be drawn, shape [examples].
        ways: as for `from_arrays`, like the five after it.
        shots: support examples per class.
        queries: query examples per class.
        meta_batch: tasks in a batch.
        seed: names the stream.
        start: number of the first batch.
        positions: what `fetch` knows these examples by, shape [examples]; None for 0, 1, 2 and so on.
        names: what messages call class number i, in place of the number.
        transform: as for `from_arrays`.
        load: maps one position to one example, in place of `fetch`: for examples that take work of their own.

    Returns:
        The dataset that `from_arrays` describes.

    Raises:
        ValueError: too few classes, a class of too few examples, or a transform that loses an axis.
    """
    order, counts = _group_by_class(labels, ways, shots + queries, names)
    convert, local = transform or _to_float, [tf.repeat(tf.range(ways), count) for count in (shots, queries)]
    with tf.device("CPU:0"):
        draw = _index_sampler(order if positions is None else positions[order], counts, ways, shots, queries)

    def assemble(drawn: tf.Tensor) -> Task:
        x_and_y = []
        for part, label in zip(tf.split(drawn, [ways * shots, ways * queries], axis=1), local, strict=True):
            x_and_y += [convert(fetch(part)), tf.tile(label[tf.newaxis], [meta_batch, 1])]
        return Task(*x_and_y)

    tasks = stream(draw, assemble, meta_batch=meta_batch, seed=seed, start=start, load=load)
    _check_transformed(tasks.element_spec, meta_batch, ways * shots, ways * queries)
    return tasks


def _to_float(x: tf.Tensor) -> tf.Tensor:
    if x.dtype == tf.uint8:
        return tf.cast(x, tf.float32) / 255.0
    return tf.cast(x, tf.float32) if x.dtype.is_floating else x


def _index_sampler(order: np.ndarray, counts: np.ndarray, ways: int, shots: int, queries: int) -> Callable:
    """Returns the function from an episode's key to the positions of its support examples and then of the others.

    One random integer per class and one per example of the chosen classes: the largest `ways`, then the largest
    `shots + queries` of each row, are random ordered subsets. Short classes are padded with the smallest integer,
    which is never among the largest as they hold `shots + queries` examples or more. The time of a draw grows with
    the classes and with `ways` times the largest class: some 0.1 ms up to a thousand, 5 ms at a hundred thousand.
    """
    classes, longest = len(counts), int(counts.max())
    order, counts, first = (tf.constant(a, tf.int32) for a in (order, counts, np.cumsum(counts) - counts))

    def draw(key: tf.Tensor) -> tf.Tensor:
        bits = random_integers(classes + ways * longest, key)
        chosen = tf.math.top_k(bits[:classes], ways).indices
        exists = tf.range(longest) < tf.gather(counts, chosen)[:, tf.newaxis]
        rank = tf.where(exists, tf.reshape(bits[classes:], [ways, longest]), tf.int32.min)
        members = tf.math.top_k(rank, shots + queries).indices
        index = tf.gather(order, tf.gather(first, chosen)[:, tf.newaxis] + members)
        return tf.concat([tf.reshape(part, [-1]) for part in tf.split(index, [shots, queries], axis=1)], axis=0)

    return draw


def _group_by_class(
    y: np.ndarray, ways: int, per_class: int, names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks the classes; returns the positions of the examples, class after class, and the size of every class."""
    classes, counts = np.unique(y, return_counts=True)
    if ways > len(classes):
        raise ValueError(
            f"ways is {ways} and there are {len(classes)} classes to draw from, expected ways between 2 and the number "
            "of classes: lower ways or add classes."
        )
    if counts.min() < per_class:
        small = np.argmin(counts)
        shown = classes[small] if names is None else repr(names[classes[small]])
        raise ValueError(
            f"class {shown} has {counts[small]} examples, expected at least shots + queries = {per_class}: "
            "lower shots or queries, or drop the class."
        )
    return np.argsort(y, kind="stable"), counts


def _check_transformed(spec: Task, meta_batch: int, support: int, query: int) -> None:
    for x, count in ((spec.support_x, support), (spec.query_x, query)):
        if not x.shape[:2].is_compatible_with([meta_batch, count]):
            raise ValueError(
                f"transform returned shape {tuple(x.shape)}, expected [{meta_batch}, {count}, ...]: "
                "it receives a whole batch and must keep the first two axes."
            )
