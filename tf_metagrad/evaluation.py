"""Results over many tasks, as the field reports them: mean and 95 % confidence interval."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_metagrad import _diagnostics, _execution, _tree
from tf_metagrad._types import Params, Task
from tf_metagrad.inner import InnerOptimizer


class Evaluation(NamedTuple):
    """Means over tasks, with half-widths of the 95 % confidence intervals, 1.96 s / sqrt(count), by metric name.

    `skipped` tasks diverged and are not among the `count`.
    """

    mean: dict[str, float]
    confidence: dict[str, float]
    count: int
    skipped: int = 0

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
    for index, batch in enumerate(tasks):
        batch = learner.check_tasks(batch)
        losses, predictions, failed = function(batch, seed + index)
        faults = _diagnostics.faults(losses[:, -1], failed, inner, f" in batch {index} of the evaluation")
        _diagnostics.raise_or_log(dict(list(faults.items())[: count - len(rows)]), on_nonfinite)
        metrics_of = learner.compiled_metrics(batch, tf.nest.map_structure(lambda t: t[:, -1], predictions))
        for i in range(losses.shape[0]):
            y_true = tf.nest.map_structure(lambda t: t[i : i + 1], batch.query_y)  # noqa: B023
            one = tf.nest.map_structure(lambda t: t[i], (losses, predictions))  # noqa: B023
            rows.append(None if i in faults else _rows(metrics_of, y_true, *one))
        if len(rows) >= count:
            points = range(losses.shape[1])
            return [summarize([row and row[point] for row in rows[:count]]) for point in points]
    raise ValueError(f"`tasks` must hold at least count={count} tasks. Received: {len(rows)}. Lower `count`.")


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


def summarize(rows: list[dict[str, float] | None]) -> Evaluation:
    """Return the `Evaluation` of one row of metrics for each task; None for a task that was skipped.

    Raises:
        FloatingPointError: all were.
    """
    skipped = rows.count(None)
    rows = [row for row in rows if row is not None]
    if not rows:
        raise FloatingPointError(f"All {skipped} tasks of the evaluation diverged. Lower the inner `learning_rate`.")
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    half = {name: float(1.96 * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0 for name, v in values.items()}
    return Evaluation({name: float(v.mean()) for name, v in values.items()}, half, len(rows), skipped)
