"""Peak resident memory of one meta-gradient, each in a fresh process.

  python benchmarks/memory.py [--estimators="MAML;FOBMAML"] [--steps=5,20,50] [--tasks=1]

The figure is the peak of the process during two meta-gradients less its size before the first, and so holds the
compiled graph too; one task, so that the inner loop alone is seen.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import resource
import subprocess
import sys

from absl import app, flags

_ESTIMATORS = flags.DEFINE_string(
    "estimators", 'FOMAML;FOBMAML;FOBMAML("tangent");IMAML;MAML;MAML("unrolled")', "Separated by semicolons."
)
_STEPS = flags.DEFINE_list("steps", ["5", "20", "50"], "Inner steps K.")
_TASKS = flags.DEFINE_integer("tasks", 1, "Tasks, run one after the other.")
_ONE = flags.DEFINE_string("one", None, "Measure this estimator in this process.")


def peak_mib() -> float:
    """Return the process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(text: str, steps: int, tasks: int) -> float:
    """Return the growth of the peak in MiB."""
    from nets import omniglot

    import tf_metagrad as mg

    learner, batch = omniglot(mg.estimators.parse(text), steps, tasks, execution="map")
    before = peak_mib()
    for _ in range(2):
        learner.meta_gradient(batch)
    return peak_mib() - before


def main(argv: list[str]) -> None:
    """Print a table; each figure from a process of its own."""
    if _ONE.value:
        print(f"{measure(_ONE.value, int(_STEPS.value[0]), _TASKS.value):.0f}")
        return
    print("| peak (MiB) | " + " | ".join(f"K = {k}" for k in _STEPS.value) + " |")
    print("|---" * (1 + len(_STEPS.value)) + "|")
    for mode in _ESTIMATORS.value.split(";"):
        command = [sys.executable, __file__, f"--one={mode}", f"--tasks={_TASKS.value}"]
        peaks = [subprocess.check_output([*command, f"--steps={k}"], text=True).split()[-1] for k in _STEPS.value]
        print(f"| {mode} | " + " | ".join(peaks) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
