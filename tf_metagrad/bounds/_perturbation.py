"""Bias of FO-B-MAML and smoothness of its objective: propositions 2 and 3, corollary 1 and appendix C of the paper.

| letter           | name               | meaning                                                                  |
|------------------|--------------------|--------------------------------------------------------------------------|
| f, f-hat         | -                  | query loss, support loss                                                 |
| lambda           | `proximal_weight`  | weight of the proximal term                                              |
| nu               | `perturbation`     | step of the finite difference                                            |
| delta            | `precision`        | largest error of an inner solution, eq. (15)                             |
| z(nu)            | -                  | phi*_nu, minimises nu f + f-hat + lambda/2 |phi - theta|^2, eq. (10)     |
| mu               | `mu`               | convexity: f-hat + lambda/2 |phi|^2 is mu-strongly convex                |
| L_0, L_1, L_2    | `L0`, `L1`, `L2`   | bounds of the first, second and third derivative of f                    |
| L-hat_2, L-hat_3 | `L2_hat`, `L3_hat` | bounds of the third and fourth derivative of f-hat                       |

All is stated in mu; the paper's lambda >= 2 L-hat_1 in C.2 and C.4 is the case mu = lambda / 2. The bounds of
derivatives are needed where the path z runs; those of `meta_smoothness` everywhere.

Corrections to the paper, each with its test in tests/test_bounds_perturbation.py:

* Forward bias, by (25) and (26): lambda L_0 / mu^2 (L_1 + L_0 L-hat_2 / (2 mu)) nu. At mu = lambda / 2 that is four
  times what stands above (27), which lost the factors 2 of both; it is attained for small nu. In (18) and (19) a factor
  L_0 / mu or more is missing: their units do not match.
* Inexact inner solutions add 2 lambda delta / nu to the forward and lambda delta / nu to the symmetric bias: (27) lost
  the lambda, (32) is right. So the best forward nu is not the one after (27).
* Off nu = 0 the matrix A of (28) is only (mu - |nu| L_1)-convex. So the constants depend on nu, and the path is known
  to exist for |nu| < mu / L_1; the paper has mu / L-hat_1.
* C_3, which (30) leaves implicit, is to bound z'''. At nu != 0 that needs a fourth derivative of f, which is not
  assumed. But the expansion (31) needs no more than |z''(s) - z''(-s)| <= 2 s C_3, which follows without; see `_third`.
* Proposition 3: the smoothness is (lambda/mu)^2 (L_1 + L-hat_2 / lambda |grad F|): 4 at mu = lambda / 2, where C.4
  has 1/4.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class Regularity(NamedTuple):
    """What is known of a task's losses; letters as in the paper, see the module.

    Attributes:
        proximal_weight: lambda.
        mu: lambda - L-hat_1 if the support loss is L-hat_1-smooth; lambda if it is convex; lambda + h if it is
            h-strongly convex.
        L0: largest norm of the query gradient.
        L1: largest norm of the query Hessian.
        L2_hat: largest norm of the support loss's third derivative; 0 if quadratic.
        L2: largest norm of the query loss's third derivative; the symmetric scheme needs it.
        L3_hat: largest norm of the support loss's fourth derivative; the symmetric scheme needs it.
    """

    proximal_weight: float
    mu: float
    L0: float
    L1: float
    L2_hat: float
    L2: float | None = None
    L3_hat: float | None = None


class BestPerturbation(NamedTuple):
    """The perturbation nu at which a bound of the total bias is least, and that bound."""

    perturbation: float
    bias: float


class MetaSmoothness(NamedTuple):
    """The meta-gradient's Lipschitz constant near theta is at most `constant + slope * |grad F(theta)|`.

    Attributes:
        constant: script L_0.
        slope: script L_1.
        lipschitz: constant + slope * G with G = lambda L_0 / mu >= |grad F|: one for all theta.
    """

    constant: float
    slope: float
    lipschitz: float


def forward_bias(regularity: Regularity, perturbation: float, precision: float = 0.0) -> float:
    """Return the bound of eq. (27), corrected, on |forward estimate - meta-gradient|; see the module.

    lambda L_0 / mu^2 (L_1 + L_0 L-hat_2 / (2 mu)) nu + 2 lambda delta / nu.

    Args:
        regularity: the constants of the losses.
        perturbation: nu, positive.
        precision: delta, the largest error of either inner solution.

    Raises:
        ValueError: a constant is negative or missing; `perturbation` is not positive.

    Example:
        >>> losses = Regularity(proximal_weight=2.0, mu=2.0, L0=1.0, L1=1.0, L2_hat=0.0)
        >>> forward_bias(losses, perturbation=0.01)
        0.005
    """
    _check(regularity, precision, perturbation)
    return _forward_slope(regularity) * perturbation + 2 * regularity.proximal_weight * precision / perturbation


def best_forward(regularity: Regularity, precision: float) -> BestPerturbation:
    """Return nu = sqrt(2 lambda delta / slope) and the bias 2 sqrt(2 lambda delta slope) there: corollary 1.

    `slope` is the factor of nu in `forward_bias`. Where it is 0 (linear query, quadratic support loss), nu is infinite.

    Args:
        regularity: the constants of the losses.
        precision: delta, positive.

    Raises:
        ValueError: a constant is negative or missing; `precision` is not positive.

    Example:
        >>> losses = Regularity(proximal_weight=2.0, mu=2.0, L0=1.0, L1=1.0, L2_hat=0.0)
        >>> print("nu = %.4f, bias = %.4f" % best_forward(losses, precision=1e-6))
        nu = 0.0028, bias = 0.0028
    """
    _check(regularity, precision)
    slope, solver = _forward_slope(regularity), 2 * regularity.proximal_weight * precision
    if slope == 0:
        return BestPerturbation(math.inf, 0.0)
    return BestPerturbation(math.sqrt(solver / slope), 2 * math.sqrt(solver * slope))


def symmetric_bias(regularity: Regularity, perturbation: float, precision: float = 0.0) -> float:
    """Return the bound of eq. (32), lambda nu^2 C_3 / 6 + lambda delta / nu, with C_3 = C_3(nu) as in the module.

    Args:
        regularity: the constants of the losses, `L2` and `L3_hat` included.
        perturbation: nu, positive and below mu / L_1.
        precision: delta, the largest error of either inner solution.

    Raises:
        ValueError: a constant is negative or missing; `perturbation` is out of range.

    Example:
        >>> losses = Regularity(proximal_weight=2.0, mu=2.0, L0=1.0, L1=1.0, L2_hat=0.0, L2=0.0, L3_hat=0.0)
        >>> print(f"{symmetric_bias(losses, perturbation=0.01):.2e}")
        2.55e-05
    """
    _check(regularity, precision, perturbation, symmetric=True)
    r, nu = regularity, perturbation
    if nu * r.L1 >= r.mu:
        raise ValueError(
            f"`perturbation` must be below mu / L1 = {r.mu / r.L1:g}, where the inner problem may cease to be convex. "
            f"Received: perturbation={nu!r}. Lower it, or raise the proximal weight."
        )
    return r.proximal_weight * (nu**2 * _third(r, nu) / 6 + precision / nu)


def best_symmetric(regularity: Regularity, precision: float) -> BestPerturbation:
    """Return the nu at which `symmetric_bias` is least, and the bias there: corollary 1, eq. (33).

    With C_3 constant that is nu = (3 delta / C_3)^(1/3) and lambda/2 (3 delta)^(2/3) C_3^(1/3). C_3 grows with nu, so
    the best nu is below the one of C_3(0); it is found numerically. The bound has one minimum: all its terms but
    delta / nu are power series of nu with coefficients that are not negative.

    Args:
        regularity: the constants of the losses, `L2` and `L3_hat` included.
        precision: delta, positive.

    Raises:
        ValueError: a constant is negative or missing; `precision` is not positive.

    Example:
        >>> losses = Regularity(proximal_weight=2.0, mu=2.0, L0=1.0, L1=1.0, L2_hat=0.0, L2=0.0, L3_hat=0.0)
        >>> print("nu = %.4f, bias = %.6f" % best_symmetric(losses, precision=1e-6))
        nu = 0.0157, bias = 0.000191
    """
    _check(regularity, precision, symmetric=True)
    third = _third(regularity, 0.0)
    if third == 0:
        return BestPerturbation(math.inf, 0.0)
    limit = regularity.mu / regularity.L1 if regularity.L1 else math.inf
    highest = min((3 * precision / third) ** (1 / 3), limit)
    nu = _golden_section(lambda nu: symmetric_bias(regularity, nu, precision), highest)
    return BestPerturbation(nu, symmetric_bias(regularity, nu, precision))


def meta_smoothness(regularity: Regularity) -> MetaSmoothness:
    """Return the generalised smoothness of F(theta) = f(phi*(theta)): proposition 3, corrected; see the module.

    |grad F(theta) - grad F(theta')| <= (lambda/mu)^2 (L_1 + L-hat_2 / lambda |grad F|) |theta - theta'|, with the
    smaller of the two meta-gradients. The slope is why clipped and normalised meta-gradients are stable.

    Args:
        regularity: the constants of the losses.

    Raises:
        ValueError: a constant is negative or missing.

    Example:
        >>> meta_smoothness(Regularity(proximal_weight=2.0, mu=1.0, L0=1.0, L1=1.0, L2_hat=0.5))
        MetaSmoothness(constant=4.0, slope=1.0, lipschitz=6.0)
    """
    _check(regularity, precision=1.0)
    ratio = regularity.proximal_weight / regularity.mu
    constant, slope = ratio**2 * regularity.L1, ratio**2 * regularity.L2_hat / regularity.proximal_weight
    return MetaSmoothness(constant, slope, constant + slope * ratio * regularity.L0)


def _forward_slope(r: Regularity) -> float:
    """Return the factor of nu in the forward bias: (25) with |z(nu) - z(0)| <= nu L_0 / mu for (26)."""
    return r.proximal_weight * r.L0 / r.mu**2 * (r.L1 + r.L0 * r.L2_hat / (2 * r.mu))


def _third(r: Regularity, nu: float) -> float:
    """Return C_3 with |z''(s) - z''(-s)| <= 2 s C_3 for 0 <= s <= nu.

    By (28), (29): A z' = -grad f and A z'' = -2 f'' z' - (f-hat''' + nu f''') z'^2. Let z'' = y + w with
    A w = -nu f''' z'^2, so |w| <= s L_2 C_1^2 / mu, and differentiate A y = -2 f'' z' - f-hat''' z'^2 once more:

        A y' = -[ (f'' + (f-hat''' + nu f''') z') y + 2 f'' z'' + 2 f''' z'^2 + 2 f-hat''' z' z'' + f-hat'''' z'^3 ].

    C_3 bounds |y'| + |w| / s, with C_1, C_2 of (30) for |z'| and for |z''|, |y|.
    """
    mu = r.mu - nu * r.L1
    c1 = r.L0 / mu
    c2 = (2 * r.L1 * c1 + (nu * r.L2 + r.L2_hat) * c1**2) / mu
    curvature = r.L1 + r.L2_hat * c1
    return (3 * curvature * c2 + nu * r.L2 * c1 * c2 + 3 * r.L2 * c1**2 + r.L3_hat * c1**3) / mu


def _golden_section(function: Callable, high: float) -> float:
    """Return the minimiser in (0, high) of a function with one minimum."""
    low, ratio = 0.0, (math.sqrt(5) - 1) / 2
    for _ in range(100):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if function(a) < function(b) else (a, high)
    return (low + high) / 2


def _check(r: Regularity, precision: float, perturbation: float | None = None, symmetric: bool = False) -> None:
    """Raise `ValueError` unless all is in range; exact inner solutions (`precision` 0) have no best perturbation."""
    for name, value in r._asdict().items():
        if value is None and symmetric:
            raise ValueError(f"The symmetric scheme needs `{name}`. Received: {name}=None. Set it in `Regularity`.")
        positive = name in ("proximal_weight", "mu")
        if value is not None and not ((value > 0 or (value == 0 and not positive)) and math.isfinite(value)):
            needed = "positive; raise the proximal weight" if positive else "0 or more"
            raise ValueError(f"`{name}` must be finite and {needed}. Received: {name}={value!r}.")
    if perturbation is not None and not 0 < perturbation < math.inf:
        raise ValueError(f"`perturbation` must be a positive number. Received: perturbation={perturbation!r}.")
    if not 0 <= precision < math.inf or (precision == 0 and perturbation is None):
        needed = "positive: with exact inner solutions smaller perturbations are always better"
        needed = needed if perturbation is None else "a number not below 0"
        raise ValueError(f"`precision` must be {needed}. Received: precision={precision!r}.")
