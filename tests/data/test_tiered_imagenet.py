import os
import pickle
import sys

import numpy as np
import pytest
import python2

pytest.importorskip("tensorflow_datasets")
import tiered_imagenet_files as files
from hostile import check_sentence, few, refused, watched
from hypothesis import given
from hypothesis import strategies as st

from tf_metagrad.data import _pickles, _prepared, _tiered_imagenet_builder, tiered_imagenet

SMALL = files.SMALL
pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def tiered(quiet, tmp_path_factory):
    """A folder in which tiered-ImageNet was prepared; the files are gone."""
    manual, data = (tmp_path_factory.mktemp(name) for name in ("manual", "data"))
    tiered_imagenet(data_dir=data, manual_dir=files.write(manual), **SMALL)
    for path in manual.iterdir():
        path.unlink()
    return data


def read(data, split, in_memory=True):
    return _prepared.read(str(data / "tiered_imagenet" / "1.0.0"), split, in_memory=in_memory)


def drawn(task, split):
    """The place and the class of every image of a task, by its pixels; support first."""
    known = {files.picture(split, place).tobytes(): place for place in range(3 * files.COUNT)}
    images = np.concatenate([task.support_x, task.query_x])
    places = [known[np.round(x * 255).astype(np.uint8).tobytes()] for x in images]
    return places, files.numbers()[places]


# What comes out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("validation", "val"), ("test", "test")])
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_image_is_there_once_in_order_with_its_class(tiered, split, name, in_memory):
    images, labels, names = read(tiered, split, in_memory)
    np.testing.assert_array_equal(images, [files.picture(name, place) for place in range(3 * files.COUNT)])
    assert [names[label] for label in labels] == [files.CLASSES[name][number] for number in files.numbers()]


@pytest.mark.parametrize("in_memory", [True, False])
def test_tasks_are_images_of_the_classes_that_their_labels_say(tiered, in_memory):
    tasks = tiered_imagenet("validation", data_dir=tiered, in_memory=in_memory, **SMALL)
    assert tasks.element_spec.query_x.shape == [2, 6, 84, 84, 3]
    for task in tasks.take(5).unbatch():
        places, classes = drawn(task, "val")
        assert len(set(places)) == 9 and sorted(classes[:3]) == [0, 1, 2]
        np.testing.assert_array_equal(classes[3:], classes[:3][task.query_y])


def test_golden_task(tiered):
    """The stream is a promise: if this fails, results of earlier versions cannot be reproduced."""
    task = next(iter(tiered_imagenet("test", data_dir=tiered, **SMALL, seed=11, start=4).unbatch()))
    assert drawn(task, "test")[0] == GOLDEN


GOLDEN = [8, 11, 1, 10, 3, 2, 7, 4, 0]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5, "Python 2"])
def test_the_pickles_are_read_whatever_wrote_them(tmp_path, protocol):
    files.write(tmp_path, protocol)
    numbers, names = _tiered_imagenet_builder.read_labels(tmp_path / "val_labels.pkl")
    images = _tiered_imagenet_builder.read_images(tmp_path / "val_images_png.pkl", 12)
    np.testing.assert_array_equal(numbers, files.numbers())
    assert names == files.CLASSES["val"]
    assert [x.tobytes() for x in images] == [x.tobytes() for x in files.contents("val")["images_png"]]


def test_more_images_than_tuples_in_dicts_are_read(tmp_path):
    """Each array of a pickle takes four tuples; the limit on them is one of dicts."""
    count = _pickles.TUPLES
    (tmp_path / "a.pkl").write_bytes(python2.dumps([np.full([3, 1], k % 256, np.uint8) for k in range(count)]))
    images = _tiered_imagenet_builder.read_images(tmp_path / "a.pkl", count)
    assert images[300].tolist() == [[44]] * 3 and len(images) == count


@pytest.mark.parametrize(
    "where", ["downloads/manual/tiered_imagenet", "downloads/manual/tiered_imagenet/tiered-imagenet"]
)
def test_files_where_users_put_them(tiered, tmp_path, where):
    (tmp_path / where).mkdir(parents=True)
    files.write(tmp_path / where)
    tiered_imagenet(data_dir=tmp_path, **SMALL)
    for part, other in zip(read(tmp_path, "test"), read(tiered, "test"), strict=True):
        np.testing.assert_array_equal(part, other)


# Where something is wrong ---------------------------------------------------------------------------------------------


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="does not exist, and lacks train_images_png.pkl, train_labels.pkl, val_"
    ) as error:
        tiered_imagenet(data_dir=tmp_path)
    assert str(tmp_path / "downloads" / "manual" / "tiered_imagenet") in str(error.value)
    assert "github.com/renmengye/few-shot-ssl-public" in str(error.value)
    files.write(tmp_path)
    (tmp_path / "val_labels.pkl").unlink()
    with pytest.raises(FileNotFoundError, match="of tiered-ImageNet lacks val_labels.pkl, expected the whole set"):
        tiered_imagenet(data_dir=tmp_path, manual_dir=tmp_path)
    assert not (tmp_path / "tiered_imagenet").exists()


def test_errors(tiered, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split is 'val', expected one of 'train', 'validation', 'test'"):
        tiered_imagenet("val")
    with pytest.raises(ValueError, match=r"class 'train 0, of several words' has 4 examples, .* = 5: lower"):
        tiered_imagenet(data_dir=tiered, **{**SMALL, "queries": 4})
    contents = files.contents("val")
    fewer = {"val_images_png": contents["images_png"][:-1]}
    with pytest.raises(ValueError, match="11 images for 12 labels"):
        tiered_imagenet(data_dir=tmp_path / "data", manual_dir=files.write(tmp_path / "manual", **fewer), **SMALL)
    with pytest.raises(ValueError, match="was prepared from other files than those in .*: delete the former"):
        tiered_imagenet(data_dir=tiered, manual_dir=tmp_path / "manual", **SMALL)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="tiered-ImageNet is read .*pip install tensorflow-datasets"):
        tiered_imagenet(data_dir=tiered)


def spoilt(place, image):
    images = files.contents("val")["images_png"]
    images[place] = image
    return {"val_images_png": images}


def relabelled(**changed):
    return {"val_labels": files.contents("val")["labels"] | changed}


SPOILT = {
    "a cut image": (spoilt(5, files.png(files.picture("val", 5))[:90]), r"val_images_png.pkl\[5\]' cannot be read"),
    "another size": (spoilt(5, files.png(np.zeros([32, 32, 3], np.uint8))), r"png.pkl\[5\]' is 32 by 32 pixels"),
    "no image": (spoilt(0, np.zeros(0, np.uint8)), r"val_images_png.pkl\[0\]' cannot be read"),
    "an image of numbers": (spoilt(0, np.zeros(9, np.int32)), "a list of other values"),
    "a shared class": (
        relabelled(label_specific_str=["a", "train 0, of several words", "b"]),
        "train_labels.pkl and in",
    ),
    "a class twice": (relabelled(label_specific_str=["a", "b", "a"]), "a class has the name of another"),
    "a number beyond": (relabelled(label_specific_str=["a", "b"]), "not between 0 and 1"),
    "no names": ({"val_labels": {"label_specific": files.numbers()}}, "label_specific_str"),
    "a list of labels": ({"val_labels": [1, 2]}, "does not hold labels of tiered-ImageNet"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_files_end_in_a_sentence_and_leave_nothing_prepared(name, tmp_path):
    changed, message = SPOILT[name]
    manual, data = files.write(tmp_path / "manual", **changed), tmp_path / "data"
    with watched() as seen, pytest.raises(ValueError, match=message) as error:
        tiered_imagenet(data_dir=data, manual_dir=manual, **SMALL)
    check_sentence(str(error.value))
    assert not list((data / "tiered_imagenet").glob("*")) and not [path for path in seen.written if str(manual) in path]


class Call:
    def __reduce__(self):
        return os.system, ("touch canary",)


TUPLES = b"\x80\x02)" + b"\x85" * 200_000


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([Call()]),
        pickle.dumps({"label_specific": Call()}),
        TUPLES + b".",
        b"}" + TUPLES + b"K\x01s.",
        b"[]",
    ],
    ids=["a call", "a call in a dict", "tuples in tuples", "tuples as a key", "text"],
)
def test_malicious_pickles_are_refused_and_nothing_runs(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(data)
    for reader in (_tiered_imagenet_builder.read_labels, lambda path: _tiered_imagenet_builder.read_images(path, 1)):
        with watched() as seen, pytest.raises(ValueError, match="a.pkl' (is not a|does not hold)") as error:
            reader(tmp_path / "a.pkl")
        check_sentence(str(error.value))
        assert not seen.executed and not seen.written and len(list(tmp_path.iterdir())) == 1


WHOLE = {part: python2.dumps(content) for part, content in files.contents("train").items()}


@pytest.mark.parametrize("part", WHOLE)
@few
@given(data=st.data())
def test_damaged_pickles_are_read_or_refused(tmp_path_factory, part, data):
    whole = bytearray(WHOLE[part])
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, min(len(whole), 1200) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"{part}.pkl"
    path.write_bytes(whole[: data.draw(st.one_of(st.none(), st.integers(0, len(whole))))])
    with refused(), watched() as seen:
        if part == "labels":
            numbers, names = _tiered_imagenet_builder.read_labels(path)
            assert numbers.min() >= 0 and numbers.max() < len(set(names))
        else:
            assert len(_tiered_imagenet_builder.read_images(path, 12)) == 12
    assert not seen.executed
