"""The loss of one set of a problem: of all weights, or cut into features and a function of them, see `_frozen`."""

from typing import Any

import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._types import Params


class SetLoss:
    """The loss of a support or query set around one initialisation; where it is cut, the features are computed here.

    They stand behind the weights, in the arguments of `functions` and in the gradients that these return.

    Args:
        functions: gradients and HVP of the loss as a whole.
        theta: all weights; like the other arguments with a leading axis where tasks are stacked.
        state: the model's state.
        x: the examples.
        y: their targets.
        cut: whether to cut it where that can be done.
        changing: the indices of state that is another at every step, whether this loss changes it or not.

    Attributes:
        features: computed once, those with a derivative by shared weights.
        written: the indices of the state that the loss changes; None where that is not known.
    """

    def __init__(
        self, functions: TaskFunctions, theta: Params, state: Params, x: Any, y: Any, cut: bool = True,
        changing: frozenset[int] = frozenset(),
    ):  # fmt: skip
        """Compute the features; see the class."""
        self._given, self.features, self._constants = (list(theta), list(state), x, y), [], []
        self._frozen, self.written = functions.frozen(*self._given, changing) if cut else (None, None)
        self.functions = self._frozen.functions if self._frozen else functions
        if self._frozen:
            self.features, self._constants = self._frozen.features(*self._given)

    def arguments(self, weights: Params, copies: int = 1):
        """Return `(weights, x, y)` for `functions`; stacked tasks may be repeated, as the weights are then."""
        values = self._given[2:], self.features, self._constants
        if copies > 1:
            values = tf.nest.map_structure(lambda t: tf.concat([t] * copies, 0), values)
        (x, y), features, constants = values
        return [*weights, *features], (x, constants) if self._frozen else x, y

    def widened(self, gradients: Params) -> list[tf.Tensor]:
        """Return gradients of all weights by a loss without features, with zeros for the features of this one."""
        return [*gradients, *_tree.zeros_like(self.features)]

    def pulled_back(self, gradients: Params) -> list[tf.Tensor]:
        """Return the share of the weights that do not adapt in what reached the features, `(dz/dpsi)^T v`."""
        return self._frozen.pulled_back(*self._given, gradients)
