import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")
import cifar100_files as files

from tf_metagrad.data import _cifar100, cifar_fs

SMALL = {"ways": 5, "shots": 1, "queries": 2, "meta_batch": 40}
# The order of the published lists of Bertinetto et al., which differs from the library's
VALIDATION = (
    "otter motorcycle television lamp crocodile shark butterfly beaver beetle tractor flatfish maple_tree camel crab "
    "sea cattle"
).split()
TEST = (
    "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
    "telephone wardrobe whale woman worm"
).split()


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", {*files.NAMES} - {*VALIDATION} - {*TEST}), ("validation", {*VALIDATION}), ("test", {*TEST})],
)
def test_a_split_draws_its_classes_and_no_other(cifar100, split, expected):
    assert len(expected) == {"train": 64, "validation": 16, "test": 20}[split]
    classes, seen = files.drawn(cifar_fs(split, data_dir=cifar100, **SMALL), 4)
    assert {*classes.flat} == expected and len(seen) == 3 * len(expected)  # training and test images of CIFAR-100
    assert all(len({*row}) == 5 for row in classes)


def test_shapes_and_dtypes(cifar100):
    spec = cifar_fs(data_dir=cifar100, **SMALL).element_spec
    assert (spec.support_x.shape, spec.support_x.dtype) == ([40, 5, 32, 32, 3], np.float32)
    assert (spec.query_x.shape, spec.query_y.dtype) == ([40, 10, 32, 32, 3], np.int32)


def test_stream_is_reproducible_and_resumes(cifar100):
    small = {**SMALL, "meta_batch": 2, "data_dir": cifar100}
    whole, again, resumed, other = (
        files.drawn(cifar_fs(seed=seed, start=start, **small), 3)[0] for seed, start in [(1, 0), (1, 0), (1, 2), (2, 0)]
    )
    np.testing.assert_array_equal(whole, again)
    np.testing.assert_array_equal(whole[4:], resumed[:2])
    assert not np.array_equal(whole, other)


def test_golden_task(cifar100):
    """Splits and stream are a promise: if this fails, results of earlier versions cannot be reproduced."""
    classes, _ = files.drawn(cifar_fs("test", data_dir=cifar100, **{**SMALL, "meta_batch": 1}, seed=11, start=4), 1)
    assert " ".join(classes[0]) == "pickup_truck snail man bicycle rocket"


def test_errors(cifar100, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split is 'val', expected one of 'train', 'validation', 'test'"):
        cifar_fs("val")
    with pytest.raises(ValueError, match="shots is 0"):
        cifar_fs(shots=0)
    with pytest.raises(ValueError, match=r"class 'baby' has 3 examples, expected at least shots \+ queries = 4"):
        cifar_fs("test", data_dir=cifar100, queries=3)
    missing = f"CIFAR-100, of which CIFAR-FS is made, is not in {tmp_path}.*tfds build cifar100 --data_dir={tmp_path}`"
    with pytest.raises(FileNotFoundError, match=missing):
        cifar_fs(data_dir=tmp_path)
    files.write(tmp_path, ["unicorn", *files.NAMES[1:50]])
    with pytest.raises(ValueError, match="holds 50 classes, 49 of them known by name, expected all 100"):
        cifar_fs(data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        cifar_fs(data_dir=cifar100)


def test_the_names_are_those_of_cifar100():
    assert len(_cifar100.CLASSES) == 100 and len(_cifar100.SUPERCLASSES) == 20
    assert all(len(names.split()) == 5 for names in _cifar100.SUPERCLASSES.values())
