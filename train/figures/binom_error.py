"""Figure 3 of BinomMAML: the error of the estimates on sinusoid tasks at initialisation, in float64.

(a) over batches at one L, (b) the mean over batches against L; each at several alpha, because the errors of
TruncMAML(L) fall like a fixed share and those of BinomMAML(L) like (alpha H)^(L+1). `alpha_H` is measured.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_metagrad as mg
from figures.precision import float64

_SIZE = {"steps": 5, "alphas": [0.001, 0.003, 0.01, 0.1], "panel_a_L": 4, "tasks": 10, "points": 10, "seed": 0}
SIZES = {"small": _SIZE | {"batches": 50}, "paper": _SIZE | {"batches": 1000}}


def _vector(gradients: list[tf.Tensor]) -> np.ndarray:
    return np.concatenate([np.ravel(g) for g in gradients])


def errors(learner: mg.MetaLearner, batches: list[mg.Task], estimator: mg.estimators.Estimator, exact: list) -> list:
    """Return |estimate - exact| / |exact| of every batch."""
    learner.estimator = estimator
    found = [_vector(learner.meta_gradient(batch).gradients) for batch in batches]
    return [float(np.linalg.norm(f - e) / np.linalg.norm(e)) for f, e in zip(found, exact, strict=True)]


def measure(settings: dict[str, Any], place: Any) -> list[dict[str, Any]]:
    """Return one row for each alpha, estimator, L and batch."""
    data = mg.data.sinusoid(
        shots=settings["points"], queries=settings["points"], meta_batch=settings["tasks"], seed=settings["seed"]
    )
    batches = [
        tf.nest.map_structure(lambda t: tf.cast(t, tf.float64), batch) for batch in data.take(settings["batches"])
    ]
    rows = []
    for alpha in settings["alphas"]:
        with float64():
            keras.utils.set_random_seed(settings["seed"])
            inner = mg.inner.GradientDescent(settings["steps"], alpha)
            learner = mg.MetaLearner(mg.models.mlp(), "mse", inner)
            exact = [_vector(learner.meta_gradient(batch).gradients) for batch in batches]
            alpha_H = mg.estimate_smoothness(learner, batches[0]).alpha_H
            for name, kind in (("TruncMAML", mg.estimators.TruncMAML), ("BinomMAML", mg.estimators.BinomMAML)):
                for order in range(settings["steps"]):
                    estimator = kind(order) if order else mg.estimators.FOMAML()
                    found = errors(learner, batches, estimator, exact)
                    rows += [
                        {"alpha": alpha, "alpha_H": alpha_H, "estimator": name, "L": order, "batch": i, "error": e}
                        for i, e in enumerate(found)
                    ]
        print(f"alpha = {alpha}: done", flush=True)
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw panel (a) above panel (b), a column for each alpha."""
    axes = figure.subplots(2, len(settings["alphas"]))
    for column, alpha in enumerate(settings["alphas"]):
        above, below = axes[:, column]
        for name in ("TruncMAML", "BinomMAML"):
            own = [row for row in rows if row["alpha"] == alpha and row["estimator"] == name]
            at_order = [row["error"] for row in own if row["L"] == settings["panel_a_L"]]
            above.semilogy(at_order, label=f"{name}({settings['panel_a_L']})")
            orders = range(settings["steps"])
            below.semilogy(
                orders, [np.mean([r["error"] for r in own if r["L"] == order]) for order in orders], "o-", label=name
            )
        above.set(title=f"alpha = {alpha:g}, alpha H = {own[0]['alpha_H']:.2g}", xlabel="batch")
        below.set(xlabel="L")
    for axis in axes[:, 0]:
        axis.set_ylabel("relative error")
        axis.legend(fontsize="small")
