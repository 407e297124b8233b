"""Meta-updates by two worker processes, and by one device, from the same weights and tasks.

    python tests/two_workers.py OUT.npz NAME ...        with TF_CONFIG in the environment

The names are those of `two_replicas.runs`, or "all". It writes what this worker has after the updates, and, for every
second name, what one device has.
"""

import os
import socket
import sys


def addresses(count: int = 2) -> list[str]:
    """Return addresses of this machine that are free."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return found


def main(path: str, names: list[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf
    import two_replicas

    import tf_metagrad as mg
    from tf_metagrad._cluster import Workers

    strategy, one_device = mg.make_strategy("multi_worker"), tf.distribute.get_strategy()
    workers = Workers(strategy)
    two_replicas.in_float64()
    runs = two_replicas.runs()
    found = {"numbers": np.array(workers.gather(10 + workers.index))}
    for number, name in enumerate(runs if names == ["all"] else names):
        found[f"two {name}"] = two_replicas.updated(strategy, **runs[name])
        if number % workers.count == workers.index:
            found[f"one {name}"] = two_replicas.updated(one_device, **runs[name])
    np.savez(path, **found)
    workers.leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
