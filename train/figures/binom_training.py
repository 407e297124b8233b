"""Tables 1 and 2 and figure 5 of BinomMAML: accuracy on mini-ImageNet, 5-way, at the same number of iterations.

All methods see the same tasks in the same order, from the same initial weights, and are judged on the same 600 unseen
tasks. iMAML needs a proximal inner problem; the others adapt by plain gradient descent, as in the paper.
tiered-ImageNet runs by the same code where its files are there: `--size=paper` includes it.
"""

from typing import Any

from figures.place import Place
from figures.training import bars, row, trained

_ORDERS = range(1, 5)
METHODS = {
    "FOMAML": "FOMAML", "Reptile": "Reptile",
    **{f"iMAML({L})": f'IMAML("cg", {L})' for L in _ORDERS},
    **{f"TruncMAML({L})": f"TruncMAML({L})" for L in _ORDERS},
    **{f"BinomMAML({L})": f"BinomMAML({L})" for L in _ORDERS},
    "Hybrid(1, 4)": "BinomTruncMAML(1, 4)", "MAML": "MAML",
}  # fmt: skip
_SIZE = {"seed": 0, "shots": [1, 5], "evaluation_tasks": 600, "proximal_weight": 0.5}
SIZES = {
    "small": _SIZE | {
        "datasets": ["mini_imagenet"],
        "flags": {
            "steps": 400, "meta_batch": 4, "queries": 5, "inner_steps": 5, "inner_learning_rate": 0.05,
            "meta_learning_rate": 3e-3, "pool": False, "epoch_steps": 100, "validation_tasks": 40,
        },
    },
    "paper": _SIZE | {
        "datasets": ["mini_imagenet", "tiered_imagenet"],
        "flags": {
            "steps": 20_000, "meta_batch": 4, "queries": 15, "inner_steps": 5, "inner_learning_rate": 0.01,
            "meta_learning_rate": 1e-3, "cosine_decay": False, "epoch_steps": 500, "validation_tasks": 200,
        },
    },
}  # fmt: skip
# table 1 (and table 2 for the hybrid), mini-ImageNet: 1-shot, 5-shot
_PAPER = {
    "FOMAML": (44.57, 62.97), "Reptile": (42.11, 61.07), "iMAML(1)": (44.47, 60.32), "iMAML(2)": (44.57, 60.63),
    "iMAML(3)": (45.03, 62.77), "iMAML(4)": (45.43, 62.64), "TruncMAML(1)": (44.53, 62.43),
    "TruncMAML(2)": (44.93, 63.61), "TruncMAML(3)": (44.33, 63.67), "TruncMAML(4)": (44.83, 63.44),
    "BinomMAML(1)": (45.50, 62.36), "BinomMAML(2)": (46.23, 63.49), "BinomMAML(3)": (46.00, 64.17),
    "BinomMAML(4)": (46.24, 63.86), "Hybrid(1, 4)": (45.17, 62.41), "MAML": (46.50, 64.23),
}  # fmt: skip


def measure(settings: dict[str, Any], place: Place) -> list[dict[str, Any]]:
    """Return the test accuracy of each run, and its learning curve."""
    rows = []
    for dataset in settings["datasets"]:
        for shots in settings["shots"]:
            for method, estimator in METHODS.items():
                flags = {"task": dataset, "shots": shots, "estimator": estimator, "seed": settings["seed"]}
                flags |= settings["flags"] | {"evaluation_tasks": settings["evaluation_tasks"]}
                if method.startswith("iMAML"):
                    flags |= {"inner": "proximal", "proximal_weight": settings["proximal_weight"]}
                run = trained(f"{dataset}-{shots}-{method}".replace(" ", ""), flags, place)
                about = {"dataset": dataset, "shots": shots, "method": method}
                curve = [{"epoch": int(e["epoch"]), "train": e["accuracy"], "loss": e["loss"]} for e in run.history]
                rows += [about | entry for entry in curve]
                rows.append(about | row(run))
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw the table for each data set and number of shots, with the paper's numbers."""
    panels: dict[str, list] = {}
    for entry in rows:
        if "accuracy" in entry:
            panels.setdefault(f"{entry['dataset']}, {entry['shots']}-shot", []).append(entry)
    paper = {
        (f"mini_imagenet, {shots}-shot", method): values[i]
        for method, values in _PAPER.items()
        for i, shots in enumerate((1, 5))
    }
    bars(figure, panels, paper)
