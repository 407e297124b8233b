import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")
import squares
import tensorflow_datasets as tfds
from hostile import check_sentence
from squares import NAMES, SMALL, same

from tf_metagrad.data import _prepared, from_tfds

ALL = {"all": 1.0}
pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def trees(quiet, tmp_path_factory):
    return squares.write_dataset(tmp_path_factory.mktemp("tfds"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_tasks_are_images_of_the_classes_that_their_labels_say(trees, in_memory):
    tasks = from_tfds("trees", "all", splits=ALL, data_dir=trees, in_memory=in_memory, **SMALL)
    spec = tasks.element_spec
    assert (spec.support_x.shape, spec.support_x.dtype) == ([3, 2, 8, 8, 3], np.float32)
    classes, seen = squares.drawn(tasks, 30)
    assert {*classes.flat} == {*NAMES} and len(seen) == sum(squares.COUNTS)  # training and test examples


def test_memory_and_a_file_give_the_same_tasks_bit_for_bit(trees):
    for size in (None, (5, 11)):
        held, read = (
            from_tfds("trees", "train", data_dir=trees, size=size, in_memory=in_memory, seed=3, start=2, **SMALL)
            for in_memory in (True, False)
        )
        same(held, read)
    folder = trees / "trees" / "1.0.0" / "decoded"
    assert sorted(path.name for path in folder.iterdir()) == [
        "train+test-image-label-5x11", "train+test-image-label-8x8"
    ]  # fmt: skip


def test_a_file_is_made_once(trees, monkeypatch):
    first = from_tfds("trees", data_dir=trees, in_memory=False, **SMALL)
    _prepared._read.cache_clear()  # as in a new process
    monkeypatch.setattr(_prepared, "_batches", lambda *_: pytest.fail("the images are decoded again"))
    same(first, from_tfds("trees", data_dir=trees, in_memory=False, **SMALL))


def test_large_sets_are_read_from_a_file(trees, monkeypatch):
    folder = str(trees / "trees" / "1.0.0")
    size = sum(squares.COUNTS) * 8 * 8 * 3
    for limit, kind in ((size, "Tensor"), (size - 1, "memmap")):
        monkeypatch.setattr(_prepared, "IN_MEMORY", limit)
        images = _prepared.read(folder, "train+test", label="label").images
        assert kind in type(images).__name__


def test_examples_and_splits(trees):
    options = {"data_dir": trees, **SMALL, "queries": 1}
    _, seen = squares.drawn(from_tfds("trees", "all", splits=ALL, examples="train", **options), 30)
    assert all(number % 2 == 0 for _, number in seen)
    parts = [
        {*squares.drawn(from_tfds("trees", split, splits={"a": 0.4, "b": 0.6}, **options), 20)[0].flat}
        for split in "ab"
    ]
    assert [len(part) for part in parts] == [2, 3] and not parts[0] & parts[1]


def test_golden_task(trees):
    """Splits and stream are a promise: if this fails, results of earlier versions cannot be reproduced."""
    tasks = from_tfds("trees", "train", seed=11, start=4, data_dir=trees, **SMALL)
    assert squares.drawn(tasks, 1)[0].tolist() == [["fir", "elm"], ["ash", "fir"], ["elm", "ash"]]


@pytest.mark.parametrize(("labels", "feature"), [(NAMES, tfds.features.Text()), ([7, 3, 5, 4, 9], np.int64)])
def test_labels_of_text_and_of_numbers(tmp_path, labels, feature):
    squares.write_dataset(tmp_path, labels=labels, feature=feature, key="photo")
    options = {
        "keys": ("photo", "label"),
        "data_dir": tmp_path,
        "splits": {"some": [str(labels[k]) for k in (0, 2, 4)]},
    }
    classes, _ = squares.drawn(from_tfds("trees", "some", **options, **SMALL), 20)
    assert {*classes.flat} == {"ash", "fir", "yew"}


def test_images_of_many_sizes(tmp_path):
    squares.write_dataset(tmp_path, shape=(None, None, 3))
    options = {"keys": ("image", "label"), "data_dir": tmp_path, **SMALL}
    with pytest.raises(ValueError, match=r"The images are of many sizes, expected one: pass size=\(84, 84\)"):
        from_tfds("trees", **options)
    assert from_tfds("trees", **options, size=(6, 7)).element_spec.query_x.shape == [3, 4, 6, 7, 3]
    assert len(squares.drawn(from_tfds("trees", "all", splits=ALL, size=(8, 8), **options), 30)[1]) == 22


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "bushes"}, "name is 'bushes', expected a dataset of TensorFlow Datasets"),
        ({"split": "valid"}, "split is 'valid', expected one of"),
        ({"keys": ("photo", "label")}, r"keys is \('photo', 'label'\) and the features of trees are .*, expected the"),
        ({"keys": ("label", "image")}, r"keys is \('label', 'image'\)"),
        ({"keys": "image"}, "keys is 'image'"),
        ({"size": (0, 8)}, r"size is \(0, 8\), expected height and width"),
        ({"examples": "validation"}, "examples is 'validation', expected"),
        ({"queries": 3, "split": "all", "splits": ALL}, "class 'elm' has 3 examples, expected at least .* = 4"),
        ({"shots": 0}, "shots is 0"),
    ],
)
def test_errors(trees, change, message):
    with pytest.raises(ValueError, match=message) as error:
        from_tfds(**{"name": "trees", "data_dir": trees, **SMALL, **change})
    check_sentence(str(error.value))


def test_other_errors(trees, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=f"cifar10 is not in {tmp_path}.*tfds build cifar10 --data_dir={tmp_path}`"
    ):
        from_tfds("cifar10", data_dir=tmp_path, **SMALL)
    with pytest.raises(FileNotFoundError, match=f"emnist/digits is not in {tmp_path}.*--data_dir={tmp_path}`"):
        from_tfds("emnist/digits", data_dir=tmp_path, **SMALL)
    squares.write_dataset(tmp_path, "shy", labels=[0, 1, -1, 2, 3])
    with pytest.raises(ValueError, match="An example has the label -1, which means that it has none") as error:
        from_tfds("shy", data_dir=tmp_path, keys=("image", "label"), **SMALL)
    check_sentence(str(error.value))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        from_tfds("trees", data_dir=trees, **SMALL)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    squares.write_dataset(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="cannot be written to .* 4224 bytes: make room, .* in_memory=True") as error:
        from_tfds("trees", data_dir=tmp_path, in_memory=False, **SMALL)
    check_sentence(str(error.value))
    assert not list((tmp_path / "trees" / "1.0.0" / "decoded").iterdir())
