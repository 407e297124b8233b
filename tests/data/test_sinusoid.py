import numpy as np
import pytest
import tensorflow as tf

from tf_metagrad._types import Task
from tf_metagrad.data import sinusoid


def batches(dataset, count):
    return [Task(*(part.numpy() for part in task)) for task in dataset.take(count)]


def fit(x, y):
    """Least squares for y = a sin(x) + b cos(x) = amplitude sin(x - phase)."""
    x, y = x[:, 0].astype(np.float64), y[:, 0].astype(np.float64)
    (a, b), *_ = np.linalg.lstsq(np.stack([np.sin(x), np.cos(x)], axis=1), y, rcond=None)
    return np.hypot(a, b), np.arctan2(-b, a)


def distance_from_uniform(values, low, high):
    """Largest gap between the empirical distribution and U[low, high] (Kolmogorov-Smirnov)."""
    empirical = (np.arange(len(values)) + 0.5) / len(values)
    return np.abs((np.sort(values) - low) / (high - low) - empirical).max()


def test_shapes_and_dtypes():
    points = {name: tf.TensorSpec([3, count, 1], tf.float32) for name, count in [("support", 4), ("query", 6)]}
    dataset = sinusoid(shots=4, queries=6, meta_batch=3)
    assert dataset.element_spec == Task(points["support"], points["support"], points["query"], points["query"])
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert sinusoid().element_spec.query_y.shape == [25, 10, 1]


def test_support_and_query_share_one_curve_of_the_stated_family():
    amplitudes, phases, inputs = [], [], []
    for task in batches(sinusoid(meta_batch=100), 20):
        for support_x, support_y, query_x, query_y in zip(*task, strict=True):
            amplitude, phase = fit(np.concatenate([support_x, query_x]), np.concatenate([support_y, query_y]))
            for x, y in ((support_x, support_y), (query_x, query_y)):
                np.testing.assert_allclose(y, amplitude * np.sin(x - phase), atol=5e-6)
            amplitudes.append(amplitude)
            phases.append(phase)
            inputs += [support_x, query_x]
    bound = 1.63 / np.sqrt(2000)  # 1 % level of the test for 2,000 values
    assert min(amplitudes) > 0.1 - 1e-4 and max(amplitudes) < 5 + 1e-4
    assert min(phases) > -1e-4 and max(phases) < np.pi + 1e-4
    assert distance_from_uniform(amplitudes, 0.1, 5) < bound
    assert distance_from_uniform(phases, 0, np.pi) < bound
    assert distance_from_uniform(np.concatenate(inputs)[:, 0], -5, 5) < bound
    assert abs(np.corrcoef(amplitudes, phases)[0, 1]) < 0.06


def test_stream_is_reproducible_and_resumes():
    whole = batches(sinusoid(seed=5), 6)
    for dataset, skipped in [(sinusoid(seed=5), 0), (sinusoid(seed=5, start=4), 4)]:
        for task, expected in zip(batches(dataset, 2), whole[skipped:], strict=False):
            for part, other in zip(task, expected, strict=True):
                np.testing.assert_array_equal(part, other)
    assert not np.array_equal(whole[0].support_x, whole[1].support_x)
    assert not np.array_equal(whole[0].support_x, batches(sinusoid(seed=6), 1)[0].support_x)


def test_tasks_do_not_depend_on_the_meta_batch():
    wide, narrow = batches(sinusoid(meta_batch=4), 1), batches(sinusoid(meta_batch=1), 4)
    for part, parts in zip(wide[0], zip(*narrow, strict=True), strict=True):
        np.testing.assert_allclose(part, np.concatenate(parts), rtol=1e-6)


def test_golden_task():
    """The stream is a promise: if this fails, results of earlier versions cannot be reproduced."""
    task = next(iter(sinusoid(shots=2, queries=2, meta_batch=1, seed=11, start=4)))
    expected = [-1.971633, -1.35865, 2.02387, 0.214061, 0.457688, 1.795883, -3.169185, -0.17246]
    np.testing.assert_allclose(np.ravel(task), expected, atol=2e-6)


@pytest.mark.parametrize("name", ["shots", "queries", "meta_batch"])
def test_errors(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected a whole number of at least 1"):
        sinusoid(**{name: 0})
    with pytest.raises(ValueError, match="start is -2, expected a whole number of at least 0"):
        sinusoid(start=-2)
