"""One library in a process of its own, told what to run by lines of JSON.

  python worker.py LIBRARY WORKLOAD FILE [--small] [--double]

Each line names a variant and what is wanted: {"variant": ..., "seconds": s} runs steps until s have passed and answers
their times; {"variant": ..., "save": path} writes the gradient. The first answer lists the variants.
"""

import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from peers import workloads


def prepare(library: str, work: workloads.Workload, path: pathlib.Path, double: bool):
    """Return the variants of a library, with its data and weights loaded, and its `vector` function."""
    if library == "ours":
        from peers import ours as peer

        import tf_metagrad as mg

        if work.net != "mlp":  # whose tasks are vectorised
            mg.share_cores(work.tasks)
    elif library == "torch":
        from peers import torch_peer as peer
    else:
        from peers import jax_peer as peer
    return peer.prepare(work, path, double)


def timed(run, seconds: float) -> list[float]:
    """Return the time of each step; at least one is run."""
    times = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Answer line by line; whatever the libraries print goes to the error output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    library, name, path, *options = sys.argv[1:]
    work = workloads.workload(name, "--small" in options)
    runs, vector = prepare(library, work, pathlib.Path(path), "--double" in options)
    print(json.dumps(list(runs)), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        run = runs[order["variant"]]
        if "save" in order:
            gradient, loss = vector(run())
            np.savez(order["save"], gradient=gradient, loss=loss)
        print(json.dumps(timed(run, order.get("seconds", 0.0))), file=answers)


if __name__ == "__main__":
    main()
