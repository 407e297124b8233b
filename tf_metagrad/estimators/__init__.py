"""Meta-gradient estimators, one family per file, interchangeable in `MetaLearner(estimator=...)`."""

from tf_metagrad.estimators._base import Estimator
from tf_metagrad.estimators._binomial import BinomMAML, BinomTruncMAML
from tf_metagrad.estimators._fomaml import FOMAML
from tf_metagrad.estimators._maml import MAML
from tf_metagrad.estimators._reptile import Reptile
from tf_metagrad.estimators._spec import parse, parse_schedule
from tf_metagrad.estimators._truncated import TruncMAML

__all__ = [
    "FOMAML",
    "MAML",
    "BinomMAML",
    "BinomTruncMAML",
    "Estimator",
    "Reptile",
    "TruncMAML",
    "parse",
    "parse_schedule",
]
