"""The other end of `worker.py`: processes that are stopped unless it is their turn."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import numpy as np

_WORKER = pathlib.Path(__file__).with_name("worker.py")


class Worker:
    """A library with one workload loaded. While it waits it is stopped by a signal, so that no idle thread spins."""

    def __init__(self, library: str, workload: str, path: pathlib.Path, *options: str):
        """Start the process and wait until data and weights are loaded."""
        command = [sys.executable, str(_WORKER), library, workload, str(path), *options]
        pipe = subprocess.PIPE
        self.library = library
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self.variants: list[str] = self._answer()
        self._stop()

    def __enter__(self) -> "Worker":
        """Return the worker."""
        return self

    def __exit__(self, *_: Any) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def steps(self, variant: str, seconds: float = 0.0) -> list[float]:
        """Return the times of steps that together take `seconds`, of one at least."""
        return self._ask({"variant": variant, "seconds": seconds})

    def gradient(self, variant: str, path: pathlib.Path) -> tuple[np.ndarray, float]:
        """Return the gradient as one vector in Keras' order, and the loss."""
        self._ask({"variant": variant, "save": str(path)})
        with np.load(path) as file:
            return file["gradient"], float(file["loss"])

    def _ask(self, order: dict[str, Any]) -> Any:
        os.kill(self._process.pid, signal.SIGCONT)
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._answer()
        self._stop()
        return answer

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process of {self.library} ended; what it printed is above.")
        return json.loads(line)

    def _stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
