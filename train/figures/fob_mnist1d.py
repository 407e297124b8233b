"""Figure 2 of FO-B-MAML: accuracy on MNIST-1D, 3-way 5-shot, over 600 iterations, for every method and several seeds.

Each method has its own inner and meta-learning rate, the best of a grid (docs/results.md). MAML, FOMAML and Reptile
adapt by plain gradient descent, iMAML and FO-B-MAML with the proximal term, as in the paper.
"""

from typing import Any

import numpy as np

from figures.place import Place
from figures.training import row, trained

# method: (estimator, inner optimiser, inner learning rate, meta-learning rate)
METHODS = {
    "MAML": ("MAML", "gradient_descent", 0.1, 0.01),
    "FOMAML": ("FOMAML", "gradient_descent", 0.1, 0.01),
    "Reptile": ("Reptile", "gradient_descent", 0.1, 0.01),
    "iMAML, 5 CG": ('IMAML("cg", 5)', "proximal", 0.1, 0.01),
    "FO-B-MAML": ('FOBMAML("symmetric", 0.1)', "proximal", 0.1, 0.01),
    "FO-B-MAML, tangent": ('FOBMAML("tangent")', "proximal", 0.1, 0.01),
}
_SIZE = {"steps": 600, "epoch_steps": 25, "validation_tasks": 100, "evaluation_tasks": 600}
SIZES = {
    "small": _SIZE | {"meta_batch": 16, "seeds": [0, 1, 2]},
    "paper": _SIZE | {"meta_batch": 16, "seeds": [0, 1, 2, 3, 4], "validation_tasks": 600},
}


def measure(settings: dict[str, Any], place: Place) -> list[dict[str, Any]]:
    """Return the validation accuracy over the iterations, and the test accuracy at the end, of each run."""
    rows = []
    common = {key: value for key, value in settings.items() if key != "seeds"}
    for method, (estimator, inner, rate, meta_rate) in METHODS.items():
        rates = {"inner": inner, "inner_learning_rate": rate, "meta_learning_rate": meta_rate}
        for seed in settings["seeds"]:
            flags = {"task": "mnist1d", "estimator": estimator, "seed": seed} | rates | common
            run = trained(f"{method}-{seed}".replace(" ", "_"), flags, place)
            about = {"method": method, "seed": seed}
            for entry in run.history:
                iteration = (entry["epoch"] + 1) * settings["epoch_steps"]
                rows.append(about | {"iteration": int(iteration), "validation": entry["val_accuracy"]})
            rows.append(about | row(run))
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw mean and range over the seeds."""
    axis = figure.subplots()
    for index, method in enumerate(METHODS):
        own = [r for r in rows if r["method"] == method and "iteration" in r]
        iterations = sorted({r["iteration"] for r in own})
        values = np.array([[r["validation"] for r in own if r["iteration"] == i] for i in iterations])
        ends = [r["accuracy"] for r in rows if r["method"] == method and "accuracy" in r]
        label = f"{method}: {100 * np.mean(ends):.1f} % on test tasks"
        axis.plot(iterations, values.mean(1), color=f"C{index}", label=label)
        axis.fill_between(iterations, values.min(1), values.max(1), color=f"C{index}", alpha=0.2)
    axis.axhline(0.85, color="k", linewidth=0.5)
    axis.set(xlabel="iteration", ylabel="accuracy on validation tasks", ylim=(0.3, 1))
    axis.legend(loc="lower right")
