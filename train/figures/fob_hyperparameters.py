"""Figures 4 and 5 of FO-B-MAML: what nu and lambda do, on quadratic tasks in float64.

Figure 4: error of the symmetric estimate against nu for several numbers K of inner steps, and beside it with the error
of the inner solution put in by hand (`delta`), because a plain inner loop errs alike at nu and -nu, and that cancels.
Figure 5: mean |phi* - theta| and the largest condition number of A_i + lambda I against lambda.
"""

from typing import Any

import numpy as np

import tf_metagrad as mg
from figures.precision import float64
from figures.quadratic import Quadratics, draw_quadratics, make_learner

_SIZE = {
    "tasks": 10, "size": 20, "eigenvalues": [2.0, 50.0], "weight": 2.0, "seed": 0, "inner_steps": [5, 10, 20, 50, 100],
    "weights": [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], "deltas": [0.0, 1e-4, 1e-3, 1e-2],
}  # fmt: skip
_NUS = {"small": np.logspace(-5, -0.1, 12), "paper": np.logspace(-6, -0.1, 40)}
SIZES = {size: _SIZE | {"nus": [float(f"{nu:.3g}") for nu in nus]} for size, nus in _NUS.items()}


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def by_steps(settings: dict[str, Any], problem: Quadratics, exact: np.ndarray) -> list[dict[str, Any]]:
    """Return the error of the library's estimate for each K and nu."""
    rows, weight = [], settings["weight"]
    for steps in settings["inner_steps"]:
        inner = mg.inner.ProximalGradientDescent(steps, 1 / (2 * settings["eigenvalues"][1] + weight), weight)
        learner = make_learner(settings["size"], inner, mg.estimators.FOBMAML())
        for nu in settings["nus"]:
            learner.estimator = mg.estimators.FOBMAML("symmetric", nu)
            found = np.ravel(learner.meta_gradient(problem.tasks()).gradients[0])
            rows.append({"figure": 4, "K": steps, "x": nu, "error": _error(found, exact)})
        print(f"K = {steps}: done", flush=True)
    return rows


def by_delta(settings: dict[str, Any], problem: Quadratics, exact: np.ndarray) -> list[dict[str, Any]]:
    """Return the error where each perturbed solution is off by a random vector of length delta."""
    rows, weight, rng = [], settings["weight"], np.random.default_rng(settings["seed"])
    for delta in settings["deltas"]:
        for nu in settings["nus"]:
            ends = []
            for sign in (1, -1):
                scaled = Quadratics((1 + sign * nu) * problem.A, (1 + sign * nu) * problem.b, problem.x, problem.y)
                noise = rng.normal(size=problem.b.shape)
                noise *= delta / np.linalg.norm(noise, axis=-1, keepdims=True)
                ends.append(scaled.solutions(np.zeros(settings["size"]), weight) + noise)
            found = (-weight * (ends[0] - ends[1]) / (2 * nu)).mean(0)
            rows.append({"figure": 4, "delta": delta, "x": nu, "error": _error(found, exact)})
    return rows


def by_weight(settings: dict[str, Any], problem: Quadratics) -> list[dict[str, Any]]:
    """Return the distance of adaptation and the condition number for each lambda."""
    rows, eye = [], np.eye(settings["size"])
    for weight in settings["weights"]:
        away = problem.solutions(np.zeros(settings["size"]), weight)
        rows.append(
            {
                "figure": 5, "x": weight, "distance": float(np.linalg.norm(away, axis=-1).mean()),
                "condition": float(np.linalg.cond(problem.A + weight * eye).max()),
            }
        )  # fmt: skip
    return rows


def measure(settings: dict[str, Any], place: Any) -> list[dict[str, Any]]:
    """Return the rows of both figures."""
    problem = draw_quadratics(*(settings[k] for k in ("tasks", "size", "eigenvalues", "seed")))
    exact = problem.meta_gradient(np.zeros(settings["size"]), settings["weight"])
    with float64():
        rows = by_steps(settings, problem, exact)
    return rows + by_delta(settings, problem, exact) + by_weight(settings, problem)


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw figure 4, its variant with a given delta, and figure 5."""
    axes = figure.subplots(1, 3)
    for axis, key, values in ((axes[0], "K", settings["inner_steps"]), (axes[1], "delta", settings["deltas"])):
        for value in values:
            own = [r for r in rows if r.get(key) == value]
            axis.loglog([r["x"] for r in own], [r["error"] for r in own], ".-", label=f"{key} = {value:g}")
        axis.set(xlabel="nu", ylabel="relative error, symmetric")
        axis.legend(fontsize="small")
    own = [r for r in rows if r["figure"] == 5]
    axes[2].plot([r["x"] for r in own], [r["distance"] for r in own], "b-o")
    axes[2].set(xlabel="lambda", ylabel="mean |phi* - theta|", xscale="log")
    twin = axes[2].twinx()
    twin.plot([r["x"] for r in own], [r["condition"] for r in own], "r--s")
    twin.set_ylabel("largest condition number")
