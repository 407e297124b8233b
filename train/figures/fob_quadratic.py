"""Figure 1 of FO-B-MAML: estimates on quadratic tasks against the closed-form meta-gradient, in float64.

Above: relative error and 1 - cosine at theta = 0 against the number of inner steps. Below: outer loss over its minimum
while gradient descent follows each estimate, at the best step size of a grid for each. All estimators see the same
proximal inner problem; what they are measured against is the gradient of its solution.
"""

from typing import Any

import numpy as np

import tf_metagrad as mg
from figures.precision import float64
from figures.quadratic import Quadratics, draw_quadratics, make_learner
from tf_metagrad.estimators import parse

_SIZE = {
    "tasks": 10, "size": 20, "eigenvalues": [2.0, 50.0], "weight": 2.0, "seed": 0, "outer_inner_steps": 20,
    "rates": [0.03, 0.1, 0.3, 1.0, 3.0], "iterations": 100,
    "estimators": [
        "MAML", "FOMAML", "Reptile", 'IMAML("cg", 2)', 'IMAML("cg", 5)', 'IMAML("cg", 10)', "FOBMAML",
        'FOBMAML("tangent")', "ESMAML(16, 0.1)",
    ],
}  # fmt: skip
SIZES = {
    "small": _SIZE | {"inner_steps": [1, 2, 5, 10, 20, 50, 100, 200]},
    "paper": _SIZE | {"inner_steps": [1, 2, 5, 10, 20, 50, 100, 200, 500], "iterations": 1000},
}


def _learner(settings: dict[str, Any], text: str, steps: int) -> mg.MetaLearner:
    largest = settings["eigenvalues"][1] + settings["weight"]
    inner = mg.inner.ProximalGradientDescent(steps, 1 / largest, settings["weight"])
    return make_learner(settings["size"], inner, parse(text))


def quality(settings: dict[str, Any], problem: Quadratics) -> list[dict[str, Any]]:
    """Return the error of each estimate at theta = 0, for each number of inner steps."""
    exact, rows = problem.meta_gradient(np.zeros(settings["size"]), settings["weight"]), []
    for text in settings["estimators"]:
        for steps in settings["inner_steps"]:
            found = np.ravel(_learner(settings, text, steps).meta_gradient(problem.tasks()).gradients[0])
            lengths = np.linalg.norm(found) * np.linalg.norm(exact)
            rows.append(
                {
                    "panel": "quality", "estimator": text, "x": steps,
                    "error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
                    "one_minus_cosine": float(1 - found @ exact / lengths),
                }
            )  # fmt: skip
        print(f"quality of {text}: done", flush=True)
    return rows


def descent(settings: dict[str, Any], problem: Quadratics, text: str) -> list[dict[str, Any]]:
    """Return F(theta) - min F over the iterations, at the step size of the grid that ends lowest."""
    learner, weight = _learner(settings, text, settings["outer_inner_steps"]), settings["weight"]
    kernel, least = learner.model.trainable_variables[0], problem.outer_loss(problem.best(weight), weight)
    curves = {}
    for rate in settings["rates"]:
        theta, curve = np.zeros(settings["size"]), []
        for iteration in range(settings["iterations"] + 1):
            curve.append(problem.outer_loss(theta, weight) - least)
            if not np.isfinite(curve[-1]) or curve[-1] > 1e6:
                break
            kernel.assign(theta[:, None])
            theta = theta - rate * np.ravel(learner.meta_gradient(problem.tasks(), seed=iteration).gradients[0])
        else:
            curves[rate] = curve
    rate = min(curves, key=lambda r: curves[r][-1])
    print(f"descent with {text}: step size {rate}", flush=True)
    return [
        {"panel": "descent", "estimator": text, "x": i, "excess_loss": v, "rate": rate}
        for i, v in enumerate(curves[rate])
    ]


def measure(settings: dict[str, Any], place: Any) -> list[dict[str, Any]]:
    """Return the rows of both panels."""
    problem = draw_quadratics(*(settings[k] for k in ("tasks", "size", "eigenvalues", "seed")))
    with float64():
        rows = quality(settings, problem)
        for text in settings["estimators"]:
            rows += descent(settings, problem, text)
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw error, cosine and descent."""
    axes = figure.subplots(1, 3)
    for index, text in enumerate(settings["estimators"]):
        own = {p: [r for r in rows if r["panel"] == p and r["estimator"] == text] for p in ("quality", "descent")}
        style = {"color": f"C{index}", "label": text}
        for axis, key in ((axes[0], "error"), (axes[1], "one_minus_cosine")):
            axis.loglog([r["x"] for r in own["quality"]], [r[key] for r in own["quality"]], ".-", **style)
        axes[2].semilogy([r["x"] for r in own["descent"]], [r["excess_loss"] for r in own["descent"]], **style)
    axes[0].set(xlabel="inner steps K", ylabel="relative error of the estimate")
    axes[1].set(xlabel="inner steps K", ylabel="1 - cosine")
    axes[2].set(xlabel="iteration", ylabel=f"F - min F, K = {settings['outer_inner_steps']}")
    axes[2].legend(fontsize="x-small")
