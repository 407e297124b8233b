"""Runs functions of a `Problem` on each task of a batch."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad import _execution, _tree
from tf_metagrad._execution import Execution
from tf_metagrad._model import FunctionalModel
from tf_metagrad._problem import Problem
from tf_metagrad._short_products import short_products
from tf_metagrad._task_functions import TaskFunctions
from tf_metagrad._types import Snapshot, Task
from tf_metagrad.inner import AdaptingWeights, InnerOptimizer

_SEED = "seed_generator_state"  # the name that Keras gives to the state of its seed generators


class TaskRunner:
    """Makes the problems of a batch of tasks and runs them the chosen way.

    Args:
        model: a built Keras model.
        loss: `loss(y_true, y_pred)`.
        normalization: `"batch"`, `"stored"` or `"per_step"`, see `MetaLearner`.
        adapting: indices of the trainable variables that adapt.
        weights: what the inner optimiser needs to know of them.
        execution: how tasks are run.
        statistics: for `"per_step"`, the table of each average, by its index among the non-trainable variables.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable,
        normalization: str,
        adapting: list[int],
        weights: AdaptingWeights,
        execution: Execution,
        statistics: dict[int, keras.Variable],
    ):
        """Store the parts; see the class."""
        self.model, self.loss, self.normalization = model, loss, normalization
        self.adapting, self.weights, self.execution = list(adapting), weights, execution
        self.statistics = statistics
        self._functions: dict[tuple, TaskFunctions] = {}

    def functional(self, learning: bool, vectorized: bool = False, fused: bool = False) -> FunctionalModel:
        """Return the model and loss as pure functions, as they are in a meta-update or (not learning) in use."""
        kind = ("batch" if learning else "stored") if self.normalization == "per_step" else self.normalization
        return FunctionalModel(self.model, self.loss, kind, vectorized, fused, tuple(self.statistics))

    def functions(self, learning: bool, execution: Execution) -> TaskFunctions:
        """Return the gradient and HVP functions, made once for stacked and once for single tasks."""
        vectorized = execution.tasks == "vectorize"
        fused = not vectorized and not execution.jit_compile
        short = vectorized and execution.jit_compile and not tf.config.list_logical_devices("GPU")
        key = (vectorized, fused, short, learning or self.normalization != "per_step")
        if key not in self._functions:
            kernels = short_products if short else contextlib.nullcontext
            self._functions[key] = TaskFunctions(self.functional(learning, vectorized, fused), self.adapting, kernels)
        return self._functions[key]

    def state(self, step: int = 0) -> list[tf.Tensor]:
        """Return the model's state; with tables of averages, as it is for the given inner step."""
        state = [_tree.read(self.statistics.get(i, v)) for i, v in enumerate(self.model.non_trainable_variables)]
        return [*state, tf.constant(step)] if self.statistics else state

    def run(
        self,
        body: Callable,
        tasks: Task,
        seed: Any,
        snapshot: Snapshot,
        inner: InnerOptimizer,
        learning: bool = True,
        execution: Execution | None = None,
        shard: tuple[tf.Tensor | int, int] = (0, 1),
        shares: tf.Tensor | None = None,
    ):
        """Run `body(problem) -> (totals, outputs)` on each task; return the mean totals and the stacked outputs.

        Args:
            body: written in terms of a `Problem`.
            tasks: a batch of tasks.
            seed: an integer; the randomness of layers such as Dropout is a function of it and the task's index.
            snapshot: the weights, hyperparameters and state.
            inner: the inner optimiser.
            learning: whether this is part of a meta-update, or adaptation in use; they differ in what batch
                normalisation with averages for each step does.
            execution: another way to run than the runner's.
            shard: `(i, n)`: these tasks are the i-th of n equal parts of a batch, and draw what they would draw there.
            shares: `[tasks]`, the factor of each task in the mean; None leaves them alike.
        """
        execution = execution or self.execution
        theta, learned, state = snapshot
        seeded = [v.name == _SEED for v in self.model.non_trainable_variables] + [False] * bool(self.statistics)
        count = tf.nest.flatten(tasks)[0].shape[0]
        draw = functools.partial(_seeds, seed, count, shard, len(state) + 1)  # for each entry and the estimator
        functions = self.functions(learning, execution)
        make = functools.partial(
            Problem, functions, inner, self.weights, theta, learned, execution=execution, measured=not learning
        )
        if execution.tasks == "vectorize":
            own_seeds = draw() if any(seeded) else None
            stacked = [
                tf.cast(own_seeds[:, i], s.dtype) if seeded[i] else tf.broadcast_to(s, [count, *s.shape])
                for i, s in enumerate(state)
            ]
            own = {"state": stacked, "task": tasks, "draw_seed": lambda: draw()[:, -1]}
            return body(make(**own, stacked=True, shares=shares))

        def one(elements):
            task, own_seeds, *share = elements
            own = [tf.cast(own_seeds[i], s.dtype) if seeded[i] else s for i, s in enumerate(state)]
            totals, outputs = body(make(state=own, task=task, draw_seed=lambda: own_seeds[-1], stacked=False))
            return (_tree.scale(*share, totals) if share else totals), outputs

        elements = (tasks, draw()) if shares is None else (tasks, draw(), shares)
        return _execution.accumulate_over(one, elements, execution.tasks)


def _seeds(seed: Any, count: int, shard: tuple[tf.Tensor | int, int], entries: int) -> tf.Tensor:
    """Return `[count, entries, 2]`, the seeds of the tasks of a shard; see `TaskRunner.run`."""
    every = tf.random.stateless_uniform(
        [count * shard[1], entries, 2], tf.stack([tf.cast(seed, tf.int64), 0]), maxval=2**31 - 1, dtype=tf.int64,
        alg="philox",
    )  # fmt: skip
    return tf.ensure_shape(every[count * shard[0] :][:count], [count, entries, 2])
