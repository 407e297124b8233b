"""The custom training loop: tf.data in, one compiled step, checkpoints, Keras callbacks, estimators on a schedule."""

import contextlib
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tf_metagrad import _diagnostics
from tf_metagrad._types import Task
from tf_metagrad.estimators import Estimator
from tf_metagrad.learner import MetaLearner

TaskStream = tf.data.Dataset | Callable[[int], tf.data.Dataset]


def train(
    learner: MetaLearner,
    tasks: TaskStream,
    steps: int,
    *,
    schedule: Mapping[int, Estimator] | None = None,
    epoch_steps: int = 100,
    validation: tf.data.Dataset | None = None,
    validation_count: int = 100,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    directory: str | os.PathLike | None = None,
    profile_steps: tuple[int, int] | None = None,
    keep: int = 3,
    seed: int = 0,
    verbose: int = 1,
) -> keras.callbacks.History:
    """Train the initialisation (and learned hyperparameters) of a compiled learner.

    Step s draws batch s of `tasks` and the seed `seed + s`; with a `directory` a second call, in this process or a
    new one, goes on from the last checkpoint and gives the numbers that an undisturbed run gives.

    Args:
        learner: compiled, see `MetaLearner.compile`.
        tasks: batches of tasks, without end; or `tasks(start) -> dataset` that begins at batch `start`, which spares
            a resumed run from drawing the batches it skips, e.g. `lambda start: mg.data.sinusoid(start=start)`.
        steps: number of meta-updates in all, those of earlier calls on the same `directory` included.
        schedule: estimator from each step on, e.g. `{0: FOMAML(), 1000: BinomMAML(1), 2000: MAML()}`; the optimizer
            keeps its state. Steps before the first entry use the learner's estimator, which is set again at the end.
        epoch_steps: meta-updates in an epoch: metrics are averaged over it; validation, checkpoint and
            `on_epoch_end` of the callbacks come at its end.
        validation: batches of tasks; the first `validation_count` are adapted to and judged after each epoch.
        validation_count: number of validation tasks.
        callbacks: Keras callbacks; their model is the learner. What they remember themselves, such as EarlyStopping's
            best value, begins anew with each call.
        directory: where checkpoints (`checkpoints/`) and TensorBoard scalars (`logs/`) go; None writes nothing.
        profile_steps: first and last step of a TensorBoard profile, the first step of this call being 1; needs a
            `directory`.
        keep: number of checkpoints kept.
        seed: see above.
        verbose: 1 shows a progress bar, 2 a line for each epoch, 0 nothing.

    Returns:
        The Keras `History`: metrics of each epoch of this call.

    Raises:
        ValueError: not compiled, an estimator that the learner cannot use, bad data, a stream that ends too early, a
            directory with the checkpoint of another learner.
        FloatingPointError: the query loss or the weights are not finite; the last checkpoint is intact.

    Example:
        >>> from tf_metagrad import data, inner, models
        >>> learner = MetaLearner(models.mlp(), "mse", inner.GradientDescent(steps=1, learning_rate=0.01))
        >>> learner.compile(keras.optimizers.Adam(1e-3))
        >>> history = train(learner, data.sinusoid(meta_batch=4), steps=4, epoch_steps=2, verbose=0)
        >>> len(history.history["loss"])
        2
    """
    _check(learner, tasks, steps, epoch_steps, profile_steps, directory)
    schedule = _checked_schedule(learner, schedule)
    manager, done = _restore(learner, directory, keep)
    logs_to = [] if directory is None else [_tensorboard(directory, profile_steps)]
    callbacks = keras.callbacks.CallbackList(
        [*callbacks, *logs_to], add_history=True, add_progbar=verbose != 0, model=learner,
        verbose=verbose, epochs=math.ceil(steps / epoch_steps), steps=epoch_steps,
    )  # fmt: skip
    stream = _stream(tasks, done, steps)
    learner.stop_training = False
    callbacks.on_train_begin()
    logs: dict[str, float] = {}
    with _swapping(learner, schedule) as swap:
        while done < steps and not learner.stop_training:
            epoch = done // epoch_steps
            stop = min(steps, (epoch + 1) * epoch_steps)
            callbacks.set_params(callbacks.params | {"steps": stop - epoch * epoch_steps})  # the last may be shorter
            callbacks.on_epoch_begin(epoch)
            done, logs = _run_epoch(learner, stream, swap, range(done, stop), epoch * epoch_steps, callbacks, seed)
            if validation is not None:
                result = learner.evaluate_tasks(validation, validation_count, seed=seed)
                logs |= {f"val_{name}": value for name, value in result.mean.items()}
            callbacks.on_epoch_end(epoch, logs)
            if manager is not None:  # after the callbacks, which may have changed the learning rate
                manager.checkpoint.step.assign(done)
                manager.save(checkpoint_number=done)
    callbacks.on_train_end(logs)
    return next(c for c in callbacks.callbacks if isinstance(c, keras.callbacks.History))


def _run_epoch(
    learner: MetaLearner, stream: Iterator[Task], swap: Callable[[int], None], steps: range, epoch_start: int,
    callbacks: keras.callbacks.CallbackList, seed: int,
) -> tuple[int, dict[str, float]]:  # fmt: skip
    """Run the given steps, or fewer where a callback stops; return the steps done and the metrics over these."""
    learner.reset_metrics()
    total, logs, warned = 0.0, {}, []
    for count, step in enumerate(steps, 1):
        swap(step)
        callbacks.on_train_batch_begin(step - epoch_start)
        losses, metrics, diagnostics = learner.update(_next(learner, stream, step), tf.constant(seed + step, tf.int64))
        where, failed = f" at step {step} with {learner.estimator}", diagnostics["inner_failed_step"]
        _diagnostics.check_finite_path(losses, failed, learner.inner, where, learner.estimator)
        if not warned and (warned := _diagnostics.shortfalls(diagnostics, learner.inner, learner.estimator)):
            logging.warning("Step %d: %s (Said once an epoch.)", step, " ".join(warned))
        total += float(tf.reduce_mean(losses))
        logs = {"loss": total / count, **{name: float(value) for name, value in metrics.items()}}
        callbacks.on_train_batch_end(step - epoch_start, logs)
        if learner.stop_training:
            break
    size = sum(float(tf.reduce_sum(tf.abs(v))) for v in learner.meta_variables)
    if not math.isfinite(size):
        raise FloatingPointError(
            f"The sum of the weights is {size} at step {step} with {learner.estimator}. Lower the inner learning rate "
            f"({learner.inner.learning_rate}) or the meta-optimizer's; checkpoints of earlier steps are intact."
        )
    _diagnostics.check_learned_weight(learner.inner, learner.hyperparameters)
    return step + 1, logs


@contextlib.contextmanager
def _swapping(learner: MetaLearner, schedule: Mapping[int, Estimator]) -> Iterator[Callable[[int], None]]:
    """Yield `swap(step)`, which sets the schedule's estimator for a step; put the learner's own back at the end."""
    own = learner.estimator

    def swap(step: int) -> None:
        starts = [start for start in schedule if start <= step]
        if starts:
            learner.estimator = schedule[max(starts)]

    try:
        yield swap
    finally:
        if schedule:
            learner.estimator = own


def _next(learner: MetaLearner, stream: Iterator[Task], step: int) -> Task:
    batch = next(stream, None)
    if batch is None:
        raise ValueError(
            f"`tasks` must hold a batch for every step. Received: a stream that ended at step {step}. "
            "Use `.repeat()`, or fewer `steps`."
        )
    return learner.check_tasks(batch)


def _check(learner, tasks, steps, epoch_steps, profile_steps, directory) -> None:
    if getattr(learner, "optimizer", None) is None:
        raise ValueError("The learner must be compiled. Call learner.compile(optimizer=...) before mg.train.")
    if not isinstance(tasks, tf.data.Dataset) and not callable(tasks):
        raise ValueError(
            "`tasks` must be a tf.data.Dataset, or a function of the first batch's number that returns one. "
            f"Received: {type(tasks).__name__}."
        )
    for name, value in (("steps", steps), ("epoch_steps", epoch_steps)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}.")
    window = profile_steps if isinstance(profile_steps, tuple | list) and len(profile_steps) == 2 else (0, 0)
    if profile_steps is not None and (directory is None or not 0 < window[0] <= window[1]):
        raise ValueError(
            "`profile_steps` must be (first, last) with 0 < first <= last, and needs a `directory`. "
            f"Received: profile_steps={profile_steps!r}, directory={directory!r}."
        )


def _checked_schedule(learner: MetaLearner, schedule: Mapping[int, Estimator] | None) -> dict[int, Estimator]:
    for start, estimator in (schedule or {}).items():
        if not isinstance(start, numbers.Integral) or start < 0:
            raise ValueError(f"`schedule` must map steps, from 0 on, to estimators. Received the step: {start!r}.")
        learner.check_estimator(estimator)
    return dict(schedule or {})


def _stream(tasks: TaskStream, start: int, steps: int) -> Iterator[Task]:
    dataset = tasks(start) if callable(tasks) else tasks.skip(start)
    return iter(dataset.take(max(steps - start, 0)))


def _restore(learner: MetaLearner, directory: Any, keep: int) -> tuple[tf.train.CheckpointManager | None, int]:
    """Return the checkpoint manager and the number of steps that the restored checkpoint has behind it."""
    if directory is None:
        return None, 0
    checkpoint = tf.train.Checkpoint(
        model=learner.model,
        hyperparameters=[variable.value for variable in [*learner.hyperparameters, *learner.step_statistics]],
        optimizer=learner.optimizer,
        step=tf.Variable(0, dtype=tf.int64),
    )
    manager = tf.train.CheckpointManager(checkpoint, os.path.join(directory, "checkpoints"), max_to_keep=keep)
    if manager.latest_checkpoint:
        try:
            checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"`directory` must be new or hold checkpoints of this learner. Received: {os.fspath(directory)!r}, "
                "with those of another model, inner optimiser or meta-optimizer. Choose another `directory`."
            ) from error
    return manager, int(checkpoint.step)


def _tensorboard(directory: Any, profile_steps: tuple[int, int] | None) -> keras.callbacks.Callback:
    return keras.callbacks.TensorBoard(
        os.path.join(directory, "logs"), write_graph=False, profile_batch=profile_steps or 0
    )
