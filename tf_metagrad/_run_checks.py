"""Checks of the arguments of `mg.train`: each raises `ValueError` before anything is written or learned."""

import inspect
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_metagrad._checks import check_nonfinite, check_path
from tf_metagrad._meta_update import ON_NONFINITE
from tf_metagrad.estimators import Estimator
from tf_metagrad.inner._base import check_count
from tf_metagrad.learner import MetaLearner


def check_run(learner: Any, tasks: Any, directory: Any, callbacks: Any, preempted: Any, on_nonfinite: Any) -> None:
    """Raise unless the learner is compiled, and the others are of the kinds that `mg.train` names."""
    check_nonfinite(on_nonfinite, ON_NONFINITE)
    if not isinstance(learner, MetaLearner):
        raise ValueError(f"`learner` must be an mg.MetaLearner. Received: {type(learner).__name__}.")
    if getattr(learner, "optimizer", None) is None:
        raise ValueError("The learner must be compiled. Call learner.compile(optimizer=...) before mg.train.")
    if not isinstance(tasks, tf.data.Dataset) and not callable(tasks):
        raise ValueError(
            "`tasks` must be a tf.data.Dataset, or a function of the first batch's number that returns one. "
            f"Received: {type(tasks).__name__}."
        )
    if callable(tasks) and not _takes_one(tasks):
        raise ValueError("`tasks` must take the number of the first batch, tasks(start). Received: another signature.")
    if directory is not None:
        check_path("directory", directory, "a folder")
    if not isinstance(callbacks, Sequence) or not all(isinstance(c, keras.callbacks.Callback) for c in callbacks):
        raise ValueError(f"`callbacks` must be a list of Keras callbacks. Received: {callbacks!r}.")
    if not callable(preempted):
        raise ValueError(f"`preempted` must be a function without arguments. Received: {preempted!r}.")


def check_counts(checkpoint_steps: Any, **counts: Any) -> None:
    """Raise unless the counts are whole numbers of at least 1."""
    if checkpoint_steps is not None:
        counts["checkpoint_steps"] = checkpoint_steps
    for name, value in counts.items():
        check_count(name, value)


def checked_schedule(learner: MetaLearner, schedule: Any) -> dict[int, Estimator]:
    """Return the schedule, empty for None; raise unless each step has an estimator that the learner can use."""
    if schedule is None:
        return {}
    if not isinstance(schedule, Mapping):
        raise ValueError(
            f"`schedule` must map steps to estimators, such as {{0: FOMAML(), 1000: MAML()}}. Received: {schedule!r}."
        )
    for start, estimator in schedule.items():
        if not isinstance(start, numbers.Integral) or start < 0:
            raise ValueError(f"`schedule` must map steps, from 0 on, to estimators. Received the step: {start!r}.")
        learner.check_estimator(estimator)
    return dict(schedule)


def check_validation(learner: MetaLearner, validation: Any, count: int) -> None:
    """Raise where the first batch is not fit, rather than after the first epoch."""
    if not isinstance(validation, tf.data.Dataset | list | tuple):
        raise ValueError(
            "`validation` must be a tf.data.Dataset, or a list of batches, which is read after every epoch. "
            f"Received: {type(validation).__name__}."
        )
    batch = next(iter(validation), None)
    if batch is None:
        raise ValueError(f"`validation` must hold validation_count={count} tasks. Received: a stream without batches.")
    learner.check_tasks(batch)
    tasks = _count(validation)
    if tasks is not None and tasks < count:
        raise ValueError(
            f"`validation` must hold validation_count={count} tasks. Received: {tasks}. Lower `validation_count`, or "
            "use `.repeat()`."
        )


def _count(validation: Any) -> int | None:
    """Return the number of tasks; None where a dataset does not tell."""
    if not isinstance(validation, tf.data.Dataset):
        return sum(tf.nest.flatten(batch)[0].shape[0] for batch in validation)
    batches, shape = int(validation.cardinality()), tf.nest.flatten(validation.element_spec)[0].shape
    return batches * shape[0] if batches >= 0 and shape.rank and shape[0] else None


def checked_stream(tasks: Any, start: int) -> tf.data.Dataset:
    """Return the dataset from batch `start` on; raise where a function returned something else."""
    dataset = tasks(start) if callable(tasks) else tasks.skip(start)
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(
            f"`tasks` must return a tf.data.Dataset. Received: {type(dataset).__name__}, by tasks({start})."
        )
    return dataset


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    except ValueError:  # a function in C, whose signature is not known
        pass
    return True
