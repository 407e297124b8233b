"""Runs of `train/train.py` that can be killed, each in a process of its own, forked where TensorFlow has been imported.

    python tests/killable_runs.py        reads the arguments of a run, as JSON, from each line of stdin

It writes the run's process id when it has started, and its exit status when it has ended. TensorFlow has done nothing
before the fork, so a run is what it is from a shell, without the seconds that the import takes.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
EVERY = 4  # the runs' --checkpoint_steps


def serve():
    """Fork a run for each line of stdin."""
    sys.path.insert(0, str(ROOT / "train"))
    import pipeline  # noqa: F401  with TensorFlow
    import settings

    import train

    for line in sys.stdin:
        process = os.fork()
        if not process:
            status = 1
            os.dup2(2, 1)
            try:
                train.main(settings.parse(["train.py", *json.loads(line)], train.__doc__))
                status = 0
            except SystemExit as exit:
                if isinstance(exit.code, str):
                    print(exit.code, file=sys.stderr, flush=True)
                status = exit.code if isinstance(exit.code, int) else 1
            finally:
                os._exit(status)
        print("started", process, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


class Runs:
    """The process that forks runs."""

    def __init__(self, errors, **environment):
        """Start it; `errors` is a file for what the runs say."""
        self.running = None
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        )  # fmt: skip

    def start(self, *arguments):
        """Start a run; return its process id. One that a test left is killed."""
        if self.running:
            os.kill(self.running, signal.SIGKILL)
            self.wait()
        print(json.dumps(arguments), file=self.server.stdin, flush=True)
        self.running = self._read("started")
        return self.running

    def wait(self):
        """Return the exit status of the run, negative where a signal ended it."""
        status, self.running = self._read("ended"), None
        return status

    def _read(self, what):
        word, number = self.server.stdout.readline().split()
        assert word == what
        return int(number)

    def stop(self):
        """End the process."""
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def kill_at(process, folder, rng, in_a_write):
    """Send SIGKILL some checkpoints from now: inside the next write, or a random moment after the last."""
    goal = latest(folder) + EVERY * int(rng.integers(0, 4))
    wait_for(process, lambda: latest(folder) >= goal)
    if in_a_write:
        known = set(os.listdir(folder)) if folder.exists() else set()
        wait_for(process, lambda: folder.exists() and any("_temp" in name for name in set(os.listdir(folder)) - known))
    else:
        time.sleep(rng.uniform(0, 0.15))
    os.kill(process, signal.SIGKILL)


def saved(folder):
    """Return the steps of the checkpoints in a folder."""
    names = os.listdir(folder) if folder.exists() else []
    return {int(name[len("ckpt-") : -len(".index")]) for name in names if name.endswith(".index")}


def latest(folder):
    """Return the step of the last checkpoint, or 0."""
    return max(saved(folder), default=0)


def wait_for(process, condition):
    """Poll until the condition holds, or the run has ended."""
    while not condition():
        os.kill(process, 0)
        time.sleep(0.0005)


def variables(folder):
    """Return all that the last checkpoint holds, as bytes, but for the number of times that it was saved."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    names = set(reader.get_variable_to_shape_map()) - {"save_counter/.ATTRIBUTES/VARIABLE_VALUE"}
    return {n: np.asarray(reader.get_tensor(n)).tobytes() for n in names if "CHECKPOINTABLE_OBJECT_GRAPH" not in n}


if __name__ == "__main__":
    serve()
