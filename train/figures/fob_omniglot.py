"""Table 2 of FO-B-MAML: Omniglot, 5-way 1-shot and 5-shot, with the estimators run here under the same settings.

The paper took all rows but its own from other publications; here each is a run of ours.
"""

from typing import Any

from figures.place import Place
from figures.training import bars, row, trained

# method: (estimator, inner optimiser)
METHODS = {
    "MAML": ("MAML", "gradient_descent"),
    "FOMAML": ("FOMAML", "gradient_descent"),
    "Reptile": ("Reptile", "gradient_descent"),
    "iMAML": ('IMAML("cg", 5)', "proximal"),
    "FO-B-MAML": ('FOBMAML("symmetric", 0.1)', "proximal"),
}
_FLAGS = {"task": "omniglot", "inner_steps": 5, "proximal_weight": 2.0, "inner_learning_rate": 0.1}
# runs: shots, method, iterations, filters
SIZES = {
    "small": {
        "runs": [[1, method, 4000, 32] for method in METHODS] + [[1, "FO-B-MAML", 4000, 64]]
        + [[5, method, 1000, 32] for method in METHODS],
        "seeds": [0],
        "flags": _FLAGS | {
            "meta_batch": 8, "queries": 5, "pool": False, "meta_learning_rate": 3e-3, "epoch_steps": 250,
            "validation_tasks": 40,
        },
    },
    "paper": {
        "runs": [[shots, method, 20_000, 64] for shots in (1, 5) for method in METHODS], "seeds": [0, 1, 2, 3, 4],
        "flags": _FLAGS | {
            "meta_batch": 16, "queries": 15, "meta_learning_rate": 1e-3, "epoch_steps": 1000, "validation_tasks": 200,
        },
    },
}  # fmt: skip
_PAPER = {
    "MAML": (98.7, 99.9), "FOMAML": (98.3, 99.2), "Reptile": (97.68, 99.48), "iMAML": (99.16, 99.67),
    "FO-B-MAML": (99.24, 99.70),
}  # fmt: skip


def measure(settings: dict[str, Any], place: Place) -> list[dict[str, Any]]:
    """Return the test accuracy of each run."""
    rows = []
    for shots, method, steps, filters in settings["runs"]:
        estimator, inner = METHODS[method]
        for seed in settings["seeds"]:
            own = {"steps": steps, "shots": shots, "filters": filters, "estimator": estimator, "inner": inner}
            run = trained(f"{shots}-{method}-{steps}-{filters}-{seed}", settings["flags"] | own | {"seed": seed}, place)
            about = {"shots": shots, "method": method, "iterations": steps, "filters": filters, "seed": seed}
            rows.append(about | row(run))
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw a panel for each number of shots."""

    def names(shots, method, filters):
        return f"{shots}-shot", f"{method}, {filters} filters"

    panels: dict[str, list] = {}
    for entry in rows:
        panel, bar = names(entry["shots"], entry["method"], entry["filters"])
        panels.setdefault(panel, []).append(entry | {"method": bar})
    paper = {
        names(shots, method, filters): _PAPER[method][0 if shots == 1 else 1]
        for shots, method, _, filters in settings["runs"]
    }
    bars(figure, panels, paper)
