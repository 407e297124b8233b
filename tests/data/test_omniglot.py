import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_metagrad.data import _omniglot, omniglot

BOUNDS = {"train": 1200, "validation": 100, "test": 323}
CELLS = [(row, column) for row in range(1, 5) for column in range(1, 5)]  # of a 7x7 grid


def drawn(label, drawing):
    """A 105x105 drawing of black squares: its number in binary, inside, and a mark that tells which way is up."""
    grid = np.zeros([7, 7], bool)
    grid[0, :2] = True
    for bit, cell in enumerate(CELLS):
        grid[cell] = (2 * label + drawing) >> bit & 1
    ink = np.kron(grid, np.ones([15, 15], bool))
    return np.where(ink, 0, 255).astype(np.uint8)[:, :, np.newaxis].repeat(3, axis=2)


def read(images):
    """Labels, drawings and quarter turns of images of ink, [..., 28, 28, 1]."""
    grids = images[..., 2::4, 2::4, 0]
    np.testing.assert_array_equal(np.kron(grids, np.ones([4, 4])), images[..., 0])
    assert set(np.unique(grids)) == {0.0, 1.0}
    upright = np.stack([np.rot90(grids, -k, axes=(-2, -1)) for k in range(4)])
    marked = upright[..., 0, 0] * upright[..., 0, 1]
    np.testing.assert_array_equal(marked.sum(0), 1)
    rows, columns = zip(*CELLS, strict=True)
    numbers = (upright[..., rows, columns] @ 2 ** np.arange(len(CELLS)) * marked).sum(0).astype(int)
    return numbers // 2, numbers % 2, marked.argmax(0)


def write_dataset(folder, characters):
    """An Omniglot of two drawings a character, in the files of TensorFlow Datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")

    def examples(labels):
        for label in labels:
            for drawing in range(2):
                yield (
                    f"{label}_{drawing}",
                    {"image": drawn(label, drawing), "label": label, "alphabet": 0, "alphabet_char_id": 0},
                )

    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="omniglot",
        version="3.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {
                "alphabet": tfds.features.ClassLabel(num_classes=50),
                "alphabet_char_id": np.int64,
                "image": tfds.features.Image(shape=(105, 105, 3)),
                "label": tfds.features.ClassLabel(num_classes=1623),
            }
        ),
        split_datasets={"train": examples(range(0, characters, 2)), "test": examples(range(1, characters, 2))},
    )
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("tfds"), 1623)


@pytest.fixture(scope="module")
def real(real_data):
    if not (real_data / "tfds" / "omniglot").is_dir():
        pytest.skip("no real data: tfds/omniglot is missing")
    return real_data / "tfds"


def sample(folder, split, count, **options):
    """Labels and quarter turns, [count, 20] each, of `count` checked tasks of 20 ways, 1 shot and 1 query."""
    options = {"ways": 20, "shots": 1, "queries": 1, "meta_batch": 10, "data_dir": folder, **options}
    tasks = list(omniglot(split, **options).take(count // 10))
    support, query = (np.concatenate(parts) for parts in zip(*[(t.support_x, t.query_x) for t in tasks], strict=True))
    for task in tasks:
        np.testing.assert_array_equal(task.support_y, [range(20)] * 10)
        np.testing.assert_array_equal(task.query_y, [range(20)] * 10)
    labels, drawings, turns = read(support)
    np.testing.assert_array_equal(read(query), (labels, 1 - drawings, turns))
    assert all(len(set(classes)) == 20 for classes in labels + 1623 * turns)
    return labels, turns


def test_shapes_and_dtypes(squares):
    spec = omniglot(queries=1, data_dir=squares).element_spec
    assert (spec.support_x.shape, spec.support_x.dtype) == ([16, 5, 28, 28, 1], np.float32)
    assert (spec.query_y.shape, spec.query_y.dtype) == ([16, 5], np.int32)


def test_splits_are_disjoint_and_hold_every_character(squares):
    seen = {}
    for split, size in BOUNDS.items():
        labels, turns = sample(squares, split, size, rotations=False)
        assert not turns.any()
        seen[split] = set(labels.flat)
        assert len(seen[split]) == size
    assert set.union(*seen.values()) == set(range(1623))


@pytest.mark.parametrize("split", BOUNDS)
def test_rotations_are_further_classes_of_every_split(squares, split):
    upright, _ = sample(squares, split, BOUNDS[split], rotations=False)
    labels, turns = sample(squares, split, 100)
    share = np.bincount(turns.flat, minlength=4) / turns.size
    assert np.all(np.abs(share - 0.25) < 0.04)  # four standard deviations
    assert np.isin(labels, upright).all()


def test_seed_changes_tasks_and_not_splits(squares):
    first, again, other = (sample(squares, "validation", 100, rotations=False, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert set(first.flat) == set(other.flat)
    resumed, _ = sample(squares, "validation", 10, rotations=False, seed=1, start=3)
    np.testing.assert_array_equal(resumed, first[30:40])


def test_golden_task(squares):
    """Splits and stream are a promise: if this fails, results of earlier versions cannot be reproduced."""
    labels, turns = sample(squares, "test", 10)
    assert labels[0, :6].tolist() == [1530, 544, 910, 1345, 147, 448]
    assert turns[0, :6].tolist() == [1, 1, 2, 0, 2, 2]


def test_download_of_a_prepared_dataset_changes_nothing(squares):
    np.testing.assert_array_equal(sample(squares, "test", 10, download=True), sample(squares, "test", 10))


def test_errors(squares, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split is 'valid', expected one of 'train', 'validation', 'test'"):
        omniglot("valid")
    with pytest.raises(ValueError, match="meta_batch is 0"):
        omniglot(meta_batch=0)
    with pytest.raises(ValueError, match="ways is 101 and there are 100 classes"):
        omniglot("validation", ways=101, queries=1, rotations=False, data_dir=squares)
    with pytest.raises(ValueError, match=r"class \d+ has 2 examples, expected at least shots \+ queries = 16"):
        omniglot(data_dir=squares)
    missing = f"Omniglot is not in {tmp_path}.*tfds build omniglot --data_dir={tmp_path}`.*download=True"
    with pytest.raises(FileNotFoundError, match=missing):
        omniglot(data_dir=tmp_path)
    with pytest.raises(ValueError, match="holds 30 characters, expected 1623: this copy is incomplete"):
        omniglot(data_dir=write_dataset(tmp_path, 30))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        omniglot(data_dir=squares)


def test_shrinking_averages_areas():
    paper = np.random.RandomState(0).randint(0, 256, [3, 105, 105, 1]).astype(np.uint8)
    images, _ = _omniglot._shrink(tf.constant(paper), tf.range(3))
    edges = np.arange(106)
    low, high = (edges[:28, np.newaxis] + end for end in (0, 1))
    shares = np.clip(np.minimum(high * 3.75, edges[1:]) - np.maximum(low * 3.75, edges[:-1]), 0, None) / 3.75
    expected = 255 - np.einsum("ia,nabc,jb->nijc", shares, paper, shares)
    assert images.dtype == tf.uint8
    np.testing.assert_allclose(images, expected, atol=0.5 + 1e-3)


def test_real_drawings(real):
    images, labels = _omniglot.load_drawings(str(real / "omniglot" / "3.0.0"))
    assert (images.shape, images.dtype) == ((32_460, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(np.bincount(labels), [20] * 1623)
    assert images.max() == 255 and images.min() == 0
    assert 0.05 < np.mean(images > 127) < 0.2  # thin ink
    assert np.mean(images[:, [0, -1]] > 127) < 0.02  # on an empty margin
    assert images.any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("split", BOUNDS)
def test_real_splits(real, split):
    images, labels = _omniglot.load_drawings(str(real / "omniglot" / "3.0.0"))
    x, y = _omniglot.select_classes(images, labels, split, rotations=True)
    base_x, base_y = _omniglot.select_classes(images, labels, split, rotations=False)
    assert len(set(base_y)) == BOUNDS[split] and len(set(y)) == 4 * BOUNDS[split]
    np.testing.assert_array_equal(np.unique(y, return_counts=True)[1], 20)
    for k, (part, part_y) in enumerate(zip(np.split(x, 4), np.split(y, 4), strict=True)):
        np.testing.assert_array_equal(part, [np.rot90(image, k) for image in base_x])
        assert not set(part_y) & set(base_y) or k == 0
    others = [other for other in BOUNDS if other != split]
    for other in others:
        assert not set(base_y) & set(_omniglot.select_classes(images, labels, other, rotations=False)[1])


def test_real_tasks(real):
    task = next(iter(omniglot("test", data_dir=real)))
    for part in (task.support_x, task.query_x):
        part = part.numpy()
        assert part.min() == 0 and part.max() == 1
        np.testing.assert_allclose(part * 255, np.round(part * 255), atol=1e-4)
    assert len(np.unique(task.query_x.numpy().reshape(-1, 784), axis=0)) > 0.95 * 16 * 75
