"""Results over many tasks, as the field reports them: mean and 95 % confidence interval."""

import math
import types
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_metagrad import _diagnostics, _execution, _tree
from tf_metagrad._types import Params, Task
from tf_metagrad.inner import InnerOptimizer


class Evaluation(NamedTuple):
    """Means over tasks, with half-widths of the 95 % confidence intervals, 1.96 s / sqrt(count), by metric name.

    One task has no interval: NaN. `skipped` tasks diverged and are not among the `count`. `values` has a number for
    each task, None for those; `fingerprint` is a checksum of the tasks' data.

    >>> a = Evaluation({"accuracy": 0.5}, {"accuracy": 0.1}, 3, values={"accuracy": (0.4, 0.5, 0.6)})
    >>> b = Evaluation({"accuracy": 0.4}, {"accuracy": 0.1}, 3, values={"accuracy": (0.3, 0.4, 0.5)})
    >>> print(a.minus(b))
    accuracy 0.1000 +/- 0.0000 (3 tasks)
    """

    mean: dict[str, float]
    confidence: dict[str, float]
    count: int
    skipped: int = 0
    values: Mapping[str, Sequence[float | None]] = types.MappingProxyType({})
    fingerprint: int | None = None

    def minus(self, other: "Evaluation") -> "Evaluation":
        """Return the mean differences to an evaluation on the same tasks, by metric name, with their intervals.

        Tasks differ more than methods do: of paired differences the intervals are far narrower than of the means. A
        task that either skipped is left out.

        Returns:
            `Evaluation` of self - other: where an interval leaves out 0, the two differ.

        Raises:
            ValueError: the evaluations are of different tasks, share no metric, or `other` is none.
        """
        if not isinstance(other, Evaluation):
            raise ValueError(f"`other` must be an Evaluation, as `evaluate_tasks` returns. Received: {other!r}.")
        names = sorted(self.values.keys() & other.values.keys())
        counts = [{len(e.values[name]) for name in names} for e in (self, other)]
        if not names or counts[0] != counts[1]:
            raise ValueError(
                "Only evaluations with the same metrics on the same tasks have paired differences. Received: "
                f"{sorted(self.values)} of {self.count + self.skipped} tasks and {sorted(other.values)} of "
                f"{other.count + other.skipped}. Evaluate both with the same `tasks` and `count`."
            )
        if None not in (prints := {self.fingerprint, other.fingerprint}) and len(prints) > 1:
            raise ValueError(
                "Paired differences need the same tasks, and these evaluations saw different ones. Give both the same "
                "data with the same seed, and a new stream each: an iterator goes on where the first ended."
            )
        pairs = {name: zip(self.values[name], other.values[name], strict=True) for name in names}
        found = {name: [None if None in pair else pair[0] - pair[1] for pair in p] for name, p in pairs.items()}
        if not any(x is not None for x in found[names[0]]):
            raise ValueError("No task is left to compare: each was skipped by one of the two evaluations.")
        return _summarize(found)

    def summary(self) -> dict[str, Any]:
        """Return mean, confidence, count and skipped, without what belongs to single tasks."""
        return {name: self._asdict()[name] for name in ("mean", "confidence", "count", "skipped")}

    def __repr__(self) -> str:
        """Leave out the values."""
        return f"Evaluation({', '.join(f'{name}={value!r}' for name, value in self.summary().items())})"

    def __str__(self) -> str:
        """Return e.g. `accuracy 0.953 +/- 0.006, loss 0.141 +/- 0.018 (600 tasks)`."""
        parts = [f"{name} {self.mean[name]:.4f} +/- {self.confidence[name]:.4f}" for name in sorted(self.mean)]
        skipped = f", {self.skipped} that diverged left out" if self.skipped else ""
        return f"{', '.join(parts)} ({self.count} tasks{skipped})"


def judge(
    learner: Any,
    tasks: Iterable[Task],
    count: int,
    inner: InnerOptimizer,
    seed: int,
    on_nonfinite: str,
    every_step: bool,
) -> list[Evaluation]:
    """Return the `Evaluation` after the last inner step or, with `every_step`, after each of 0 .. K steps.

    `MetaLearner.evaluate_tasks` and `MetaLearner.adaptation_curve` explain the arguments.
    """

    def body(problem):
        path = problem.adapt(keep=problem.steps if every_step else 0)
        if every_step:
            points = _tree.append(path.iterates, path.end), _tree.append(path.states, path.state)
            results = _execution.map_over(lambda point: _judged(problem, *point), points, "map")
        else:
            results = tf.nest.map_structure(lambda t: t[None], _judged(problem, path.end, path.state))
        if problem.stacked:  # the axis of tasks comes first
            results = tf.nest.map_structure(lambda t: tf.experimental.numpy.swapaxes(t, 0, 1), results)
        return [], (*results, path.failed_step)

    kind = "curve" if every_step else "evaluate"
    function = learner.compiled_function(kind, inner, lambda t, s: learner.use(body, t, s, inner=inner)[1])
    rows: list[list[dict[str, float]] | None] = []
    fingerprint = 0
    for index, batch in enumerate(tasks):
        batch = learner.check_tasks(batch)
        losses, predictions, failed = function(batch, seed + index)
        faults = _diagnostics.faults(losses[:, -1], failed, inner, f" in batch {index} of the evaluation")
        _diagnostics.raise_or_log(dict(list(faults.items())[: count - len(rows)]), on_nonfinite)
        metrics_of = learner.compiled_metrics(batch, tf.nest.map_structure(lambda t: t[:, -1], predictions))
        fingerprint = _fingerprint(fingerprint, batch, count - len(rows))
        for i in range(losses.shape[0]):
            y_true = tf.nest.map_structure(lambda t: t[i : i + 1], batch.query_y)  # noqa: B023
            one = tf.nest.map_structure(lambda t: t[i], (losses, predictions))  # noqa: B023
            rows.append(None if i in faults else _rows(metrics_of, y_true, *one))
        if len(rows) >= count:
            points = range(losses.shape[1])
            found = [_evaluation([row and row[point] for row in rows[:count]]) for point in points]
            return [point._replace(fingerprint=fingerprint) for point in found]
    raise ValueError(f"`tasks` must hold at least count={count} tasks. Received: {len(rows)}. Lower `count`.")


def _fingerprint(so_far: int, batch: Task, count: int) -> int:
    """Return the checksum with the first `count` tasks of the batch: of a support and a query example of each."""
    for part in tf.nest.flatten(batch):
        so_far = zlib.crc32(part[:count, -1:].numpy().tobytes(), so_far)
    return so_far


def _judged(problem: Any, phi: Params, state: Params) -> tuple[tf.Tensor, Any]:
    query = problem.query_loss(phi, state, training=False)
    return query.loss, query.predictions


def _rows(metrics_of: Callable, y_true: Any, losses: tf.Tensor, predictions: Any) -> list[dict[str, float]]:
    """Return loss and metrics of one task at each point of its curve; these are the first axis of the last two."""
    rows = []
    for point, loss in enumerate(losses.numpy()):
        y_pred = tf.nest.map_structure(lambda t: t[point : point + 1], predictions)  # noqa: B023
        metrics = metrics_of(y_true, y_pred)
        rows.append({"loss": float(loss), **{name: float(value) for name, value in metrics.items()}})
    return rows


def _evaluation(rows: list[dict[str, float] | None]) -> Evaluation:
    """Return the `Evaluation` of one row of metrics for each task; None for a task that was skipped.

    Raises:
        FloatingPointError: all were.
    """
    first = next((row for row in rows if row is not None), None)
    if first is None:
        raise FloatingPointError(f"All {len(rows)} tasks of the evaluation diverged. Lower the inner `learning_rate`.")
    return _summarize({name: [row and row[name] for row in rows] for name in first})


def _summarize(values: dict[str, list[float | None]]) -> Evaluation:
    """Return the `Evaluation` of each metric's numbers; None for a task that was skipped."""
    kept = {name: np.array([x for x in v if x is not None]) for name, v in values.items()}
    half = {name: float(1.96 * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else math.nan for name, v in kept.items()}
    count, tasks = (len(next(iter(v.values()))) for v in (kept, values))
    mean = {name: float(v.mean()) for name, v in kept.items()}
    return Evaluation(mean, half, count, tasks - count, {name: tuple(v) for name, v in values.items()})
