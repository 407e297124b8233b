"""What is said of solvers that failed or fell short; see `Problem.diagnostics` for the names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_metagrad.inner import InnerOptimizer


def check_finite_path(diagnostics: dict[str, Any], inner: InnerOptimizer, where: str) -> None:
    """Raise `FloatingPointError` where a task's loss was not finite on the way or at its end."""
    failed = np.atleast_1d(np.asarray(diagnostics["inner_failed_step"]))
    if (failed >= 0).any():
        task = int(np.argmax(failed >= 0))
        if failed[task] == inner.steps:
            raise FloatingPointError(
                f"The query loss of task {task} is not finite{where}, though the {inner.steps} support losses "
                f"before it are. {_advice(inner)} Or lower the meta-optimizer's."
            )
        raise FloatingPointError(
            f"The inner loop of task {task} diverged{where}: the loss after {int(failed[task])} of {inner.steps} inner "
            f"steps is not finite. {_advice(inner)}"
        )


def check_finite_weights(values: Sequence[Any], inner: InnerOptimizer) -> None:
    """Raise `FloatingPointError` where the last step of a task's inner loop led to weights that are not finite."""
    rows = [np.reshape(v, [len(v), -1]) for v in values]
    failed = ~np.all([np.isfinite(row).all(axis=1) for row in rows], axis=0)
    if failed.any():
        raise FloatingPointError(
            f"The inner loop of task {int(np.argmax(failed))} diverged: after the last of {inner.steps} inner steps the "
            f"adapted weights are not finite. {_advice(inner)}"
        )


def shortfalls(diagnostics: dict[str, Any], inner: InnerOptimizer, estimator: Any) -> list[str]:
    """Return a sentence for each solver that did not reach its tolerance on some task."""
    found = []
    if "solver_residual" in diagnostics:
        residual = np.atleast_1d(np.asarray(diagnostics["solver_residual"]))
        short = ~(residual <= estimator.tolerance)
        if short.any():
            found.append(
                f"The linear solver of {estimator} did not converge on {short.sum()} of {short.size} tasks: relative "
                f"residual up to {residual.max():.2g} after {estimator.iterations} iterations at most. Raise its "
                "`iterations` or `tolerance`, or the `weight` of the inner optimiser."
            )
    if "inner_residual" in diagnostics:
        residual = np.atleast_1d(np.asarray(diagnostics["inner_residual"]))
        short = ~(residual <= inner.tolerance)
        if short.any():
            found.append(
                f"The inner loop did not reach tolerance={inner.tolerance} on {short.sum()} of {short.size} tasks: "
                f"gradient norm up to {residual.max():.2g} after {inner.steps} steps. Raise `steps` or `tolerance`."
            )
    return found


def _advice(inner: InnerOptimizer) -> str:
    """Return what to do about a loop that diverged; learned hyperparameters are no longer what `inner` holds."""
    rate, weight = f"now {inner.learning_rate}", ""
    if inner.learn is not None and not inner.proximal:
        rate = f"{inner.learning_rate} before it was learned"
    if inner.proximal:
        learned = " before it was learned" if inner.learn else ""
        weight = f" (with weight={inner.weight}{learned}, steps below 2 / (weight + H) converge)"
    return f"Lower the inner `learning_rate`, {rate}{weight}."
