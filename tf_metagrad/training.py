"""The custom training loop: tf.data in, one compiled step, checkpoints, Keras callbacks, estimators on a schedule."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

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
    """Train the initialisation (and learned rates) of a compiled learner.

    Step s draws batch s of `tasks` and the seed `seed + s`; with a `directory` a second call, in this process or a
    new one, goes on from the last checkpoint and gives the numbers that an undisturbed run gives.

    Args:
        learner: compiled, see `MetaLearner.compile`.
        tasks: batches of tasks, without end; or `tasks(start) -> dataset` that begins at batch `start`, which spares
            a resumed run from drawing the batches it skips, e.g. `lambda start: mg.data.sinusoid(start=start)`.
        steps: number of meta-updates in all, those of earlier calls on the same `directory` included.
        schedule: estimator from each step on, e.g. `{0: FOMAML(), 1000: BinomMAML(1), 2000: MAML()}`; the optimizer
            keeps its state. Steps before the first entry use the learner's estimator.
        epoch_steps: meta-updates in an epoch: metrics are averaged over it; validation, checkpoint and
            `on_epoch_end` of the callbacks come at its end.
        validation: batches of tasks; the first `validation_count` are adapted to and judged after each epoch.
        validation_count: number of validation tasks.
        callbacks: Keras callbacks; their model is the learner.
        directory: where checkpoints (`checkpoints/`) and TensorBoard scalars (`logs/`) go; None writes nothing.
        profile_steps: first and last step of a TensorBoard profile; needs a `directory`.
        keep: number of checkpoints kept.
        seed: see above.
        verbose: 1 shows a progress bar, 2 a line for each epoch, 0 nothing.

    Returns:
        The Keras `History`: metrics of each epoch of this call.

    Raises:
        ValueError: not compiled, an estimator that the learner cannot use, bad data, a stream that ends too early.
        FloatingPointError: the query loss is not finite; the last checkpoint is intact.

    Example:
        >>> from tf_metagrad import data, inner, models
        >>> learner = MetaLearner(models.mlp(), "mse", inner.GradientDescent(steps=1, learning_rate=0.01))
        >>> learner.compile(keras.optimizers.Adam(1e-3))
        >>> history = train(learner, data.sinusoid(meta_batch=4), steps=4, epoch_steps=2, verbose=0)
        >>> len(history.history["loss"])
        2
    """
    _check(learner, steps, epoch_steps, profile_steps, directory)
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
    while done < steps and not learner.stop_training:
        epoch = done // epoch_steps
        stop = min(steps, (epoch + 1) * epoch_steps)
        callbacks.on_epoch_begin(epoch)
        logs = _run_epoch(learner, stream, schedule, range(done, stop), callbacks, seed)
        if validation is not None:
            result = learner.evaluate_tasks(validation, validation_count, seed=seed)
            logs |= {f"val_{name}": value for name, value in result.mean.items()}
        done = stop
        if manager is not None:
            manager.checkpoint.step.assign(done)
            manager.save(checkpoint_number=done)
        callbacks.on_epoch_end(epoch, logs)
    callbacks.on_train_end(logs)
    return next(c for c in callbacks.callbacks if isinstance(c, keras.callbacks.History))


def _run_epoch(
    learner: MetaLearner, stream: Iterator[Task], schedule: Mapping[int, Estimator], steps: range,
    callbacks: keras.callbacks.CallbackList, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Run the given steps; return the metrics averaged over them."""
    learner.reset_metrics()
    total, logs = 0.0, {}
    for step in steps:
        learner.estimator = schedule[max(start for start in schedule if start <= step)]
        callbacks.on_train_batch_begin(step - steps.start)
        batch = next(stream, None)
        if batch is None:
            raise ValueError(
                f"`tasks` ended at step {step}, before steps={steps.stop}. Use `.repeat()`, or fewer steps."
            )
        batch = learner.check_tasks(batch)
        loss, metrics = learner.update(batch, tf.constant(seed + step, tf.int64))
        loss = float(loss)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The query loss is {loss} at step {step} with {learner.estimator}. Lower the inner learning rate "
                f"({learner.inner.learning_rate}) or the meta-optimizer's; the last checkpoint is intact."
            )
        total += loss
        logs = {"loss": total / (step - steps.start + 1), **{name: float(value) for name, value in metrics.items()}}
        callbacks.on_train_batch_end(step - steps.start, logs)
    return logs


def _check(learner, steps, epoch_steps, profile_steps, directory) -> None:
    if learner.optimizer is None:
        raise ValueError("The learner must be compiled. Call learner.compile(optimizer=...) before mg.train.")
    for name, value in (("steps", steps), ("epoch_steps", epoch_steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}.")
    if profile_steps is not None and (directory is None or not 0 < profile_steps[0] <= profile_steps[1]):
        raise ValueError(
            "`profile_steps` must be (first, last) with 0 < first <= last, and needs a `directory`. "
            f"Received: profile_steps={profile_steps!r}, directory={directory!r}."
        )


def _checked_schedule(learner: MetaLearner, schedule: Mapping[int, Estimator] | None) -> dict[int, Estimator]:
    for start, estimator in (schedule or {}).items():
        if not isinstance(start, int) or start < 0:
            raise ValueError(f"`schedule` must map steps, from 0 on, to estimators. Received the step: {start!r}.")
        learner.check_estimator(estimator)
    return {0: learner.estimator, **(schedule or {})}


def _stream(tasks: TaskStream, start: int, steps: int) -> Iterator[Task]:
    dataset = tasks(start) if callable(tasks) else tasks.skip(start)
    return iter(dataset.take(max(steps - start, 0)))


def _restore(learner: MetaLearner, directory: Any, keep: int) -> tuple[tf.train.CheckpointManager | None, int]:
    """Return the checkpoint manager and the number of steps that the restored checkpoint has behind it."""
    if directory is None:
        return None, 0
    checkpoint = tf.train.Checkpoint(
        model=learner.model,
        rates=[rate.value for rate in learner.rates],
        optimizer=learner.optimizer,
        step=tf.Variable(0, dtype=tf.int64),
    )
    manager = tf.train.CheckpointManager(checkpoint, os.path.join(directory, "checkpoints"), max_to_keep=keep)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
    return manager, int(checkpoint.step)


def _tensorboard(directory: Any, profile_steps: tuple[int, int] | None) -> keras.callbacks.Callback:
    return keras.callbacks.TensorBoard(
        os.path.join(directory, "logs"), write_graph=False, profile_batch=profile_steps or 0
    )
