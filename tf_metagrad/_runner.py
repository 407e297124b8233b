"""Runs functions of a `Problem` on each task of a batch."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _execution
from tf_metagrad._execution import Execution
from tf_metagrad._model import FunctionalModel
from tf_metagrad._problem import Problem
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._types import Params, Task
from tf_metagrad.inner import AdaptingWeights, InnerOptimizer

_SEED = "seed_generator_state"  # the name that Keras gives to the state of its seed generators


class TaskRunner:
    """Makes the problems of a batch of tasks and runs them the chosen way.

    Args:
        model: a built Keras model.
        loss: `loss(y_true, y_pred)`.
        normalization: `"batch"` or `"stored"`, see `_model.batch_normalization_statistics`.
        adapting: indices of the trainable variables that adapt.
        weights: what the inner optimiser needs to know of them.
        execution: how tasks are run.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable,
        normalization: str,
        adapting: list[int],
        weights: AdaptingWeights,
        execution: Execution,
    ):
        """Store the parts; see the class."""
        self.model, self.loss, self.normalization = model, loss, normalization
        self.adapting, self.weights, self.execution = list(adapting), weights, execution
        self._functions: dict[bool, TaskFunctions] = {}

    def functional(self, vectorized: bool = False) -> FunctionalModel:
        """Return the model and loss as pure functions."""
        return FunctionalModel(self.model, self.loss, self.normalization, vectorized)

    def functions(self, execution: Execution) -> TaskFunctions:
        """Return the gradient and HVP functions, made once for stacked and once for single tasks."""
        vectorized = execution.tasks == "vectorize"
        if vectorized not in self._functions:
            self._functions[vectorized] = TaskFunctions(self.functional(vectorized), self.adapting)
        return self._functions[vectorized]

    def run(
        self,
        body: Callable,
        tasks: Task,
        seed: Any,
        theta: Params,
        learned: Params,
        inner: InnerOptimizer,
        execution: Execution | None = None,
    ):
        """Run `body(problem) -> (totals, outputs)` on each task; return the mean totals and the stacked outputs.

        Args:
            body: written in terms of a `Problem`.
            tasks: a batch of tasks.
            seed: an integer; the randomness of layers such as Dropout is a function of it and the task's index.
            theta: the trainable weights.
            learned: the learned hyperparameters.
            inner: the inner optimiser.
            execution: another way to run than the runner's.
        """
        execution = execution or self.execution
        state = [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        seeded = [v.name == _SEED for v in self.model.non_trainable_variables]
        count = tf.nest.flatten(tasks)[0].shape[0]
        seeds = tf.random.stateless_uniform(
            [count, len(state) + 1, 2],
            tf.stack([tf.cast(seed, tf.int64), 0]),
            maxval=2**31 - 1,
            dtype=tf.int64,
            alg="philox",
        )
        functions = self.functions(execution)
        make = functools.partial(Problem, functions, inner, self.weights, theta, learned, execution=execution)
        if execution.tasks == "vectorize":
            stacked = [
                tf.cast(seeds[:, i], s.dtype) if seeded[i] else tf.broadcast_to(s, [count, *s.shape])
                for i, s in enumerate(state)
            ]
            return body(make(state=stacked, task=tasks, seed=seeds[:, -1], stacked=True))

        def one(elements):
            task, own_seeds = elements
            own = [tf.cast(own_seeds[i], s.dtype) if seeded[i] else s for i, s in enumerate(state)]
            return body(make(state=own, task=task, seed=own_seeds[-1], stacked=False))

        return _execution.accumulate_over(one, (tasks, seeds), execution.tasks)
