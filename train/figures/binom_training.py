"""Tables 1 and 2 and figure 5 of BinomMAML: accuracy on mini-ImageNet, 5-way, at the same number of iterations.

All methods see the same tasks in the same order, from the same initial weights, and are judged on the same 600 unseen
tasks, so that each is compared with MAML task by task. iMAML needs a proximal inner problem; the others adapt by plain
gradient descent, as in the paper. A row of its own says what the first weights reach as they are. At small size there
are two parts: all methods for a few iterations from a classifier of the training classes, see `figures.classifier`; and
some of them for long, with strided convolutions, from random weights. tiered-ImageNet runs by the same code where its
files are there: `--size=paper` includes it.
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
# A part: its methods by shots, the classifier that they begin from or None for random weights, flags of train.py.
SIZES = {
    "small": _SIZE | {
        "datasets": ["mini_imagenet"],
        "parts": {
            "from a classifier": {
                "methods": {"1": [START, *METHODS], "5": [START, *METHODS]},
                "start": {"epochs": 5, "batch": 64, "rate": 2e-3, "filters": 32, "pool": True, "seed": 0},
                "flags": _FLAGS | {
                    "steps": 50, "queries": 5, "meta_learning_rate": 3e-4, "epoch_steps": 10, "validation_tasks": 20,
                },
            },
            "from random weights": {
                "methods": {"1": [START, "FOMAML", "TruncMAML(2)", "BinomMAML(2)", "MAML"]},
                "start": None,
                "flags": _FLAGS | {
                    "steps": 4000, "queries": 5, "pool": False, "meta_learning_rate": 1e-3, "epoch_steps": 250,
                    "validation_tasks": 100,
                },
            },
        },
    },
    "paper": _SIZE | {
        "datasets": ["mini_imagenet", "tiered_imagenet"],
        "parts": {
            "from random weights": {
                "methods": {"1": list(METHODS), "5": list(METHODS)},
                "start": None,
                "flags": _FLAGS | {
                    "steps": 20_000, "queries": 15, "meta_learning_rate": 1e-3, "cosine_decay": False,
                    "epoch_steps": 500, "validation_tasks": 200,
                },
            },
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
        for name, part in settings["parts"].items():
            about = {"dataset": dataset, "part": name}
            start = f"{dataset}-start" if part["start"] else None
            if start:
                own = classifier.start(start, part["start"], place)
                rows += [about | {"method": "start"} | entry for entry in own]
            for shots, methods in part["methods"].items():
                runs = {method: _run(method, int(shots), part, about, start, settings, place) for method in methods}
                for method, run in runs.items():
                    rows += entries(about | {"shots": int(shots), "method": method}, run, runs["MAML"], part["flags"])
    return rows


def _run(
    method: str, shots: int, part: dict[str, Any], about: dict[str, Any], start: str | None,
    settings: dict[str, Any], place: Place,
) -> Trained:  # fmt: skip
    common = {"task": about["dataset"], "seed": settings["seed"], "evaluation_tasks": settings["evaluation_tasks"]}
    flags = common | part["flags"] | {"shots": shots, "estimator": METHODS.get(method, "FOMAML")}
    if method == START:
        flags |= {"steps": 1, "meta_learning_rate": 0}
    if method.startswith("iMAML"):
        flags |= {"inner": "proximal", "proximal_weight": settings["proximal_weight"]}
    name = f"{about['dataset']}-{shots}-{method}-{about['part']}"
    return trained(name.replace(" ", ""), flags, place, start)


def entries(about: dict[str, Any], run: Trained, maml: Trained, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run: its epochs, then its result and the difference to MAML's."""
    size = flags["epoch_steps"]
    columns = {"train_accuracy": "accuracy", "train_loss": "loss", "validation_accuracy": "val_accuracy"}
    curve = [
        about | {"iteration": (int(epoch["epoch"]) + 1) * size} | {new: epoch[old] for new, old in columns.items()}
        for epoch in (run.history if about["method"] != START else [])
    ]
    return [*curve, about | row(run) | difference(run, maml)]


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw above the table of each data set, number of shots and part, with the paper's numbers; below, figure 5."""
    panels: dict[str, list] = {}
    paper = {}
    for entry in rows:
        if entry["method"] != "start":
            title = f"{entry['dataset']}, {entry['shots']}-shot\n{entry['part']}"
            panels.setdefault(title, []).append(entry)
            if entry["dataset"] == "mini_imagenet" and entry["method"] in _PAPER:
                paper[title, entry["method"]] = _PAPER[entry["method"]][0 if entry["shots"] == 1 else 1]
    above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
    bars(above, {title: [r for r in own if "accuracy" in r] for title, own in panels.items()}, paper)
    axes = below.subplots(1, 2 * len(panels), squeeze=False)[0]
    for index, (title, own) in enumerate(panels.items()):
        for axis, key in zip(axes[2 * index :], ("train_accuracy", "train_loss"), strict=False):
            for method, style in STYLES.items():
                points = [(r["iteration"], r[key]) for r in own if r["method"] == method and key in r]
                if points:
                    axis.plot(*zip(*points, strict=True), **style, label=method)
            axis.set(xlabel="iteration", ylabel=key.replace("_", " "))
            axis.set_title(title, fontsize="small")
    axes[0].legend(fontsize="x-small")
