"""`share_cores` sets TensorFlow's threads, or says that it is too late; each case in a process of its own."""

import subprocess
import sys

import pytest

import tf_metagrad as mg


def run(program):
    """Return what a program in a new process prints, with 8 cores pretended."""
    given = (
        "import tensorflow as tf, tf_metagrad as mg; from tf_metagrad import _threads; _threads._cores = lambda: 8; "
    )
    return subprocess.run([sys.executable, "-c", given + program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("tasks", "threads"), [(1, 8), (3, 2), (4, 2), (25, 1)])
def test_a_task_gets_its_share(tasks, threads):
    show = f"mg.share_cores({tasks}); tf.constant(1); print(tf.config.threading.get_intra_op_parallelism_threads())"
    assert run(show).stdout.split() == [str(threads)]


def test_too_late():
    done = run("tf.constant(1) + 1; mg.share_cores(tasks=4)")
    assert "RuntimeError: `share_cores` must be called before TensorFlow begins" in done.stderr


@pytest.mark.parametrize("tasks", [0, 2.0, "4"])
def test_arguments_are_checked(tasks):
    with pytest.raises(ValueError, match="`tasks` must be a whole number"):
        mg.share_cores(tasks)
