"""What is said of solvers that failed or fell short; see `Problem.diagnostics` for the names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from tf_metagrad.inner import InnerOptimizer


def check_finite_path(end: Any, failed_step: Any, inner: InnerOptimizer, where: str, estimator: Any = None) -> None:
    """Raise `FloatingPointError` where a task's inner loop diverged; see `faults`."""
    raise_or_log(faults(end, failed_step, inner, where, estimator), "raise")


def faults(
    end: Any, failed_step: Any, inner: InnerOptimizer, where: str, estimator: Any = None
) -> dict[int, str]:  # fmt: skip
    """Return a sentence for each task, by its number, whose inner loop diverged.

    Args:
        end: `[tasks]`, a number that is finite where the loop ended well: the query loss, or the norm of the gradient.
        failed_step: `[tasks]`, see `Problem.diagnostics`.
        inner: the inner optimiser.
        where: words for the message.
        estimator: the estimator that ran the loop, if any; where it moves the inner problem that may be the cause.
    """
    failed, lost = np.asarray(failed_step), ~np.isfinite(end)
    found = {}
    for task in np.flatnonzero(lost | (failed >= 0)).tolist():
        what, more = f"the loss after {failed[task]} of {inner.steps} inner steps is", _moved(estimator)
        if failed[task] == inner.steps:
            what = f"the weights after all {inner.steps} inner steps are"
        elif failed[task] < 0:
            what, more = f"the loss after all {inner.steps} inner steps is", " Or lower the meta-optimizer's."
        found[task] = f"The inner loop of task {task} diverged{where}: {what} not finite. {_advice(inner)}{more}"
        if failed[task] == 0:
            found[task] = (
                f"The loss of task {task} is not finite{where} before the first inner step. Look at its data; "
                "or, if the initialisation is at fault, lower the meta-optimizer's learning rate or clip its gradients."
            )
    return found


def raise_or_log(found: dict[int, str], on_nonfinite: str) -> None:
    """Raise `FloatingPointError` for the first of the faults, or log each of a task to `"skip"`."""
    for fault in found.values():
        if on_nonfinite == "raise":
            more = f" (Tasks {', '.join(map(str, found))} alike.)" if len(found) > 1 else ""
            raise FloatingPointError(fault + more)
        logging.warning("Skipped: %s", fault)


def gradient_fault(task: int, inner: InnerOptimizer, where: str) -> str:
    """Return the sentence for a task whose loss is finite and whose gradient is not."""
    return f"The meta-gradient of task {task} is not finite{where}, though its loss is. {_advice(inner)}"


def shortfalls(diagnostics: dict[str, Any], inner: InnerOptimizer, estimator: Any) -> list[str]:
    """Return a sentence for each solver that did not reach its tolerance on some task."""
    found = []
    if "solver_residual" in diagnostics:
        residual, short = _short(diagnostics["solver_residual"], estimator.tolerance)
        if short.any():
            found.append(
                f"The linear solver of {estimator} did not converge on {short.sum()} of {short.size} tasks: relative "
                f"residual up to {residual.max():.2g} after {estimator.iterations} iterations at most. Raise its "
                "`iterations` or `tolerance`, or the `weight` of the inner optimiser."
            )
    if "inner_residual" in diagnostics:
        residual, short = _short(diagnostics["inner_residual"], inner.tolerance)
        if short.any():
            found.append(
                f"The inner loop did not reach tolerance={inner.tolerance} on {short.sum()} of {short.size} tasks: "
                f"gradient norm up to {residual.max():.2g} after {inner.steps} steps. Raise `steps` or `tolerance`."
            )
    return found


def _short(residual: Any, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the residuals, and which are above the tolerance or not a number."""
    residual = np.asarray(residual)
    return residual, ~(residual <= tolerance)


def check_learned_weight(inner: InnerOptimizer, hyperparameters: Sequence[Any]) -> None:
    """Raise `FloatingPointError` where lambda was learned to a size at which no inner loop converges."""
    if inner.learn == "weight":
        weight = float(inner.weight_of(hyperparameters, "float64"))
        if not inner.learning_rate * weight < 2:
            raise FloatingPointError(
                f"The proximal weight was learned to {weight:.3g}; times the inner `learning_rate`, "
                f"{inner.learning_rate}, it must stay below 2, or every loop diverges. Lower either learning rate."
            )


def _moved(estimator: Any) -> str:
    """Return what else to lower where the estimator moves the inner problem or its start."""
    if getattr(estimator, "scheme", "tangent") != "tangent":
        return " Or lower the `perturbation`, which adds the query loss to the inner objective."
    return " Or lower `sigma`, by which the initialisation is moved." if hasattr(estimator, "sigma") else ""


def _advice(inner: InnerOptimizer) -> str:
    """Return what to do about a loop that diverged; learned hyperparameters are no longer what `inner` holds."""
    rate, weight = f"now {inner.learning_rate}", ""
    if inner.learn is not None and not inner.proximal:
        rate = f"{inner.learning_rate} before it was learned"
    if inner.proximal:
        learned = " before it was learned" if inner.learn else ""
        weight = f" (with weight={inner.weight}{learned}, steps below 2 / (weight + H) converge)"
    return f"Lower the inner `learning_rate`, {rate}{weight}."
