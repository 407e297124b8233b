"""Figure 2 of BinomMAML: the error bounds of theorems 3.6, 3.8 and 3.10 over that of FOMAML, against L.

The paper has alpha H = 0.25, where its formulas hold; at alpha H = 1, still in the range of the theorems, those of
FOMAML and TruncMAML do not. `printed` is the paper's formula, `corrected` that of `mg.bounds`, which holds for Hessians
that do not commute, too. `found` is the largest error that a search among 2x2 Hessians came upon: it may touch a bound
that holds, never exceed it.
"""

import itertools
from typing import Any

import numpy as np

import tf_metagrad as mg

_SIZE = {"steps": 5, "alphas": [0.25, 1.0], "H": 1.0, "h": 0.1, "convex_steps": 1, "seed": 0}
SIZES = {
    "small": _SIZE | {"draws": 50_000},
    "paper": _SIZE | {"draws": 500_000},
}
THEOREMS = {"3.6": "a: smooth", "3.8": "b: convex", "3.10": "c: strongly convex at the end"}


def bounds(theorem: str, settings: dict[str, Any], truncation: int, printed: bool) -> mg.bounds.ErrorBounds:
    """Return the bounds over |g^K|."""
    steps, a = settings["steps"], settings["alpha"] * settings["H"]
    if theorem == "3.6":
        return mg.bounds.smooth(steps, a, truncation)
    if theorem == "3.8":
        return mg.bounds.convex(steps, a, truncation, commuting=printed)
    ah, convex_steps = settings["alpha"] * settings["h"], settings["convex_steps"]
    return mg.bounds.strongly_convex(steps, a, ah, convex_steps, truncation, commuting=printed)


def ranges(theorem: str, settings: dict[str, Any]) -> list[tuple[float, float]]:
    """Return the smallest and largest eigenvalue of alpha H^k that the theorem allows, for k = 0 .. K-1."""
    steps, a, ah = settings["steps"], settings["alpha"] * settings["H"], settings["alpha"] * settings["h"]
    if theorem == "3.8":
        return [(0.0, a)] * steps
    curved = settings["convex_steps"] if theorem == "3.10" else 0
    return [(-a, a)] * (steps - curved) + [(ah, a)] * curved


def search(theorem: str, settings: dict[str, Any]) -> tuple[float, list[float], list[float]]:
    """Return the largest errors over |g^K| found: of FOMAML, and of TruncMAML and BinomMAML for each L."""
    rng, count, steps = np.random.default_rng(settings["seed"]), settings["draws"], settings["steps"]
    angles = rng.uniform(0, np.pi, (count, steps))
    angles[: count // 4] = 0  # Hessians that commute
    sharp = rng.uniform(size=(count, steps, 2)) < 0.9  # the extremes are where the largest errors are
    low, high = np.array(ranges(theorem, settings)).T
    values = np.where(
        sharp,
        np.where(rng.uniform(size=sharp.shape) < 0.5, low[:, None], high[:, None]),
        rng.uniform(low[:, None], high[:, None], sharp.shape),
    )
    turn = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], -1).reshape(count, steps, 2, 2)
    hessians = np.einsum("nkij,nkj,nklj->nkil", turn, values, turn)
    eye = np.eye(2)
    exact = _product(hessians, range(steps))
    fomaml = _largest(exact - eye)
    trunc = [_largest(exact - _product(hessians, range(steps - L, steps))) for L in range(steps + 1)]
    binom, total = [], np.broadcast_to(eye, exact.shape).copy()
    for order in range(steps + 1):
        if order:
            for chosen in itertools.combinations(range(steps), order):
                total += _monomial(hessians, chosen)
        binom.append(_largest(exact - total))
    return fomaml, trunc, binom


def _product(hessians: np.ndarray, steps: range) -> np.ndarray:
    """Return the product of I - alpha H^k over ascending k, as it stands before g^K."""
    result = np.broadcast_to(np.eye(2), hessians[:, 0].shape)
    for k in steps:
        result = result @ (np.eye(2) - hessians[:, k])
    return result


def _monomial(hessians: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """Return the product of -alpha H^k over the chosen k, in ascending order."""
    result = -hessians[:, chosen[0]]
    for k in chosen[1:]:
        result = result @ -hessians[:, k]
    return result


def _largest(matrices: np.ndarray) -> float:
    return float(np.linalg.norm(matrices, 2, axis=(1, 2)).max())


def measure(settings: dict[str, Any], place: Any) -> list[dict[str, Any]]:
    """Return the bounds, and the largest errors found, over FOMAML's printed bound."""
    rows = []
    for alpha, theorem in itertools.product(settings["alphas"], THEOREMS):
        values = settings | {"alpha": alpha}
        fomaml, trunc, binom = search(theorem, values)
        scale = bounds(theorem, values, 0, printed=True).fomaml
        for truncation in range(settings["steps"] + 1):
            printed, corrected = (bounds(theorem, values, truncation, printed=p) for p in (True, False))
            for name, found in (("fomaml", fomaml), ("trunc", trunc[truncation]), ("binom", binom[truncation])):
                kinds = {"printed": getattr(printed, name), "corrected": getattr(corrected, name), "found": found}
                about = {"alpha": alpha, "theorem": theorem, "L": truncation, "estimator": name}
                rows.append(about | {kind: value / scale for kind, value in kinds.items()})
    return rows


def draw(rows: list[dict[str, Any]], settings: dict[str, Any], figure: Any) -> None:
    """Draw a row of panels for each alpha."""
    axes = figure.subplots(len(settings["alphas"]), 3, sharex=True)
    for line, alpha in zip(axes, settings["alphas"], strict=True):
        for axis, (theorem, title) in zip(line, THEOREMS.items(), strict=True):
            for name, colour in (("fomaml", "C7"), ("trunc", "C0"), ("binom", "C1")):
                own = [r for r in rows if (r["alpha"], r["theorem"], r["estimator"]) == (alpha, theorem, name)]
                for kind, style in (("printed", "--"), ("corrected", "-"), ("found", ".")):
                    label = f"{name}, {kind}"
                    axis.plot([r["L"] for r in own], [r[kind] for r in own], style, color=colour, label=label)
            axis.set(title=f"{title}, alpha H = {alpha * settings['H']:g}", ylim=(0, 3))
        line[0].set_ylabel("over FOMAML's, as printed")
    for axis in axes[-1]:
        axis.set_xlabel("L")
    axes[0, 0].legend(fontsize="x-small")
