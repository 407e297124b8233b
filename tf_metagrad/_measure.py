"""Estimates, times and memory of several estimators on the same batches of tasks."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad import _diagnostics, _memory
from tf_metagrad._types import Task
from tf_metagrad.estimators import Estimator
from tf_metagrad.learner import MetaLearner

Step = Callable[[Task, int], list[tf.Tensor]]
_MEMORY_REPEATS = 3


class Running:
    """Mean and spread of vectors that come one after the other; it holds one vector (Welford, 1962)."""

    def __init__(self):
        """Begin with nothing."""
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, vector: np.ndarray) -> None:
        """Take one vector more."""
        self.count += 1
        difference = vector - self.mean
        self.mean = self.mean + difference / self.count
        self._squares += float(np.vdot(difference, vector - self.mean))

    @property
    def deviation(self) -> float | None:
        """Standard deviation, the root of the mean squared distance from the mean; None for a single vector."""
        return float(np.sqrt(self._squares / (self.count - 1))) if self.count > 1 else None


class Accuracy(NamedTuple):
    """How an estimate differs from the reference over batches; the figures that `comparison.Row` explains."""

    error: float
    cosine: float
    batch_error: float
    bias: float
    noise: float | None
    bias_to_noise: float | None


def make_step(learner: MetaLearner, estimator: Estimator) -> Step:
    """Return the compiled meta-gradient as `step(batch, seed) -> gradients`; it ends when these are known.

    The first step says in the log where a solver did not reach its tolerance.
    """
    said: list[str] = []
    function = learner.compiled_function(
        "comparison", (estimator, learner.inner), lambda t, s: learner.estimate(t, s, estimator)
    )

    def step(batch: Task, seed: int) -> list[tf.Tensor]:
        gradients, _, _, diagnostics, _ = function(batch, tf.constant(seed, tf.int64))
        gradients[-1].numpy()  # a GPU may still be at work
        if not said:
            said.extend(_diagnostics.shortfalls(diagnostics, learner.inner, estimator) or ["nothing"])
            if said != ["nothing"]:
                logging.warning("Comparison, %s: %s", estimator, " ".join(said))
        return gradients

    return step


def _vector(gradients: Sequence[tf.Tensor]) -> np.ndarray:
    return np.concatenate([np.ravel(g.numpy()).astype(np.float64) for g in gradients])


def first_seconds(steps: dict[Estimator, Step], batch: Task, seed: int) -> dict[Estimator, float]:
    """Return the time of each estimator's first step, tracing and compilation included."""
    times = {}
    for estimator, step in steps.items():
        start = time.perf_counter()
        step(batch, seed)
        times[estimator] = time.perf_counter() - start
    return times


def accuracies(
    steps: dict[Estimator, Step], reference: Estimator, batches: Sequence[Task], seed: int
) -> dict[Estimator, Accuracy]:
    """Return how each estimator differs from the reference.

    Batch b has the seed `seed + b` for all of them. One vector for each estimator is held, whatever the batches.

    Raises:
        FloatingPointError: the reference is not finite.
    """
    runs = {estimator: Running() for estimator in steps}
    errors = {estimator: [] for estimator in steps}
    for index, batch in enumerate(batches):
        exact = None
        for estimator in sorted(steps, key=lambda e: e != reference):  # the reference comes first
            vector = _vector(steps[estimator](batch, seed + index))
            exact = vector if exact is None else exact
            if not np.isfinite(exact).all():
                raise FloatingPointError(
                    f"The reference {reference} is not finite on batch {index}. Lower the inner learning rate."
                )
            runs[estimator].add(vector)
            errors[estimator].append(_ratio(_norm(vector - exact), _norm(exact)))
    target = runs[reference]
    return {e: _accuracy(run, float(np.mean(errors[e])), target) for e, run in runs.items()}


def _accuracy(run: Running, batch_error: float, target: Running) -> Accuracy:
    bias, scale, noise = _norm(run.mean - target.mean), _norm(target.mean), target.deviation
    lengths = _norm(run.mean) * scale
    return Accuracy(
        error=_ratio(bias, scale),
        cosine=float(np.vdot(run.mean, target.mean)) / lengths if lengths else float("nan"),
        batch_error=batch_error,
        bias=bias,
        noise=run.deviation,
        bias_to_noise=None if noise is None else _ratio(bias, noise),
    )


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def _ratio(value: float, scale: float) -> float:
    """Return value / scale; 0 / 0 is 0 for what is no error, and anything else over 0 is not a number."""
    return value / scale if scale else 0.0 if value == 0 else float("nan")


def median_seconds(
    steps: dict[Estimator, Step], batches: Sequence[Task], repeats: int, seed: int
) -> dict[Estimator, float]:
    """Return the median time of a step that was run before; in every round each estimator has one turn."""
    times: dict[Estimator, list[float]] = {estimator: [] for estimator in steps}
    for index in range(repeats):
        for estimator, step in steps.items():
            start = time.perf_counter()
            step(batches[index % len(batches)], seed + index)
            times[estimator].append(time.perf_counter() - start)
    return {estimator: statistics.median(values) for estimator, values in times.items()}


def peaks_mib(steps: dict[Estimator, Step], batch: Task, seed: int, device: str) -> dict[Estimator, float | None]:
    """Return the peak memory of a step on one batch, see `_memory`."""
    return {
        estimator: _memory.peak_mib(lambda step=step: step(batch, seed), device, _MEMORY_REPEATS)
        for estimator, step in steps.items()
    }
