"""The worker processes, on one machine or on several, that train together: who they are, and what they tell each other.

`TF_CONFIG` in the environment of each says who they are, as in every use of `tf.distribute`.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tf_metagrad._types import first_line

_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def check_config() -> None:
    """Look at `TF_CONFIG`.

    Raises:
        ValueError: it is missing, or does not name the workers and which of them this process is.
    """
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, kind, index = config["cluster"], config["task"]["type"], config["task"]["index"]
        addresses = [address for job in ("chief", "worker") for address in cluster.get(job, [])]
        named = all(_is_address(address) for address in addresses) and len(set(addresses)) == len(addresses)
        whole = type(index) is int and kind in ("chief", "worker") and 0 <= index < len(cluster.get(kind, []))
    except (ValueError, TypeError, KeyError, AttributeError):
        named = whole = False
    if not (named and whole):
        raise ValueError(
            'The distribution "multi_worker" needs TF_CONFIG in the environment: the host:port of each worker, every '
            f"one once, and the number of this one among them. Received: {text!r}. On the first of two workers it is "
            f"{_EXAMPLE}; on the second the index is 1."
        )


def _is_address(address: Any) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def join() -> tf.distribute.Strategy:
    """Meet the other workers of `TF_CONFIG`, and return the strategy; it waits until all are there.

    Raises:
        ValueError: see `check_config`.
        RuntimeError: TensorFlow has computed before, or this worker's port is not free.
    """
    check_config()
    try:
        with lost_worker():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, tf.errors.OpError) as error:
        raise RuntimeError(
            'The strategy "multi_worker" could not be made. Make it before TensorFlow computes anything, once in a '
            f"process, on a host and port that are free. TensorFlow says: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def lost_worker() -> Iterator[None]:
    """Turn what TensorFlow raises where another worker has ended into one sentence.

    Raises:
        ConnectionError: another worker was lost.
    """
    try:
        yield
    except _LOST as error:
        raise ConnectionError(
            f"Another worker was lost ({type(error).__name__}). Start all workers again with the same command: "
            "training goes on from the last checkpoint."
        ) from error


class Workers:
    """The workers of a strategy; a strategy of one process has one, which has no one to ask.

    Attributes:
        count: their number.
        index: the number of this one; 0 is the chief.
        is_chief: whether this one writes the files.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        """Count them."""
        self.strategy, self.count, self.index = strategy, 1, 0
        self.is_chief = strategy.extended.should_checkpoint
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            jobs = resolver.cluster_spec().as_dict()
            chiefs = len(jobs.get("chief", []))
            self.count = max(1, chiefs + len(jobs.get("worker", [])))
            self.index = (resolver.task_id or 0) + (chiefs if resolver.task_type == "worker" else 0)
        self._sum = tf.function(lambda row: strategy.reduce("SUM", row, axis=None), autograph=False)

    def gather(self, number: int) -> list[int]:
        """Return the number that each worker gave; every worker must ask, and waits for the others.

        Raises:
            ConnectionError: another worker was lost.
        """
        if self.count == 1:
            return [number]
        with lost_worker():
            row = tf.one_hot(self.index, self.count, number, 0, dtype=tf.int64)
            return [int(n) for n in self._sum(row).numpy()]

    def agree(self, number: int, sentence: str) -> None:
        """Look whether all workers give the same number.

        Raises:
            ValueError: they don't; the sentence has a `{}` for their numbers.
            ConnectionError: another worker was lost.
        """
        numbers = self.gather(number)
        if len(set(numbers)) > 1:
            self.leave()
            raise ValueError(sentence.replace("{}", str(numbers)))

    def leave(self) -> None:
        """Wait until all workers have what the last `gather` said; one that ends at once could take it along."""
        with contextlib.suppress(ConnectionError):
            self.gather(0)
