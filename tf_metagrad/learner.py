"""`MetaLearner`: a Keras model, a loss, an inner optimiser and a meta-gradient estimator."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tf_metagrad import _checks, _diagnostics, _execution, _tree
from tf_metagrad._adaptive_model import AdaptiveModel
from tf_metagrad._batches import TaskReader
from tf_metagrad._distribution import reduce_before_clipping
from tf_metagrad._ends import example_shape
from tf_metagrad._meta_update import MetaUpdate, Updated
from tf_metagrad._runner import TaskRunner
from tf_metagrad._types import MetaGradient, Snapshot, Task
from tf_metagrad.estimators import MAML, Estimator
from tf_metagrad.inner import AdaptingWeights, InnerOptimizer


class MetaLearner(AdaptiveModel):
    """Learns an initialisation of `model` that adapts to a task in a few gradient steps.

    The model is only ever called through `stateless_call`. Its weights change by the meta-optimizer and by nothing
    else; adaptation and evaluation leave no trace in it, nor in its batch-normalisation averages.

    Args:
        model: any built `keras.Model`.
        loss: `loss(y_true, y_pred)`, or a name that `keras.losses.get` knows.
        inner: the inner optimiser, e.g. `mg.inner.GradientDescent(steps=5, learning_rate=0.01)`.
        estimator: how the meta-gradient is computed; may be reassigned at any time.
        adapt: `"all"`, or the name or names of the layers that adapt (ANIL); the other weights are shared by all
            tasks and are trained by the meta-gradient only. What no adapting weight reaches is computed once for a
            task, see `_frozen`.
        normalization: `"batch"`: BatchNormalization uses the statistics of the batch at hand, in adaptation and in
            prediction, as MAML does, so predictions on a query set depend on the whole set. `"stored"`: it uses the
            model's stored averages. `"per_step"`: batch statistics in meta-training, where they update averages of
            each inner step and of the query pass (MAML++, Antoniou et al., 2019, arXiv:1810.09502); adaptation and
            prediction use those averages, so that a prediction does not depend on the rest of its batch.
        execution: `"auto"`, `"vectorize"`, `"map"` or `"loop"`: how the tasks of a batch are run.
        jit_compile: `"auto"`, True or False: whether XLA compiles the step.
        store_activations: `"auto"`, True or False: whether the inner loop stores its activations for the HVPs of MAML,
            TruncMAML, BinomMAML and BinomTruncMAML at the same points, which otherwise compute them again. That saves
            a third of an HVP's operations, and takes the memory of a support set's activations for every step.
            `"auto"` does so in nets of attention without XLA, where it was faster, if all weights adapt and the
            support sets of the steps are together no larger than the query set; and, without XLA, for the HVPs of
            IMAML, which are all at one point. The numbers are the same to rounding. A model with stateful operations
            cannot store (True logs a warning); the parallel HVPs of BinomMAML over vectorised tasks do not.

    Raises:
        ValueError: the model is not built, a layer does not exist, the estimator does not fit the inner optimiser.

    Example:
        >>> from tf_metagrad.inner import GradientDescent
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
        >>> learner = MetaLearner(model, loss="mse", inner=GradientDescent(steps=2, learning_rate=0.1))
        >>> x = tf.linspace([0.0], [1.0], 5)
        >>> weights = learner.adapt(x, 2 * x)
        >>> learner.predict_adapted(weights, x).shape
        TensorShape([5, 1])
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable | str,
        inner: InnerOptimizer,
        estimator: Estimator | None = None,
        adapt: str | Sequence[str] = "all",
        normalization: str = "batch",
        execution: str = "auto",
        jit_compile: bool | str = "auto",
        store_activations: bool | str = "auto",
        name: str = "meta_learner",
    ):
        """Check and store the parts; see the class."""
        super().__init__(name=name)
        _checks.check_model(model)
        if not isinstance(inner, InnerOptimizer):
            raise ValueError(f"`inner` must be an inner optimiser of `mg.inner`. Received: {inner!r}.")
        _checks.check_normalization(normalization, model, inner)
        self.model = model
        self.inner = inner
        expected = "`loss` must be a loss of `keras.losses`, its name, or a function loss(y_true, y_pred)"
        self.task_loss = _checks.known(keras.losses, loss, expected)
        adapting = _checks.adapting_indices(model, adapt)
        chosen = [model.trainable_variables[i] for i in adapting]
        self.adapting_weights = AdaptingWeights([tuple(v.shape) for v in chosen], _checks.layer_numbers(chosen))
        self.hyperparameters = [
            self.add_weight(name=key, shape=value.shape, initializer=_constant(value))
            for key, value in inner.initial_hyperparameters(self.adapting_weights).items()
        ]
        rows = inner.steps + 1  # one for each inner step, one for the query pass
        averages = _checks.batch_norm_averages(model) if normalization == "per_step" else []
        values = {i: np.stack([model.non_trainable_variables[i].numpy()] * rows) for i in averages}
        self.step_statistics = [
            self.add_weight(
                name=f"step_statistics_{i}",
                shape=v.shape,
                initializer=_constant(v),
                trainable=False,
                aggregation="mean",
            )
            for i, v in values.items()
        ]
        self.execution = _execution.choose(execution, jit_compile, model, store_activations)
        self._runner = TaskRunner(
            model, self.task_loss, normalization, adapting, self.adapting_weights, self.execution,
            dict(zip(averages, self.step_statistics, strict=True)),
        )  # fmt: skip
        self._reader = TaskReader(model, self.task_loss, self.ways)
        self._cache = types.SimpleNamespace(functions={})  # a namespace, because Keras would track a dict
        self._meta_update = MetaUpdate(self)
        self._estimator = None
        self.estimator = estimator or MAML()
        self.built = True

    @property
    def estimator(self) -> Estimator:
        """How the meta-gradient is computed."""
        return self._estimator

    @estimator.setter
    def estimator(self, value: Estimator) -> None:
        self.check_estimator(value)
        self._estimator = value

    def check_estimator(self, value: Estimator) -> None:
        """Raise `ValueError` unless `value` is an estimator that this learner can use."""
        if not isinstance(value, Estimator):
            raise ValueError(
                f"`estimator` must be a value such as mg.estimators.BinomMAML(truncation=2). Received: {value!r}."
            )
        value.check(self.inner)

    @property
    def meta_variables(self) -> list[keras.Variable]:
        """What the meta-optimizer trains: the model's trainable variables, then the learned hyperparameters."""
        return [*self.model.trainable_variables, *self.hyperparameters]

    @functools.cached_property
    def ways(self) -> int | None:
        """The number of classes where targets are class labels, else None."""
        sparse = isinstance(self.task_loss, keras.losses.SparseCategoricalCrossentropy) or (
            self.task_loss is keras.losses.sparse_categorical_crossentropy
        )
        shape = example_shape(self.model, "outputs") if sparse else None
        return shape[0] if shape is not None and len(shape) == 1 else None

    def call(self, inputs, training=False):
        """Return the predictions of the model at the initialisation, without adaptation."""
        return self.model(inputs, training=training) if self.model._call_has_training_arg else self.model(inputs)

    def compile(self, optimizer: Any = "adam", metrics: Any = None) -> None:
        """Set the meta-optimizer and the metrics of the query predictions, as in `keras.Model.compile`."""
        optimizer = _checks.known(
            keras.optimizers, optimizer, "`optimizer` must be an optimizer of `keras.optimizers` or its name"
        )
        _checks.check_metrics(metrics, self.ways)
        with self.distribute_strategy.scope():
            super().compile(optimizer=optimizer, metrics=metrics, jit_compile=False)
            self.optimizer.build(self.meta_variables)
        self._loss_tracker = None  # a run counts its losses itself; reading a tracker would sum it over the workers
        reduce_before_clipping(self.optimizer, self.distribute_strategy)
        self._meta_update = MetaUpdate(self)  # what was traced has the former optimizer and metrics
        self._meta_update.has_metrics = bool(metrics)

    # Running tasks -----------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the present weights, hyperparameters and state."""
        theta = [_tree.read(v) for v in self.model.trainable_variables]
        return Snapshot(theta, [_tree.read(v) for v in self.hyperparameters], self._runner.state())

    def run_tasks(self, body: Callable, tasks: Task, seed: Any, snapshot: Snapshot | None = None, **options: Any):
        """Run `body(problem)` on each task, at the present weights or those of a snapshot; see `TaskRunner.run`."""
        return self._runner.run(body, tasks, seed, snapshot or self.snapshot(), **{"inner": self.inner, **options})

    def use(self, body: Callable, tasks: Task, seed: Any, **options: Any):
        """Run `body(problem)` as `run_tasks` does, for adaptation in use rather than for a meta-update."""
        return self.run_tasks(body, tasks, seed, learning=False, **options)

    def estimate(self, tasks: Task, seed: Any, estimator: Estimator | None = None, **options: Any):
        """Return `(gradients, query losses, predictions, diagnostics, step statistics)`, all but the first by task.

        To be called while tracing a compiled step; the options are those of `run_tasks`.
        """

        def body(problem):
            estimate = (estimator or self.estimator).estimate(problem)
            return [*estimate.gradients, *estimate.hyperparameter_gradients], (
                estimate.query.loss, estimate.query.predictions, estimate.diagnostics,
                [estimate.query.state[i] for i in self._runner.statistics],
            )  # fmt: skip

        gradients, outputs = self.run_tasks(body, tasks, seed, **options)
        return gradients, *outputs

    def compiled_function(self, kind: str, key: Any, function: Callable) -> _execution.Compiled:
        """Return `function` compiled for this device, made once for each `(kind, key)`."""
        if (kind, key) not in self._cache.functions:
            self._cache.functions[kind, key] = _execution.Compiled(function, self.execution.jit_compile)
        return self._cache.functions[kind, key]

    def update(self, tasks: Task, seed: tf.Tensor, *args: Any, **options: Any) -> Updated:
        """Apply one compiled meta-update; see `MetaUpdate.run`."""
        return self._meta_update.run(tasks, seed, *args, **options)

    def prepare(self, tasks: Task, estimators: Sequence[Estimator]) -> None:
        """Trace what meta-updates on such tasks run, with each of the estimators; nothing is changed."""
        self._meta_update.prepare(tasks, tf.constant(0, tf.int64), list(estimators))

    # What users call ---------------------------------------------------------------------------------------------

    def meta_gradient(self, tasks: Task, seed: int = 0) -> MetaGradient:
        """Return the meta-gradient, the mean over a batch of tasks; nothing is changed.

        Args:
            tasks: a `Task` whose parts have a leading axis of tasks.
            seed: the randomness of layers such as Dropout is a function of it.

        Returns:
            `MetaGradient(gradients, loss, metrics, diagnostics)`, the gradients in the order of `meta_variables`. A
            solver that did not reach its tolerance is logged as a warning.

        Raises:
            ValueError: NaN in the data, labels outside of the ways, a support set that lacks a class.
            FloatingPointError: a task diverged; the message names it, and the step of the inner loop.
        """
        tasks = self.check_tasks(tasks)
        checked = self._meta_update.checked(tasks, _checks.as_seed(seed), f" with {self.estimator}")
        gradients, losses, predictions, diagnostics, _ = checked
        _diagnostics.check_learned_weight(self.inner, self.hyperparameters)
        for shortfall in _diagnostics.shortfalls(diagnostics, self.inner, self.estimator):
            logging.warning(shortfall)
        metrics = self.metrics_of(tasks.query_y, predictions)
        return MetaGradient(list(gradients), tf.reduce_mean(losses), metrics, diagnostics)

    def check_tasks(self, tasks: Task) -> Task:
        """Return the batch as tensors of the model's types; raise `ValueError` where it is not fit to learn from."""
        return self._reader.batch(tasks)

    def metrics_of(self, y_true: Any, y_pred: Any) -> dict[str, tf.Tensor]:
        """Return the compiled metrics of targets and predictions `[tasks, query, ...]`, all tasks taken together."""
        self.reset_metrics()
        self._meta_update.count_metrics(y_true, y_pred)
        return self._meta_update.metrics()

    def compiled_metrics(self, tasks: Task, predictions: Any) -> Callable:
        """Return `metrics_of` as one compiled function, for predictions like these."""
        return self._meta_update.compiled_metrics(tasks, predictions)

    def metrics_alone(self, y_true: Any, y_pred: Any) -> dict[str, tf.Tensor]:
        """Do what `metrics_of` does; the running values stay as they are."""
        return self._meta_update.metrics_alone(y_true, y_pred)

    def running_metrics(self) -> dict[str, tf.Tensor]:
        """Return the present values of the compiled metrics."""
        return self._meta_update.metrics()


def _constant(value: np.ndarray) -> keras.initializers.Initializer:
    return lambda shape, dtype=None: tf.constant(value, dtype, shape)
