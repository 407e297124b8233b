"""Meta-gradient estimators, one family per file, interchangeable in `MetaLearner(estimator=...)`."""

from tf_metagrad.estimators._base import Estimator
from tf_metagrad.estimators._binomial import BinomMAML, BinomTruncMAML
from tf_metagrad.estimators._esmaml import ESMAML
from tf_metagrad.estimators._fobmaml import FOBMAML, step_aware_perturbation
from tf_metagrad.estimators._fomaml import FOMAML
from tf_metagrad.estimators._imaml import IMAML
from tf_metagrad.estimators._maml import MAML, multi_step_schedule
from tf_metagrad.estimators._reptile import Reptile
from tf_metagrad.estimators._spec import parse, parse_schedule
from tf_metagrad.estimators._truncated import TruncMAML

__all__ = [
    "ESMAML",
    "FOBMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "BinomMAML",
    "BinomTruncMAML",
    "Estimator",
    "Reptile",
    "TruncMAML",
    "multi_step_schedule",
    "parse",
    "parse_schedule",
    "step_aware_perturbation",
]
