"""How far an estimate of the meta-gradient can be from the exact one, and the constants that say so.

`smooth`, `convex` and `strongly_convex` bound FOMAML, TruncMAML, BinomMAML and BinomTruncMAML; `estimate_smoothness`
measures the alpha H they need. `forward_bias`, `symmetric_bias` and the `best_` perturbations are for FO-B-MAML. Where
a formula of a paper does not hold as printed, the docstring says so and the code has the one that does.
"""

from tf_metagrad.bounds._binomial import ErrorBounds, convex, smooth, strongly_convex
from tf_metagrad.bounds._perturbation import (
    BestPerturbation,
    MetaSmoothness,
    Regularity,
    best_forward,
    best_symmetric,
    forward_bias,
    meta_smoothness,
    symmetric_bias,
)
from tf_metagrad.bounds._smoothness import Smoothness, estimate_smoothness

__all__ = [
    "BestPerturbation",
    "ErrorBounds",
    "MetaSmoothness",
    "Regularity",
    "Smoothness",
    "best_forward",
    "best_symmetric",
    "convex",
    "estimate_smoothness",
    "forward_bias",
    "meta_smoothness",
    "smooth",
    "strongly_convex",
    "symmetric_bias",
]
