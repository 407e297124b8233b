import pickle
import random
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_metagrad.data import _mnist1d, mnist1d


@pytest.fixture(scope="module")
def curves():
    return _mnist1d.generate(12_000)


def test_shapes_and_dtypes():
    spec = mnist1d(ways=4, shots=2, queries=3, meta_batch=6).element_spec
    assert (spec.support_x.shape, spec.support_x.dtype) == ([6, 8, 40, 1], tf.float32)
    assert (spec.query_x.shape, spec.query_x.dtype) == ([6, 12, 40, 1], tf.float32)
    assert (spec.support_y.shape, spec.query_y.shape) == ([6, 8], [6, 12])
    assert mnist1d().element_spec.query_x.shape == [4, 30, 40, 1]


def test_equals_the_file_its_authors_publish(real_data):
    file = real_data / "mnist1d_data.pkl"
    if not file.is_file():
        pytest.skip(f"no real data: {file.name} is missing")
    published, generated = pickle.loads(file.read_bytes()), _mnist1d.generate(5000)
    for part in ("x", "x_test"):
        np.testing.assert_allclose(generated[part], published[part], atol=1e-13)
    for part in ("y", "y_test"):
        np.testing.assert_array_equal(generated[part], published[part])


def test_splits_are_disjoint_and_hold_all_digits(curves):
    assert (len(curves["x"]), len(curves["x_test"])) == (9600, 2400)
    rows = {row.tobytes() for part in ("x", "x_test") for row in curves[part]}
    assert len(rows) == 12_000
    assert set(curves["y"]) == set(curves["y_test"]) == set(range(10))
    np.testing.assert_array_equal(np.bincount(curves["y"]) + np.bincount(curves["y_test"]), [1200] * 10)


@pytest.mark.parametrize(("split", "x", "y"), [("train", "x", "y"), ("test", "x_test", "y_test")])
def test_tasks_hold_the_examples_of_their_split(curves, split, x, y):
    digit_of = {row.astype(np.float32).tobytes(): digit for row, digit in zip(curves[x], curves[y], strict=True)}
    for task in mnist1d(split, ways=10).take(5).unbatch():
        digits = [[digit_of[row.numpy().tobytes()] for row in part] for part in (task.support_x, task.query_x)]
        order = np.array(digits[0][::5])
        assert sorted(order) == list(range(10))
        np.testing.assert_array_equal(order[task.support_y], digits[0])
        np.testing.assert_array_equal(order[task.query_y], digits[1])


def test_stream_is_reproducible_and_resumes():
    whole, again, resumed, other = (
        np.stack([task.query_x for task in mnist1d(seed=seed, start=start).take(3)])
        for seed, start in [(1, 0), (1, 0), (1, 2), (2, 0)]
    )
    np.testing.assert_array_equal(whole, again)
    np.testing.assert_array_equal(whole[2], resumed[0])
    assert not np.array_equal(whole, other)


def test_golden_task():
    """The stream is a promise: if this fails, results of earlier versions cannot be reproduced."""
    task = next(iter(mnist1d("test", ways=2, shots=1, queries=1, meta_batch=1, seed=11, start=4)))
    expected = [[0.063066, -0.032793, 0.039774, -0.137616], [-0.001836, -0.014861, -0.551313, -0.711892]]
    np.testing.assert_allclose(task.support_x[0, :, ::10, 0], expected, atol=1e-6)


def test_generation_leaves_global_random_state_alone():
    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5), np.random.seed(5)
    _mnist1d.generate(20)
    assert (random.random(), np.random.rand()) == expected


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="split is 'validation', expected one of 'train', 'test'"):
        mnist1d("validation")
    with pytest.raises(ValueError, match="ways is 11 and there are 10 classes"):
        mnist1d(ways=11)
    with pytest.raises(ValueError, match="shots is 0"):
        mnist1d(shots=0)
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(ImportError, match="pip install mnist1d"):
        _mnist1d.generate(30)
