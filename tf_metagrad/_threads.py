"""How many cores one operation may take, where tasks run side by side."""

import os

import tensorflow as tf

from tf_metagrad.inner._base import check_count


def share_cores(tasks: int) -> None:
    """Let each task of a batch have its share of the cores, for nets whose tasks are looped over on a CPU.

    TensorFlow runs several tasks at once and, unless told otherwise, every operation of each on all cores, where they
    wait for each other. With 2 cores and 2 or 4 tasks a step of exact MAML takes 0.5 to 0.9 of the time. To be called
    before TensorFlow begins: before the first tensor, model, dataset or `make_strategy`. `train/train.py` does. It sets
    TensorFlow's intra-op threads, whatever they were set to before. The number of cores that an operation takes decides
    about the order of its sums, so that results differ in the last digits.

    Args:
        tasks: the number of tasks in a batch.

    Raises:
        ValueError: `tasks` is not a whole number of at least 1.
        RuntimeError: TensorFlow has begun with another number of threads.

    Example:
        An operation of a batch of 4 tasks gets a quarter of the cores, or one.

        >>> import tf_metagrad as mg
        >>> mg.share_cores(tasks=4)  # doctest: +SKIP
    """
    check_count("tasks", tasks)
    threads = max(1, _cores() // tasks)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise RuntimeError(
            "`share_cores` must be called before TensorFlow begins, with its first tensor, model, dataset or strategy. "
            f"Received: tasks={tasks} after that. Move it to the beginning of the program."
        ) from error


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
