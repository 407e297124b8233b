"""Errors of the estimators that drop Hessian products: theorems 3.6, 3.8 and 3.10 of "BinomMAML", ICLR 2026.

The exact meta-gradient is P g^K with P = (I - alpha H^0) ... (I - alpha H^{K-1}). Each bound is a multiple of |g^K|,
for plain gradient descent at the constant rate alpha; H^k is only needed at the iterates phi^0 .. phi^{K-1}. The hybrid
BinomTruncMAML(L, C) is not in the theorems; by the triangle inequality, its error is at most that of TruncMAML(C) plus
that of BinomMAML(L) over the last C steps.

Correction. The paper's (12a), (12b) and (13a) take a product of positive semi-definite matrices for another such
matrix, and so hold only if the H^k commute (a quadratic support loss: one Hessian). Two steps with
alpha H^k = v_k v_k', unit vectors 45 degrees apart, have |P - I| = 1.144, where (12a) says 1. What holds for all
symmetric H^k with eigenvalues in [h, H], and is attained by some 2 x 2 ones, is

    |P - I| <= max |1 - z_0 ... z_{K-1}|,   z_k complex, on the circle with diameter [1 - alpha H, 1 - alpha h].

Reason: a symmetric matrix with eigenvalues in [c - r, c + r] takes x into the ball around c x of radius r |x|, and may
take it to any point there. The end of a path of such steps may as well be reached in a plane, where it is a product of
complex numbers. While no circle surrounds 0, log |z| is a concave function of arg z on a circle's outer arc and a
convex one on the inner, so steps with equal circles do best with equal z. For small alpha H the maximum is at real z,
and is the paper's: at K = 2 up to alpha H = 0.585, at K = 5 up to 0.276.
"""

import math
from typing import NamedTuple

import numpy as np


class ErrorBounds(NamedTuple):
    """Largest |estimate - exact meta-gradient| / |g^K| of each estimator.

    Attributes:
        fomaml: FOMAML.
        trunc: TruncMAML(L).
        binom: BinomMAML(L).
        binom_trunc: BinomTruncMAML(L, C).
    """

    fomaml: float
    trunc: float
    binom: float
    binom_trunc: float


def smooth(steps: int, alpha_H: float, truncation: int, horizon: int | None = None) -> ErrorBounds:
    """Return the bounds of theorem 3.6, eq. (11): all eigenvalues of H^k lie in [-H, H].

    All four are attained by H^k = -H I, and binom < trunc < fomaml for 1 <= L < K.

    Args:
        steps: K.
        alpha_H: alpha H, the inner learning rate times the largest absolute eigenvalue; any size.
        truncation: L, from 0 to K.
        horizon: C, from L to K; None: K.

    Returns:
        `ErrorBounds`, to be multiplied by |g^K|.

    Raises:
        ValueError: an argument outside of these.

    Example:
        >>> fomaml, trunc, binom, _ = smooth(steps=5, alpha_H=0.25, truncation=2)
        >>> print(f"{fomaml:.4f} {trunc:.4f} {binom:.4f}")
        2.0518 1.4893 0.1768
    """
    K, L, C, a = _check(steps, alpha_H, truncation, horizon, largest=math.inf)

    def trunc(order):
        return (1 + a) ** K - (1 + a) ** order  # (11b); order 0 is (11a)

    def binom(length):
        return sum(math.comb(length, i) * a**i for i in range(L + 1, length + 1))  # (11c)

    return ErrorBounds(trunc(0), trunc(L), binom(K), trunc(C) + binom(C))


def convex(
    steps: int, alpha_H: float, truncation: int, horizon: int | None = None, commuting: bool = False
) -> ErrorBounds:
    """Return the bounds of theorem 3.8, eq. (12): all eigenvalues of H^k lie in [0, H], and alpha <= 1/H.

    (12a) and (12b) as printed hold for commuting Hessians only; see the module. `fomaml` and `trunc` are attained.
    `binom` is not: at L = 0, where the two estimators are one, it is above `fomaml`.

    Args:
        steps: K.
        alpha_H: alpha H, at most 1.
        truncation: L, from 0 to K.
        horizon: C, from L to K; None: K.
        commuting: whether the Hessians commute, as those of a quadratic support loss do: the paper's formulas.

    Returns:
        `ErrorBounds`, to be multiplied by |g^K|.

    Raises:
        ValueError: an argument outside of these.

    Example:
        >>> print(f"{convex(steps=2, alpha_H=1.0, truncation=1).fomaml:.4f}")
        1.1547
        >>> convex(steps=2, alpha_H=1.0, truncation=1, commuting=True).fomaml
        1.0
    """
    K, L, C, a = _check(steps, alpha_H, truncation, horizon, largest=1.0)

    def trunc(order):
        return _deviation(0, K - order, a, 0.0, commuting)  # (12b); order 0 is (12a)

    def binom(length):
        return math.comb(length, L + 1) * a ** (L + 1)  # (12c)

    return ErrorBounds(trunc(0), trunc(L), binom(K), trunc(C) + binom(C))


def strongly_convex(
    steps: int,
    alpha_H: float,
    alpha_h: float,
    convex_steps: int,
    truncation: int,
    horizon: int | None = None,
    commuting: bool = False,
) -> ErrorBounds:
    """Return the bounds of theorem 3.10, eq. (13): eigenvalues in [-H, H], at the last M steps in [h, H]; alpha <= 1/H.

    Deviations: (13a) as printed holds for commuting Hessians only; see the module. The paper asks for
    M <= min(L, K - L); the proof of (13c) needs M <= K only, and (13b) is extended here to M > L. So M = 0 is `smooth`,
    and M = K with h = 0 is `convex`.

    Args:
        steps: K.
        alpha_H: alpha H, at most 1.
        alpha_h: alpha h, from 0 to alpha H.
        convex_steps: M, from 0 to K.
        truncation: L, from 0 to K.
        horizon: C, from L to K; None: K.
        commuting: whether the Hessians commute, as those of a quadratic support loss do: the paper's (13a).

    Returns:
        `ErrorBounds`, to be multiplied by |g^K|.

    Raises:
        ValueError: an argument outside of these.

    Example:
        >>> bounds = strongly_convex(steps=5, alpha_H=0.25, alpha_h=0.025, convex_steps=1, truncation=2)
        >>> print(f"{bounds.trunc:.4f} {bounds.binom:.4f}")
        1.1616 0.1585
    """
    K, L, C, a = _check(steps, alpha_H, truncation, horizon, largest=1.0)
    M = _whole("convex_steps", convex_steps, 0, K, "`steps`")
    ah = _real("alpha_h", alpha_h, a, "`alpha_H`")

    def trunc(order):
        last = min(M, order)  # of the factors that TruncMAML keeps, those with [h, H]
        kept = (1 + a) ** (order - last) * (1 - ah) ** last
        return _deviation(K - order - (M - last), M - last, a, ah, commuting) * kept  # (13b); order 0 is (13a)

    def binom(length):
        last = min(M, length)
        near = a ** (L + 1) * sum(math.comb(length - i, L) * (1 - ah) ** (i - 1) for i in range(1, last + 1))
        far = sum(math.comb(length - last, i) * a**i for i in range(L + 1, length - last + 1))
        return near + (1 - ah) ** last * far  # (13c)

    return ErrorBounds(trunc(0), trunc(L), binom(K), trunc(C) + binom(C))


def _deviation(free: int, curved: int, a: float, ah: float, commuting: bool) -> float:
    """Return the largest |P - I| of `free` factors with alpha H in [-a, a] and `curved` ones with it in [ah, a]."""
    if commuting:  # then P has real eigenvalues between these two
        return max((1 + a) ** free * (1 - ah) ** curved - 1, 1 - (1 - a) ** (free + curved))
    if curved == 0 or a == 0:
        return (1 + a) ** free - 1
    radius = (a - ah) / 2

    def distance(t, s):
        product = (1 + a * np.exp(1j * t)) ** free * (1 - ah - radius + radius * np.exp(1j * s)) ** curved
        return np.abs(1 - product)

    count = max(64, 16 * (free + curved))
    return _maximum(distance, count if free else 1, count if radius else 1)


def _maximum(function, rows: int, columns: int) -> float:
    """Return the maximum of a function of two angles, from every peak on a grid; 1 where an angle is idle."""
    width = 2 * np.pi / max(rows, columns)
    t, s = np.meshgrid(width * np.arange(rows), width * np.arange(columns), indexing="ij")
    values = function(t, s)
    neighbours = [np.roll(values, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    peaks = np.all([values >= other for other in neighbours], axis=0)
    t, s, width = t[peaks], s[peaks], np.full(peaks.sum(), width)
    offsets = np.array([(0, 0), *((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))])
    while width.max() > 1e-9:  # go to the best neighbour; where there is none better, look closer
        around = function(t[:, None] + np.outer(width, offsets[:, 0]), s[:, None] + np.outer(width, offsets[:, 1]))
        best = np.argmax(around, axis=1)
        t, s = t + width * offsets[best, 0], s + width * offsets[best, 1]
        width = np.where(best == 0, width / 2, width)
    return float(function(t, s).max())


def _check(steps, alpha_H, truncation, horizon, largest: float) -> tuple[int, int, int, float]:
    """Return (K, L, C, alpha H) or raise `ValueError`."""
    K = _whole("steps", steps, 1, None, "")
    L = _whole("truncation", truncation, 0, K, "`steps`")
    C = K if horizon is None else _whole("horizon", horizon, 0, K, "`steps`")
    if C < L:
        raise ValueError(
            f"`horizon` must be at least `truncation`. Received: truncation={L}, horizon={C}. "
            "Raise `horizon` or lower `truncation`."
        )
    return K, L, C, _real("alpha_H", alpha_H, largest, "alpha <= 1/H is assumed; else use `smooth`")


def _whole(name: str, value, low: int, high: int | None, what: str) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high} ({what})"
        raise ValueError(f"`{name}` must be a whole number {limit}. Received: {name}={value!r}.")
    return int(value)


def _real(name: str, value, high: float, what: str) -> float:
    if not 0 <= value <= high or not math.isfinite(value):
        limit = "not below 0" if high == math.inf else f"from 0 to {high:g} ({what})"
        raise ValueError(f"`{name}` must be a finite number {limit}. Received: {name}={value!r}.")
    return float(value)
