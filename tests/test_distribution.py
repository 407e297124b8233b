"""Tasks sharded over devices and processes give the update of one device."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from estimator_cases import CASES, typical

import tf_metagrad as mg
from tf_metagrad._distribution import Replicas, make_strategy

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def differences():
    done = subprocess.run([sys.executable, HERE / "two_replicas.py"], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_two_replicas_give_the_update_of_one_device(differences, kind):
    """Losses, metric, weights and slots after two updates of a net with batch norm and dropout."""
    assert differences[repr(typical(kind).estimator)] < 1e-10


@pytest.mark.parametrize("name", ["clipped", "adam", "sngdm", "per_step", "xla"])
def test_two_replicas_update_everything(differences, name):
    """Clipping, slots, SNGDM's norm over all replicas, learned rates, averages of each step, and XLA."""
    assert differences[name] < 1e-10


def test_a_task_that_diverges_is_left_out_by_two_replicas(differences):
    """Losses, metric, weights, slots and averages of each step are those of one device without the task."""
    assert differences["skip"] < 1e-12


def test_tasks_that_do_not_divide():
    class Three:
        num_replicas_in_sync = 3

    tasks = mg.Task(*[tf.zeros([4, 2])] * 4)
    with pytest.raises(ValueError, match="Received: 4 tasks for 3 replicas. Use a `meta_batch` that 3 divides"):
        Replicas(Three()).split(tasks)


def test_unknown_distribution():
    with pytest.raises(ValueError, match="`name` must be one of .* Received: 'many'"):
        make_strategy("many")
    assert np.isscalar(make_strategy("mirrored").num_replicas_in_sync)
