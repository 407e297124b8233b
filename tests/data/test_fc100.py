import pytest

pytest.importorskip("tensorflow_datasets")
import cifar100_files as files

from tf_metagrad.data import fc100

SMALL = {"ways": 5, "shots": 1, "queries": 2, "meta_batch": 40}
# As the script published with TADAM numbers the superclasses, in alphabetical order
SPLITS = {
    "train": {1, 2, 3, 4, 5, 6, 9, 10, 15, 17, 18, 19},
    "validation": {8, 11, 13, 16},
    "test": {0, 7, 12, 14},
}
# The number of the superclass of each class, in alphabetical order, as CIFAR-100's own files have it
SUPERCLASS = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
]  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_draws_the_classes_of_its_superclasses_and_no_other(cifar100, split):
    expected = {name for name, number in zip(files.NAMES, SUPERCLASS, strict=True) if number in SPLITS[split]}
    classes, seen = files.drawn(fc100(split, data_dir=cifar100, **SMALL), 4)
    assert {*classes.flat} == expected and len(seen) == 3 * len(expected)
    assert len(expected) == {"train": 60, "validation": 20, "test": 20}[split]


def test_golden_task(cifar100):
    """Splits and stream are a promise: if this fails, results of earlier versions cannot be reproduced."""
    classes, _ = files.drawn(fc100("test", data_dir=cifar100, **{**SMALL, "meta_batch": 1}, seed=11, start=4), 1)
    assert " ".join(classes[0]) == "cockroach otter caterpillar bee girl"


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="split is 'val', expected one of 'train', 'validation', 'test'"):
        fc100("val")
    with pytest.raises(FileNotFoundError, match=f"CIFAR-100, of which FC100 is made, is not in {tmp_path}"):
        fc100(data_dir=tmp_path)
