"""Peak memory of a call: what the allocator counts, what the process grows by, and their order between estimators."""

import pathlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg
from tf_metagrad import _measure, _memory
from tf_metagrad.estimators import FOBMAML, FOMAML, MAML, TruncMAML

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


def peak_mib(learner, estimator, batch):
    """Return the peak of live tensors of a step, whatever the order in which its operations run."""
    step = _measure.make_step(learner, estimator)
    step(batch, 0)
    return max(_memory._allocated(lambda: step(batch, 0), "CPU:0") for _ in range(3)) / 2**20


def peaks_mib(estimator, hidden, support, steps):
    """Return the peaks of a dense net for each K, and the size of its weights; buffers are of 256 KiB and more."""
    keras.utils.set_random_seed(0)
    rng, model = np.random.default_rng(0), mg.models.mlp(hidden=hidden)
    data = (rng.normal(size=[1, count, 1]).astype("float32") for count in (support, support, 16, 16))
    batch, options = mg.Task(*map(tf.constant, data)), {"execution": "map", "jit_compile": False}
    learners = [mg.MetaLearner(model, "mse", mg.inner.GradientDescent(k, 1e-3), **options) for k in steps]
    weights = sum(4 * np.prod(v.shape) for v in model.trainable_variables) / 2**20
    return *(peak_mib(learner, estimator, batch) for learner in learners), weights


@allocator
def test_mixed_mode_is_flat_in_the_steps_and_the_unrolled_tape_is_not():
    few, many, weights = peaks_mib(MAML(), (32, 32), 4096, (5, 50))
    (unrolled, _) = peaks_mib(MAML("unrolled"), (32, 32), 4096, (50,))
    assert 1 < many < 1.15 * few + 50 * weights
    assert unrolled > 10 * many


@allocator
@pytest.mark.parametrize("estimator", [MAML(), TruncMAML(5)])
def test_iterates_are_held_once(estimator):
    few, many, weights = peaks_mib(estimator, (512, 512), 16, (5, 20))
    kept = 20 if estimator == MAML() else 5
    assert weights > 1 and many < 1.15 * few + (kept - 5) * weights and few < 10 * weights


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
