"""Tables 1 and 2 and figure 5 of BinomMAML: accuracy on mini-ImageNet, 5-way, at the same number of iterations.

All methods see the same tasks in the same order, from the same initial weights, and are judged on the same 600 unseen
tasks, so that each is compared with MAML task by task. iMAML needs a proximal inner problem; the others adapt by plain
gradient descent, as in the paper. At small size the first weights are not random but those of a classifier of the
training classes, see `figures.classifier`, and a row of its own says what they reach as they are.
tiered-ImageNet runs by the same code where its files are there: `--size=paper` includes it.
"""

from typing import Any

from figures import classifier
from figures.place import Place
from figures.training import Trained, bars, difference, row, trained

_ORDERS = range(1, 5)
START = "not meta-trained"
METHODS = {
    "FOMAML": "FOMAML", "Reptile": "Reptile",
    **{f"iMAML({L})": f'IMAML("cg", {L})' for L in _ORDERS},
    **{f"TruncMAML({L})": f"TruncMAML({L})" for L in _ORDERS},
    **{f"BinomMAML({L})": f"BinomMAML({L})" for L in _ORDERS},
    "Hybrid(1, 4)": "BinomTruncMAML(1, 4)", "MAML": "MAML",
}  # fmt: skip
_SIZE = {"seed": 0, "evaluation_tasks": 600, "proximal_weight": 0.5}
_FLAGS = {"meta_batch": 4, "inner_steps": 5, "inner_learning_rate": 0.01}
SIZES = {
    "small": _SIZE | {
        "datasets": ["mini_imagenet"],
        "methods": {"1": [START, *METHODS], "5": [START, *METHODS]},
        "start": {"epochs": 5, "batch": 64, "rate": 2e-3, "filters": 32, "pool": True, "seed": 0},
        "flags": _FLAGS | {
            "steps": 50, "queries": 5, "meta_learning_rate": 3e-4, "epoch_steps": 10, "validation_tasks": 20,
        },
    },
    "paper": _SIZE | {
        "datasets": ["mini_imagenet", "tiered_imagenet"],
        "methods": {"1": list(METHODS), "5": list(METHODS)}, "start": None,
        "flags": _FLAGS | {
            "steps": 20_000, "queries": 15, "meta_learning_rate": 1e-3, "cosine_decay": False, "epoch_steps": 500,
            "validation_tasks": 200,
        },
    },
}  # fmt: skip
# figure 5: the paper's choice of curves is not in its text
STYLES = {
    "FOMAML": {"color": "C7"},
    **{f"TruncMAML({L})": {"color": "C0", "alpha": 0.2 * (L + 1), "linestyle": "--"} for L in _ORDERS},
    **{f"BinomMAML({L})": {"color": "C1", "alpha": 0.2 * (L + 1)} for L in _ORDERS},
    "MAML": {"color": "k"},
}
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
        common = {"task": dataset, "seed": settings["seed"], "evaluation_tasks": settings["evaluation_tasks"]}
        start = f"{dataset}-start" if settings["start"] else None
        if start:
            about = {"dataset": dataset, "method": "start"}
            rows += [about | entry for entry in classifier.start(start, settings["start"], place)]
        for shots, methods in settings["methods"].items():
            runs = {}
            for method in methods:
                flags = common | settings["flags"] | {"shots": int(shots), "estimator": METHODS.get(method, "FOMAML")}
                if method == START:
                    flags |= {"steps": 1, "meta_learning_rate": 0}
                if method.startswith("iMAML"):
                    flags |= {"inner": "proximal", "proximal_weight": settings["proximal_weight"]}
                runs[method] = trained(f"{dataset}-{shots}-{method}".replace(" ", ""), flags, place, start)
            for method, run in runs.items():
                about = {"dataset": dataset, "shots": int(shots), "method": method}
                rows += entries(about, run, runs["MAML"], settings)
    return rows


def entries(about: dict[str, Any], run: Trained, maml: Trained, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run: its epochs, then its result and the difference to MAML's."""
    size = settings["flags"]["epoch_steps"]
    columns = {"train_accuracy": "accuracy", "train_loss": "loss", "validation_accuracy": "val_accuracy"}
    curve = [
        about | {"iteration": (int(epoch["epoch"]) + 1) * size} | {new: epoch[old] for new, old in columns.items()}
        for epoch in (run.history if about["method"] != START else [])
    ]
    return [*curve, about | row(run) | difference(run, maml)]


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw above the table for each data set and number of shots, with the paper's numbers; below, figure 5."""
    panels: dict[str, list] = {}
    for entry in rows:
        if entry["method"] != "start":
            panels.setdefault(f"{entry['dataset']}, {entry['shots']}-shot", []).append(entry)
    paper = {
        (f"mini_imagenet, {shots}-shot", method): values[i]
        for method, values in _PAPER.items()
        for i, shots in enumerate((1, 5))
    }
    above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
    bars(above, {title: [r for r in own if "accuracy" in r] for title, own in panels.items()}, paper)
    axes = below.subplots(1, 2 * len(panels), squeeze=False)[0]
    for index, (title, own) in enumerate(panels.items()):
        for axis, key in zip(axes[2 * index :], ("train_accuracy", "train_loss"), strict=False):
            for method, style in STYLES.items():
                points = [(r["iteration"], r[key]) for r in own if r["method"] == method and key in r]
                if points:
                    axis.plot(*zip(*points, strict=True), **style, label=method)
            axis.set(title=title, xlabel="iteration", ylabel=key.replace("_", " "))
    axes[-1].legend(fontsize="x-small")
