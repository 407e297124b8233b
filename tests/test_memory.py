"""Peak memory of a call: what the allocator counts, what the process grows by, and their order between estimators."""

import pathlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg
from tf_metagrad import _measure, _memory
from tf_metagrad.estimators import FOBMAML, FOMAML, MAML

allocator = pytest.mark.skipif(
    "allocator" not in str(_memory.source("CPU:0")), reason="this TensorFlow counts no CPU memory"
)


def test_rounding_is_that_of_the_peak():
    events = [
        (True, 1, 32, 17),
        (False, 1, 32, 17),
        (True, 1, 40, 40),
        (False, 9, 8, 8),
        (True, 2, 8, 5),
        (False, 2, 8, 5),
    ]
    assert _memory.rounding(events) == 48 - 45
    assert _memory.rounding([]) == 0


@allocator
@pytest.mark.parametrize("mib", [5, 9, 17])  # 9 and 17 MiB are rounded up by the allocator
def test_the_allocator_knows_what_a_call_needs(mib):
    ones = tf.function(lambda x: tf.reduce_sum(tf.random.stateless_normal([mib, 2**18], [0, 1]) + x))
    ones(tf.constant(1.0))
    assert _memory._allocated(lambda: ones(tf.constant(1.0)), "CPU:0") == pytest.approx(mib * 2**20, rel=0.01)
    assert mib - 1 < _memory.peak_mib(lambda: ones(tf.constant(1.0)), "CPU:0", repeats=3) < mib + 5
    assert _memory._allocated(lambda: None, "CPU:0") == 0


@allocator
def test_the_unrolled_tape_needs_more_memory_than_mixed_mode():
    keras.utils.set_random_seed(0)
    inner = mg.inner.GradientDescent(8, 1e-3)
    learner = mg.MetaLearner(mg.models.mlp(hidden=(32, 32)), "mse", inner, execution="map", jit_compile=False)
    rng = np.random.default_rng(0)
    batch = mg.Task(*(rng.normal(size=[1, count, 1]).astype("float32") for count in (16384, 16384, 16, 16)))
    rows = mg.compare_estimators(learner, batch, [MAML(), MAML("unrolled"), FOMAML()], repeats=1).rows
    mixed, unrolled, first = (row.peak_mib for row in rows)
    assert unrolled > 2 * mixed > 2 * first > 1
    assert rows[1].error < 1e-4


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="no /proc")
def test_resident_memory_is_sampled_while_the_call_runs():
    def call():
        block = np.ones(2**23)
        time.sleep(0.05)
        return block

    assert 60 < _memory._resident(call, "CPU:0") / 2**20 < 80


def test_memory_that_cannot_be_measured_is_none(monkeypatch):
    monkeypatch.setattr(_memory, "_STATM", "/nowhere")
    assert _memory.source("TPU:0") is None and _memory.peak_mib(lambda: None, "TPU:0") is None


@allocator
@pytest.mark.parametrize(("kind", "jit_compile"), [("dense", True), ("conv", False), ("conv head", False)])
def test_perturbed_problems_need_the_memory_of_fomaml(kind, jit_compile):
    """They come one after the other, and so do support and query gradient; XLA drops control dependencies."""
    if kind.startswith("conv"):
        model, shape = mg.models.conv2d(ways=1, filters=8), (28, 28, 1)
    else:
        model, shape = mg.models.mlp(hidden=(32, 32)), (1,)
    count, rng = 64 if len(shape) > 1 else 16384, np.random.default_rng(0)
    x, y = rng.normal(size=[1, count, *shape]).astype("float32"), np.ones([1, count, 1], "float32")
    batch = mg.Task(*map(tf.constant, (x, y, x, y)))
    peaks = []
    for estimator in (FOMAML(), FOBMAML()):
        learner = mg.MetaLearner(
            model, "mse", mg.inner.ProximalGradientDescent(3, 1e-3), estimator, execution="map",
            jit_compile=jit_compile, adapt=[model.layers[-1].name] if kind.endswith("head") else "all",
        )  # fmt: skip
        step = _measure.make_step(learner, learner.estimator)
        step(batch, 0)
        peaks.append(max(_memory._allocated(lambda s=step: s(batch, 0), "CPU:0") for _ in range(9)))  # of any order
    assert peaks[1] < 1.05 * peaks[0] and peaks[0] > 2**22
