"""Meta-gradients for gradient-based meta-learning, in TensorFlow and Keras 3."""

from tf_metagrad import _versions

_versions.check()

from tf_metagrad import bounds, data, estimators, inner, models, optimizers
from tf_metagrad._distribution import make_strategy
from tf_metagrad._table import Comparison
from tf_metagrad._threads import share_cores
from tf_metagrad._types import MetaGradient, Solution, Task
from tf_metagrad.bounds import estimate_smoothness
from tf_metagrad.comparison import compare_estimators
from tf_metagrad.evaluation import Evaluation
from tf_metagrad.export import export
from tf_metagrad.learner import MetaLearner
from tf_metagrad.recommendation import Recommendation, recommend
from tf_metagrad.training import Preempted, train

__all__ = [
    "Comparison",
    "Evaluation",
    "MetaGradient",
    "MetaLearner",
    "Preempted",
    "Recommendation",
    "Solution",
    "Task",
    "bounds",
    "compare_estimators",
    "data",
    "estimate_smoothness",
    "estimators",
    "export",
    "inner",
    "make_strategy",
    "models",
    "optimizers",
    "recommend",
    "share_cores",
    "train",
]
