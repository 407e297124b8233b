import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_metagrad._types import Task
from tf_metagrad.data import from_arrays

SIZES = {"ways": 3, "shots": 2, "queries": 4, "meta_batch": 5}


def identified(counts, first_class=0):
    """Examples that are their own position, in shuffled class order."""
    y = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)) + first_class, counts))
    return np.arange(len(y), dtype=np.int32), y


def batches(dataset, count):
    return [Task(*(part.numpy() for part in task)) for task in dataset.take(count)]


def tasks_of(dataset, count):
    """`count` single tasks."""
    return [Task(*(part.numpy() for part in task)) for task in dataset.unbatch().take(count)]


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        for part, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(part, other)


# Form


@pytest.mark.parametrize("item", [(), (7,), (28, 28, 1)])
def test_shapes_and_dtypes(item):
    x, y = np.zeros([60, *item], np.float32), np.arange(60) % 6
    dataset = from_arrays(x, y, **SIZES)
    expected = Task(
        tf.TensorSpec([5, 6, *item], tf.float32),
        tf.TensorSpec([5, 6], tf.int32),
        tf.TensorSpec([5, 12, *item], tf.float32),
        tf.TensorSpec([5, 12], tf.int32),
    )
    assert dataset.element_spec == expected
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    task = next(iter(dataset))
    assert isinstance(task, Task)
    assert [part.shape.as_list() for part in task] == [spec.shape.as_list() for spec in expected]


def test_default_conversion():
    y = np.arange(60) % 6
    for dtype, expected, scale in [
        (np.uint8, np.float32, 1 / 255),
        (np.float64, np.float32, 1),
        (np.float16, np.float32, 1),
        (np.int64, np.int64, 1),
    ]:
        task = next(iter(from_arrays(np.full(60, 51, dtype), y, **SIZES)))
        for part in (task.support_x, task.query_x):
            assert part.dtype == expected
            np.testing.assert_allclose(part, np.full(part.shape, 51 * scale), rtol=1e-6)


def test_transform_replaces_the_conversion():
    seen = []

    def transform(x):
        seen.append((x.dtype, x.shape.as_list()))
        return tf.cast(x, tf.float64)[..., tf.newaxis] + 1.0

    task = next(iter(from_arrays(np.full(60, 51, np.uint8), np.arange(60) % 6, transform=transform, **SIZES)))
    assert seen == [(tf.uint8, [5, 6]), (tf.uint8, [5, 12])]
    np.testing.assert_array_equal(task.support_x, np.full([5, 6, 1], 52.0))
    np.testing.assert_array_equal(task.query_x, np.full([5, 12, 1], 52.0))
    assert task.query_x.dtype == tf.float64


def test_lists_and_tensors_are_accepted():
    x, y = identified([10] * 4)
    expected = batches(from_arrays(x, y, **SIZES), 2)
    assert_same(batches(from_arrays(x.tolist(), y.tolist(), **SIZES), 2), expected)
    assert_same(batches(from_arrays(tf.constant(x), tf.constant(y), **SIZES), 2), expected)


def test_later_changes_of_the_array_do_not_reach_the_stream():
    x, y = identified([100] * 10)
    dataset = from_arrays(x, y, **SIZES)
    expected = batches(dataset, 2)
    x += 1
    assert_same(batches(dataset, 2), expected)


# Meaning


def test_labels_follow_classes_and_sets_do_not_overlap():
    x, y = identified([9, 6, 30, 8, 6, 7, 12], first_class=40)
    for task in tasks_of(from_arrays(x, y, **SIZES), 400):
        drawn = np.concatenate([task.support_x, task.query_x])
        assert len(set(drawn)) == len(drawn) == 18
        np.testing.assert_array_equal(task.support_y, [0, 0, 1, 1, 2, 2])
        np.testing.assert_array_equal(task.query_y, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
        classes = y[task.support_x[::2]]
        assert len(set(classes)) == 3
        np.testing.assert_array_equal(y[task.support_x], classes[task.support_y])
        np.testing.assert_array_equal(y[task.query_x], classes[task.query_y])


def test_every_ordered_choice_of_classes_is_equally_likely():
    x, y = identified([4, 2, 9, 3])
    dataset = from_arrays(x, y, ways=2, shots=1, queries=1, meta_batch=100)
    count = 6000
    pairs = [tuple(y[task.support_x]) for task in tasks_of(dataset, count)]
    chances = {pair: pairs.count(pair) / count for pair in itertools.permutations(range(4), 2)}
    bound = 4 * np.sqrt(1 / 12 * 11 / 12 / count)
    assert max(abs(chance - 1 / 12) for chance in chances.values()) < bound, chances


def test_every_example_of_a_class_is_equally_likely():
    counts = [3, 7, 20]
    x, y = identified(counts)
    dataset = from_arrays(x, y, ways=3, shots=1, queries=2, meta_batch=100)
    count = 6000
    tasks = tasks_of(dataset, count)
    for drawn, share in [("support_x", 1), ("query_x", 2)]:
        seen = np.bincount(np.concatenate([getattr(task, drawn) for task in tasks]), minlength=len(x)) / count
        chance = share / np.take(counts, y)
        assert np.all(np.abs(seen - chance) < 4.5 * np.sqrt(chance * (1 - chance) / count)), seen - chance


def test_classes_of_just_enough_examples_give_all_of_them():
    x, y = identified([6, 6, 6])
    for task in tasks_of(from_arrays(x, y, **SIZES), 50):
        assert sorted([*task.support_x, *task.query_x]) == list(range(18))


# Reproduction


def test_same_seed_same_tasks_whatever_the_global_seed():
    x, y = identified([12] * 9)
    tf.random.set_seed(1)
    first = batches(from_arrays(x, y, seed=3, **SIZES), 40)
    tf.random.set_seed(2)
    assert_same(batches(from_arrays(x, y, seed=3, **SIZES), 40), first)


def test_one_dataset_gives_the_same_tasks_every_time():
    x, y = identified([12] * 9)
    dataset = from_arrays(x, y, seed=3, **SIZES)
    assert_same(batches(dataset, 10), batches(dataset, 10))


@pytest.mark.parametrize("start", [1, 7])
def test_start_continues_the_same_stream(start):
    x, y = identified([12] * 9)
    whole = batches(from_arrays(x, y, **SIZES), start + 4)
    assert_same(batches(from_arrays(x, y, start=start, **SIZES), 4), whole[start:])


def test_start_far_away_costs_nothing():
    x, y = identified([12] * 9)
    far, next_one = (batches(from_arrays(x, y, start=10**15 + i, **SIZES), 2) for i in (0, 1))
    assert_same(far[1:], next_one[:1])
    assert not np.array_equal(far[0].support_x, far[1].support_x)


def test_tasks_do_not_depend_on_the_meta_batch():
    x, y = identified([12] * 9)
    wide, narrow, many = (tasks_of(from_arrays(x, y, **{**SIZES, "meta_batch": size}), 21) for size in (7, 1, 37))
    assert_same(wide, narrow)
    assert_same(many, narrow)


def test_seeds_and_episodes_differ():
    x, y = identified([50] * 50)
    streams = [tasks_of(from_arrays(x, y, seed=seed, **SIZES), 100) for seed in (0, 1, 2**40)]
    drawn = {tuple(task.support_x) for tasks in streams for task in tasks}
    assert len(drawn) == 300


GOLDEN = """
import sys
import numpy as np
from tf_metagrad.data import from_arrays
sizes = dict(ways=3, shots=1, queries=2, meta_batch=2, seed=11, start=4)
task = next(iter(from_arrays(np.arange(60), np.arange(60) // 6, **sizes)))
print(task.support_x.numpy().tolist(), task.query_x.numpy().tolist())
print(sorted({"tensorflow_datasets", "mnist1d"} & set(sys.modules)))
"""


def test_golden_tasks_in_another_process_and_no_eager_imports():
    """The stream is a promise: if this fails, results of earlier versions cannot be reproduced."""
    run = subprocess.run([sys.executable, "-c", GOLDEN], capture_output=True, text=True, check=True)
    tasks, imported = run.stdout.splitlines()
    assert tasks == "[[29, 8, 43], [42, 12, 6]] [[26, 24, 6, 7, 42, 46], [45, 46, 13, 17, 9, 10]]"
    assert imported == "[]"


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 1}, "ways is 1, expected a whole number of at least 2"),
        ({"ways": 7}, "ways is 7 and there are 6 classes.*lower ways or add classes"),
        ({"shots": 0}, "shots is 0, expected a whole number of at least 1"),
        ({"shots": 2.0}, r"shots is 2\.0, expected a whole number of at least 1"),
        ({"queries": 0}, "queries is 0, expected a whole number of at least 1"),
        ({"queries": 9}, r"class 0 has 10 examples, expected at least shots \+ queries = 11: lower shots"),
        ({"meta_batch": 0}, "meta_batch is 0, expected a whole number of at least 1"),
        ({"start": -1}, "start is -1, expected a whole number of at least 0"),
        ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ({"seed": None}, "seed is None, expected a whole number of at least 0"),
        ({"y": np.arange(59) % 6}, r"x has shape \(60, 2\) and y has 59 labels.*first axes agree"),
        ({"x": np.float32(3)}, r"x has shape \(\) and y has 60 labels"),
        ({"y": np.arange(60) % 6 / 1.0}, r"y has dtype float64 and shape \(60,\).*pass class numbers"),
        ({"y": np.eye(6, dtype=int)[np.arange(60) % 6]}, r"y has dtype int64 and shape \(60, 6\).*y\.argmax\(-1\)"),
        ({"y": np.arange(60)[:, None] % 6}, r"shape \(60, 1\), expected one integer.*pass class numbers \(y\[:, 0\]\)"),
        ({"y": np.repeat(["cat", "dog", "owl"], 20)}, r"y has dtype <U3.*np\.unique\(y, return_inverse=True\)\[1\]"),
        ({"x": np.zeros([0, 2]), "y": np.zeros(0, int)}, "ways is 3 and there are 0 classes"),
        ({"transform": lambda x: x[0]}, r"transform returned shape \(6, 2\), expected \[5, 6, \.\.\.\]"),
    ],
)
def test_errors(change, message):
    good = {"x": np.zeros([60, 2], np.float32), "y": np.arange(60) % 6, **SIZES}
    from_arrays(**good)
    with pytest.raises(ValueError, match=message):
        from_arrays(**{**good, **change})


def test_error_names_the_short_class():
    y = np.repeat([5, -3, 8], [10, 4, 10])
    with pytest.raises(ValueError, match=r"class -3 has 4 examples, expected at least shots \+ queries = 6"):
        from_arrays(np.zeros([24, 2]), y, **SIZES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_error_on_values_that_are_not_finite(bad):
    x = np.zeros([60, 2])
    x[17, 1] = x[30, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 60 examples, the first at position 17"):
        from_arrays(x, np.arange(60) % 6, **SIZES)
