"""Exports to the folder of the first argument, killed at several moments; keeps what each kill left, in `after-<n>`.

A script of its own: it forks before TensorFlow has started anything, so that it is imported once for all exports.
"""

import os
import pathlib
import random
import shutil
import signal
import sys
import time

import keras

import tf_metagrad as mg


def export(path: pathlib.Path, value: float) -> None:
    """Export a model whose every weight is `value`."""
    net = [keras.Input((1,)), keras.layers.Dense(400), keras.layers.Dense(1)]
    learner = mg.MetaLearner(keras.Sequential(net), "mse", mg.inner.GradientDescent(1), jit_compile=False)
    for variable in learner.model.weights:
        variable.assign(0 * variable + value)
    mg.export(learner, path, overwrite=True)


def forked_export(path: pathlib.Path, value: float) -> int:
    """Begin an export in a child; return its number once it writes."""
    before, child = set(path.parent.glob(".export-*")), os.fork()
    if not child:
        export(path, value)
        os._exit(0)
    while set(path.parent.glob(".export-*")) <= before and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    return child


def main(path: pathlib.Path, kills: int) -> None:
    child, start = forked_export(path, 1.0), time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    duration, draw = time.monotonic() - start, random.Random(0)
    for number in range(kills):
        child = forked_export(path, number + 2.0)
        time.sleep(duration * (number + draw.random()) / kills)
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[1]
        print(number, "killed" if os.WIFSIGNALED(ended) else "ended", flush=True)
        shutil.copytree(path, path.parent / f"after-{number}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
