"""What is said of solvers that failed or fell short; see `Problem.diagnostics` for the names."""

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
                f"before it are. Lower the inner `learning_rate`, now {inner.learning_rate}, or the meta-optimizer's."
            )
        weight = f" (with weight={inner.weight}, steps below 2 / (weight + H) converge)" if inner.proximal else ""
        raise FloatingPointError(
            f"The inner loop of task {task} diverged{where}: the loss after {int(failed[task])} of {inner.steps} inner "
            f"steps is not finite. Lower the inner `learning_rate`, now {inner.learning_rate}{weight}."
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
