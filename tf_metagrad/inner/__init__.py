"""Inner optimisers: how a task adapts its weights; one a file, interchangeable in `MetaLearner(inner=...)`."""

from tf_metagrad.inner._adam import Adam
from tf_metagrad.inner._base import AdaptingWeights, InnerOptimizer
from tf_metagrad.inner._gradient_descent import GradientDescent
from tf_metagrad.inner._momentum import Momentum
from tf_metagrad.inner._proximal import ProximalGradientDescent
from tf_metagrad.inner._rmsprop import RMSprop

__all__ = [
    "AdaptingWeights",
    "Adam",
    "GradientDescent",
    "InnerOptimizer",
    "Momentum",
    "ProximalGradientDescent",
    "RMSprop",
]
