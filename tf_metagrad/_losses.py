"""The support and the query loss of one task, or of a stack of tasks, as pure functions of the adapting weights.

With `stacked=True` every tensor that belongs to a task has a leading axis of tasks.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._set_loss import SetLoss
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._types import Params, Task


class Query(NamedTuple):
    """Query loss, predictions, the gradient with respect to what was asked for, and the model's state afterwards.

    That is g^K, for all weights, unless said otherwise.
    """

    loss: tf.Tensor
    predictions: Any
    gradient: Params
    state: Params


class Losses:
    """The two losses around the meta-parameters theta.

    A list "for all weights" has an entry for each, and where it comes from the support loss for each of its features
    behind them, see `SetLoss`; those of the query loss stand last. `total` makes gradients of theta of any.

    Args:
        functions: the learner's `TaskFunctions`.
        theta: all trainable weights.
        state: the model's non-trainable state for the first step; with a leading axis where `stacked`.
        task: the data; with a leading axis where `stacked`.
        stacked: whether there is a leading axis of tasks.
        shares: `[tasks]`, where stacked: the factor of each task in a mean over the tasks; None leaves them alike.
    """

    def __init__(
        self, functions: TaskFunctions, theta: Params, state: Params, task: Task, stacked: bool,
        shares: tf.Tensor | None = None,
    ):  # fmt: skip
        """Store the parts; see the class."""
        self.functions, self.theta, self.state, self.task = functions, list(theta), list(state), task
        self.stacked, self.shares = stacked, shares
        self.shared = [i for i in range(len(self.theta)) if i not in set(functions.adapting)]
        self.offset: Params | None = None
        self.support = self._support()
        self.judged = self._query()

    # Weights -----------------------------------------------------------------------------------------------------

    def _support(self) -> SetLoss:
        return SetLoss(self.functions, self._theta(), self.state, self.task.support_x, self.task.support_y)

    def _query(self, cut: bool = False) -> SetLoss:
        """Return the query loss; its features come after those of the support set, and read no state that changes."""
        written, theta = self.support.written, ()
        cut = cut and written is not None
        if cut:
            theta = _tree.after(self.support.features, self._theta()) if self.support.features else self._theta()
        return SetLoss(self.functions, theta, self.state, *self.task[2:], cut, written or frozenset())

    def _theta(self) -> list[tf.Tensor]:
        """Return all weights of the initialisation, for each task where stacked."""
        theta = self.theta
        if self.stacked:
            count = tf.nest.flatten(self.task)[0].shape[0]
            theta = [tf.broadcast_to(t, [count, *t.shape]) for t in theta]
        return theta if self.offset is None else _tree.add(theta, self.offset)

    def adapting(self, full: Params) -> list[tf.Tensor]:
        """Return the entries of a full list that belong to weights that adapt."""
        return [full[i] for i in self.functions.adapting]

    def add_to_adapting(self, full: Params, part: Params) -> list[tf.Tensor]:
        """Return the full list with `part` added to the weights that adapt."""
        full = list(full)
        for index, p in zip(self.functions.adapting, part, strict=True):
            full[index] += p
        return full

    def merged(self, adapting: Params, shared: Params) -> list[tf.Tensor]:
        """Return the full list made of what belongs to weights that adapt and to those that don't."""
        return self.functions.merged(adapting, shared)

    def initial(self) -> list[tf.Tensor]:
        """Return phi^0: theta's adapting weights, repeated for each task where stacked."""
        return self.adapting(self._theta())

    @property
    def held(self) -> list[int]:
        """The indices of all that the support loss holds constant: the shared weights, and its features behind them."""
        count = len(self.theta)
        return [*self.shared, *range(count, count + len(self.support.features))]

    @property
    def features(self) -> list[tf.Tensor]:
        """The features of both sets, in the order of their gradients."""
        return [*self.support.features, *self.judged.features]

    def held_sum(self, support: Params, query: Params) -> list[tf.Tensor]:
        """Return the sum of two gradients by what is held: of the support loss, and of a query loss judged often."""
        count = len(self.shared)
        return [*_tree.add(support[:count], query[:count]), *support[count:], *query[count:]]

    def _full(self, phi: Params) -> list[tf.Tensor]:
        """Return all weights around phi; where stacked, the shared ones are repeated as well."""
        return self.merged(phi, self._shared_weights(phi))

    def _shared_weights(self, phi: Params) -> list[tf.Tensor]:
        """Return the weights that do not adapt, for as many tasks as phi has."""
        if self.offset is not None:
            full = self._theta()
            return [full[i] for i in self.shared]
        shared = [self.theta[i] for i in self.shared]
        return [tf.broadcast_to(t, [phi[0].shape[0], *t.shape]) for t in shared] if self.stacked else shared

    def fixed(self):
        """Return what the support loss depends on that is the same at every step."""
        weights, x, y = self.support.arguments(self._theta())
        return [weights[i] for i in self.held], x, y

    def total(self, gradients: Params) -> list[tf.Tensor]:
        """Return the gradients of theta, the mean over the tasks; what reached features goes on to shared weights."""
        count, own = len(self.theta), len(self.theta) + len(self.support.features)
        gradients, parts = list(gradients[:count]), (gradients[count:own], gradients[own:])
        for loss, reached in zip((self.support, self.judged), parts, strict=True):
            if reached:
                reached = _tree.after(gradients, reached)  # the activations before are gone by then
                for i, share in zip(self.shared, loss.pulled_back(reached), strict=True):
                    gradients[i] += share
        return self.mean(gradients)

    def mean(self, tensors: Params) -> list[tf.Tensor]:
        """Return the mean over the tasks, each multiplied by its share."""
        if self.shares is not None:
            tensors = _tree.scale(self.shares, tensors)
        return [_mean(t) for t in tensors] if self.stacked else list(tensors)

    # Derivatives -------------------------------------------------------------------------------------------------

    def support_gradient(self, phi: Params, state: Params, held_only: bool = False):
        """Return `(gradient, new_state, loss)` on the support set, for the adapting weights or what is `held`."""
        wrt = tuple(self.held if held_only else self.functions.adapting)
        weights, x, y = self.support.arguments(self._full(phi))
        loss, state, _, gradient = self.support.functions.support_gradient(weights, state, x, y, wrt)
        return gradient, state, loss

    def query(self, phi: Params, state: Params, wrt: tuple[int, ...] | None = None) -> Query:
        """Return loss, predictions and gradient g^K of the query loss, for all weights or those listed in `wrt`.

        Where it is judged often, the features of the query set follow the weights.
        """
        wrt = tuple(range(len(self.theta) + len(self.judged.features))) if wrt is None else wrt
        weights, x, y = self.judged.arguments(self._full(phi))
        loss, state, predictions, gradient = self.judged.functions.query_gradient(weights, state, x, y, wrt)
        return Query(loss, predictions, gradient, state)

    def query_of_held(self, phi: Params, state: Params) -> Query:
        """Return what `query` does, the gradient for the shared weights and the query features."""
        count = len(self.theta)
        return self.query(phi, state, (*self.shared, *range(count, count + len(self.judged.features))))

    def query_loss(self, phi: Params, state: Params, training: bool = True):
        """Return a `Query` without gradient; with `training=False`, as a served model predicts."""
        with tf.name_scope("query_loss"):
            _, (loss, state, predictions) = self.functions.loss(self._full(phi), state, *self.task[2:], training)
        return Query(loss, predictions, [], state)

    def hessian_product(self, phi: Params, state: Params, vector: Params):
        """Return the support gradient at phi and H v, for all weights; v has one tensor for each adapting one."""
        return self.curvature(phi, state, vector)[:2]

    def curvature(self, phi: Params, state: Params, vector: Params):
        """Return what `hessian_product` does, the new state, and the support loss."""
        weights, x, y = self.support.arguments(self._full(phi))
        return self.support.functions.curvature(weights, state, x, y, vector)


def _mean(t: tf.Tensor) -> tf.Tensor:
    """Return the mean along the first axis; XLA makes a division part of the sum, and float16 cannot."""
    return tf.reduce_mean(t, axis=0) if t.dtype == tf.float16 else tf.reduce_sum(t / t.shape[0], axis=0)
