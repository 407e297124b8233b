"""Meta-gradients for gradient-based meta-learning, in TensorFlow and Keras 3."""

from tf_metagrad import data, estimators, inner, models
from tf_metagrad._table import Comparison
from tf_metagrad._types import MetaGradient, Task
from tf_metagrad.comparison import compare_estimators
from tf_metagrad.evaluation import Evaluation
from tf_metagrad.export import export
from tf_metagrad.learner import MetaLearner
from tf_metagrad.recommendation import Recommendation, recommend
from tf_metagrad.training import train

__all__ = [
    "Comparison",
    "Evaluation",
    "MetaGradient",
    "MetaLearner",
    "Recommendation",
    "Task",
    "compare_estimators",
    "data",
    "estimators",
    "export",
    "inner",
    "models",
    "recommend",
    "train",
]
