"""Which meta-gradient estimator for this model and these tasks: accuracy, time, memory and cost, side by side."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_metagrad import _measure, _memory, bounds
from tf_metagrad import estimators as catalogue
from tf_metagrad._checks import as_batches
from tf_metagrad._table import Comparison, Row
from tf_metagrad._types import Task
from tf_metagrad.estimators import (
    ESMAML,
    FOBMAML,
    FOMAML,
    MAML,
    BinomMAML,
    BinomTruncMAML,
    Estimator,
    Reptile,
    TruncMAML,
)
from tf_metagrad.inner import GradientDescent
from tf_metagrad.inner._base import check_count
from tf_metagrad.learner import MetaLearner


def compare_estimators(
    learner: MetaLearner,
    tasks: Iterable[Task] | Task,
    estimators: Sequence[Estimator] | None = None,
    reference: Estimator | None = None,
    *,
    batches: int = 8,
    repeats: int = 10,
    seed: int = 0,
    alpha_H: float | None = None,  # the paper's letters
) -> Comparison:
    """Measure estimators on the learner's model, as its weights are now, and the tasks at hand; nothing is changed.

    Most of the time goes into compiling the step of each estimator once.

    Args:
        learner: its own estimator plays no part; it need not be compiled.
        tasks: batches of tasks, of which the first `batches` are used, or one batch.
        estimators: None takes those of the library that fit the inner optimiser, at orders worth a look.
        reference: what counts as exact; None is `MAML()`. It gets a row of its own.
        batches: at most so many batches; with several, the bias can be held against the noise of a batch.
        repeats: timed steps of each estimator, which take turns, because a machine is never equally fast.
        seed: batch b has the seed `seed + b` for every estimator.
        alpha_H: the inner step size times the Lipschitz constant of the support loss's gradient, which gives the
            column `bound`; None measures it on the first batch, see `mg.estimate_smoothness`. It counts for plain
            gradient descent with a fixed step size.

    Returns:
        `Comparison`.

    Raises:
        ValueError: an estimator that the learner cannot use, bad or no tasks, numbers below 1.
        FloatingPointError: the reference is not finite.

    Example:
        >>> from tf_metagrad import data, inner, models
        >>> learner = MetaLearner(models.mlp(hidden=(8,)), "mse", inner.GradientDescent(steps=2, learning_rate=0.01))
        >>> tasks = data.sinusoid(meta_batch=4, shots=5)
        >>> comparison = compare_estimators(learner, tasks, [MAML(), FOMAML()], batches=2, repeats=1)
        >>> comparison.rows[0].error, comparison.rows[1].hvps
        (0.0, 0)
    """
    drawn = _batches(learner, tasks, batches)
    check_count("repeats", repeats)
    reference = reference or MAML()
    chosen = default_estimators(learner) if estimators is None else list(estimators)
    if not chosen:
        raise ValueError("`estimators` must hold at least one estimator, or be None. Received: none.")
    chosen = list(dict.fromkeys(chosen if reference in chosen else [reference, *chosen]))
    for estimator in chosen:
        learner.check_estimator(estimator)
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    steps = {estimator: _measure.make_step(learner, estimator) for estimator in chosen}
    first = _measure.first_seconds(steps, drawn[0], seed)
    accuracies = _measure.accuracies(steps, reference, drawn, seed)
    seconds = _measure.median_seconds(steps, drawn, repeats, seed)
    peaks = _measure.peaks_mib(steps, drawn[0], seed, device)
    count, bound = learner.inner.steps, _bounds(learner, drawn[0], alpha_H)
    rows = [Row(e, *accuracies[e], seconds[e], first[e], peaks[e], e.hvps(count), bound(e)) for e in chosen]
    tasks_run = tf.nest.flatten(drawn[0])[0].shape[0]
    execution = f"{learner.execution.tasks}{', XLA' if learner.execution.jit_compile else ''}"
    source = _memory.source(device)
    return Comparison(tuple(rows), reference, count, len(drawn), tasks_run, device[:3], execution, source)


def default_estimators(learner: MetaLearner) -> list[Estimator]:
    """Return the library's estimators that fit the learner's inner optimiser, at orders worth a look."""
    half = max(1, learner.inner.steps // 2)
    orders = [MAML(), FOMAML(), Reptile(), TruncMAML(half), BinomMAML(1), BinomMAML(2)]
    known = {Estimator, BinomTruncMAML, ESMAML, *(type(estimator) for estimator in orders)}
    kinds = [getattr(catalogue, name) for name in catalogue.__all__]
    orders += [FOBMAML("tangent"), *(kind() for kind in kinds if isinstance(kind, type) and kind not in known)]
    return [estimator for estimator in dict.fromkeys(orders) if _fits(estimator, learner)]


def _fits(estimator: Estimator, learner: MetaLearner) -> bool:
    try:
        learner.check_estimator(estimator)
    except ValueError:
        return False
    return True


def _batches(learner: MetaLearner, tasks: Any, count: int) -> list[Task]:
    check_count("batches", count)
    drawn = [learner.check_tasks(batch) for batch in itertools.islice(as_batches(tasks), count)]
    if not drawn:
        raise ValueError("`tasks` must hold at least one batch of tasks. Received: none.")
    return drawn


def _bounds(learner: MetaLearner, batch: Task, alpha_H: float | None) -> Callable[[Estimator], float | None]:
    """Return the bound of an estimator's error over |g^K| by Theorem 3.6; None where the theorem says nothing."""
    steps = learner.inner.steps
    if type(learner.inner) is not GradientDescent or learner.inner.learn is not None:
        return lambda estimator: None
    if alpha_H is None:
        alpha_H = bounds.estimate_smoothness(learner, batch).alpha_H
    names = {FOMAML: "fomaml", TruncMAML: "trunc", BinomMAML: "binom", BinomTruncMAML: "binom_trunc"}

    def bound(estimator: Estimator) -> float | None:
        kind = type(estimator)
        if kind is MAML:
            return None if estimator.step_weights else 0.0
        if kind not in names or getattr(estimator, "rescale", False):
            return None
        order, horizon = getattr(estimator, "truncation", 0), getattr(estimator, "horizon", None)
        return getattr(bounds.smooth(steps, alpha_H, order, horizon), names[kind])

    return bound
