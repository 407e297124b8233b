"""Figure 4 of BinomMAML: time and memory of a meta-gradient against L, and the HVPs behind them.

The mini-ImageNet net on random images. The paper's third panel, the load of a GPU, is not measured: on the device at
hand the time tells whether the independent HVPs found room. Times are medians of steps that take turns.
"""

from typing import Any

import keras
import numpy as np

import tf_metagrad as mg
from tf_metagrad.estimators import MAML, parse

_SIZE = {"steps": 5, "alpha": 0.01, "filters": 32, "ways": 5, "shots": 1, "seed": 0}
SIZES = {
    "small": _SIZE | {"meta_batch": 2, "queries": 5, "repeats": 10},
    "paper": _SIZE | {"meta_batch": 4, "queries": 15, "repeats": 100},
}


def make_tasks(settings: dict[str, Any]) -> mg.Task:
    """Return a batch of random images."""
    rng = np.random.default_rng(settings["seed"])
    ways, sets = settings["ways"], []
    for each in (settings["shots"], settings["queries"]):
        images = rng.uniform(size=(settings["meta_batch"], ways * each, 84, 84, 3)).astype("float32")
        sets += [images, np.tile(np.repeat(np.arange(ways), each), (settings["meta_batch"], 1))]
    return mg.Task(*sets)


def measure(settings: dict[str, Any], place: Any) -> list[dict[str, Any]]:
    """Return a row for each estimator and L."""
    keras.utils.set_random_seed(settings["seed"])
    learner = mg.MetaLearner(
        mg.models.conv2d(settings["ways"], (84, 84, 3), settings["filters"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        mg.inner.GradientDescent(settings["steps"], settings["alpha"]),
    )
    orders = range(1, settings["steps"])
    texts = ["FOMAML", *(f"{kind}({L})" for kind in ("TruncMAML", "BinomMAML") for L in orders), 'MAML("unrolled")']
    found = mg.compare_estimators(
        learner, make_tasks(settings), [MAML(), *map(parse, texts)], repeats=settings["repeats"], alpha_H=1.0
    )
    print(found)
    rows = []
    for row in found.rows:
        order = getattr(row.estimator, "truncation", settings["steps"] if isinstance(row.estimator, MAML) else 0)
        rows.append(
            {"estimator": str(row.estimator), "L": order, "HVPs": row.hvps, "seconds": row.seconds, "MiB": row.peak_mib}
        )
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw time, memory and HVPs against L."""
    axes = figure.subplots(1, 3)
    ends = [row for row in rows if row["estimator"] in ("FOMAML()", "MAML()")]
    unrolled = [row for row in rows if "unrolled" in row["estimator"]]
    for kind in ("TruncMAML", "BinomMAML"):
        own = sorted(ends + [row for row in rows if row["estimator"].startswith(kind)], key=lambda row: row["L"])
        for axis, key in zip(axes, ("seconds", "MiB", "HVPs"), strict=True):
            axis.plot([r["L"] for r in own], [r[key] for r in own], "o-", label=kind)
    for axis, key, label in zip(axes, ("seconds", "MiB", "HVPs"), ("s a step", "peak MiB", "HVPs a task"), strict=True):
        if unrolled and key != "HVPs":
            axis.plot([settings["steps"]], [unrolled[0][key]], "k*", label="MAML, unrolled tape")
        axis.set(xlabel="L (0: FOMAML, K: MAML)", ylabel=label)
    axes[0].legend(fontsize="small")
