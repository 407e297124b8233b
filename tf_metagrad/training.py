"""The custom training loop: tf.data in, one compiled step, checkpoints, Keras callbacks, estimators on a schedule."""

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import tensorflow as tf
from absl import logging

from tf_metagrad._checkpoints import Checkpoints
from tf_metagrad._checks import as_seed
from tf_metagrad._cluster import Workers
from tf_metagrad._epochs import Epochs, Preempted, next_batch
from tf_metagrad._run_checks import check_counts, check_run, check_validation, checked_schedule, checked_stream
from tf_metagrad._tensorboard import StepScalars, TensorBoard, check_shown
from tf_metagrad._types import Task
from tf_metagrad.estimators import Estimator
from tf_metagrad.learner import MetaLearner

__all__ = ["Preempted", "train"]

TaskStream = tf.data.Dataset | Callable[[int], tf.data.Dataset]


def train(
    learner: MetaLearner,
    tasks: TaskStream,
    steps: int,
    *,
    schedule: Mapping[int, Estimator] | None = None,
    epoch_steps: int = 100,
    checkpoint_steps: int | None = None,
    validation: tf.data.Dataset | None = None,
    validation_count: int = 100,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    directory: str | os.PathLike | None = None,
    profile_steps: tuple[int, int] | None = None,
    log_steps: int | None = None,
    reference_estimator: Estimator | None = None,
    keep: int = 3,
    on_nonfinite: str = "raise",
    preempted: Callable[[], bool] = lambda: False,
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
        checkpoint_steps: meta-updates between checkpoints within an epoch; None writes them at its end only.
        validation: batches of tasks; the first `validation_count` are adapted to and judged after each epoch.
        validation_count: number of validation tasks.
        callbacks: Keras callbacks; their model is the learner. What they remember themselves, such as EarlyStopping's
            best value, begins anew with each call.
        directory: where checkpoints (`checkpoints/`) and TensorBoard scalars (`logs/`) go; None writes nothing.
        profile_steps: first and last step of a TensorBoard profile, the first step of this call being 1; needs a
            `directory`.
        log_steps: meta-updates between per-step scalars in TensorBoard (time, memory, gradient norm, query loss and
            metrics before and after adaptation); None writes none. They change no number of the run.
        reference_estimator: the scalars also hold the cosine of the meta-gradient to this estimator's.
        keep: number of checkpoints kept.
        on_nonfinite: what becomes of a task whose loss, adapted weights or gradient is not finite: `"raise"` an error
            that names it, before anything is changed, or `"skip"` it: it is named in the log, counted as
            `skipped_tasks` (`val_skipped_tasks`), and kept out of gradient, loss and metrics. Where it is the last of
            its batch, the step changes nothing.
        preempted: asked after every step, and before every batch of the validation; where it returns True, a
            checkpoint is written at once, in the middle of the epoch, and `Preempted` is raised. Of several workers all
            stop where one of them is asked to.
        seed: see above.
        verbose: 1 shows a progress bar, 2 a line for each epoch, 0 nothing.

    Returns:
        The Keras `History`: metrics of each epoch of this call.

    Raises:
        ValueError: not compiled, an estimator that the learner cannot use, bad data, a stream that ends too early, a
            directory with the checkpoint of another learner, inner optimiser or seed. All but a later batch of the
            stream is looked at before the first step.
        FloatingPointError: a task diverged, or the weights are not finite; the last checkpoint is intact.
        OSError: the `directory` cannot be written, or is full; the last checkpoint is intact.
        ConnectionError: another worker was lost; the last checkpoint is intact.
        Preempted: see `preempted`.

    Example:
        >>> from tf_metagrad import data, inner, models
        >>> learner = MetaLearner(models.mlp(), "mse", inner.GradientDescent(steps=1, learning_rate=0.01))
        >>> learner.compile(keras.optimizers.Adam(1e-3))
        >>> history = train(learner, data.sinusoid(meta_batch=4), steps=4, epoch_steps=2, verbose=0)
        >>> len(history.history["loss"])
        2
    """
    check_run(learner, tasks, directory, callbacks, preempted, on_nonfinite)
    check_counts(checkpoint_steps, steps=steps, epoch_steps=epoch_steps, validation_count=validation_count, keep=keep)
    check_shown(learner, directory, profile_steps, log_steps, reference_estimator)
    seed, schedule = int(as_seed(seed)), checked_schedule(learner, schedule)
    workers = Workers(learner.distribute_strategy)
    checkpoints = Checkpoints(learner, directory, keep, seed)
    stream = _prepare(learner, tasks, checkpoints, steps, schedule)
    if validation is not None:
        check_validation(learner, validation, validation_count)
    shown = (learner, directory, log_steps, reference_estimator, workers.is_chief)
    scalars = StepScalars(*shown) if log_steps else None
    if profile_steps and profile_steps[0] > steps - checkpoints.step:
        logging.warning("profile_steps=%s traces nothing: %d steps are left.", profile_steps, steps - checkpoints.step)
    logs_to = [] if directory is None or not workers.is_chief else [TensorBoard(directory, profile_steps)]
    callbacks = keras.callbacks.CallbackList(
        [*callbacks, *logs_to], add_history=True, add_progbar=verbose != 0, model=learner,
        verbose=verbose, epochs=math.ceil(steps / epoch_steps), steps=epoch_steps,
    )  # fmt: skip
    learner.stop_training = False
    callbacks.on_train_begin()
    with _swapping(learner, schedule) as swap:
        epochs = Epochs(
            learner, checkpoints, stream, swap, callbacks, steps, epoch_steps, checkpoint_steps, validation,
            validation_count, on_nonfinite, lambda: any(workers.gather(int(preempted()))), seed, scalars,
        )  # fmt: skip
        logs = epochs.run()
    callbacks.on_train_end(logs)
    return next(c for c in callbacks.callbacks if isinstance(c, keras.callbacks.History))


def _prepare(
    learner: MetaLearner, tasks: TaskStream, checkpoints: Checkpoints, steps: int, schedule: Mapping[int, Estimator]
) -> Iterator[Task]:
    """Return the batches that are left, after a look at the next one with every estimator that is left."""
    done = checkpoints.step
    if done >= steps and not checkpoints.progress.open:
        return iter(())
    start = min(done, steps - 1)
    stream = iter(checked_stream(tasks, start).take(max(steps - start, 0)))
    first = next_batch(stream, start, learner.check_tasks)
    ahead = [estimator for begin, estimator in schedule.items() if begin > start]
    with _swapping(learner, schedule) as swap:
        swap(start)
        learner.prepare(first, list(dict.fromkeys([learner.estimator, *ahead])))
    return itertools.chain([first], stream) if done < steps else stream


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
