"""Meta-gradients for gradient-based meta-learning, in TensorFlow and Keras 3."""

from tf_metagrad import bounds, data, estimators, inner, models
from tf_metagrad._types import MetaGradient, Task
from tf_metagrad.bounds import estimate_smoothness
from tf_metagrad.evaluation import Evaluation
from tf_metagrad.export import export
from tf_metagrad.learner import MetaLearner
from tf_metagrad.training import train

__all__ = [
    "Evaluation",
    "MetaGradient",
    "MetaLearner",
    "Task",
    "bounds",
    "data",
    "estimate_smoothness",
    "estimators",
    "export",
    "inner",
    "models",
    "train",
]
