"""Pickles from anywhere: read as data, or refused in one sentence; nothing executed, nothing written."""

import os
import pickle

import numpy as np
import pytest
import python2
from hostile import check_sentence, few, refused, watched
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tensorflow_datasets")

from tf_metagrad.data import _mini_imagenet_builder, _pickles

SMALL = {"image_data": np.arange(2 * 84 * 84 * 3, dtype=np.uint8).reshape(2, 84, 84, 3), "class_dict": {"a": [1, 0]}}
WHOLE = {protocol: pickle.dumps(SMALL, protocol) for protocol in (2, 5)} | {"Python 2": python2.dumps(SMALL)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


def read(folder, data, name="a.pkl"):
    """What `read_cache` makes of the bytes; the file is the only one in its folder, before and after."""
    (folder / name).write_bytes(data)
    with watched() as seen:
        try:
            return _mini_imagenet_builder.read_cache(folder / name)
        finally:
            assert not seen.executed and not seen.written
            assert [path.name for path in folder.iterdir()] == [name]


class Call:
    """An object whose pickle asks for a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def place(folder):
    place = folder / "pickles"
    place.mkdir(exist_ok=True)
    for path in place.iterdir():
        path.unlink()
    return place


MALICIOUS = {
    "os.system": pickle.dumps(Call(os.system, "touch canary")),
    "eval": pickle.dumps(Call(eval, "open('canary', 'w')")),
    "open": pickle.dumps(Call(open, "canary", "w")),
    "getattr": pickle.dumps({"image_data": Call(getattr, "text", "upper"), "class_dict": {}}, 4),
    "numpy.load": pickle.dumps(Call(np.load, "canary.npy")),
    "object array": pickle.dumps({"image_data": np.array([Call(os.system, "touch canary")]), "class_dict": {}}),
    "float array": pickle.dumps({"image_data": np.zeros([1, 84, 84, 3]), "class_dict": {"a": [0]}}),
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0ccore.records\x93.",
    "instance": b"(ios\nsystem\n(S'touch canary'\ntR.",
    "persistent": b"\x80\x04Pfile\n.",
    "extension": b"\x80\x02\x82\x01.",
    "memo without end": b"\x80\x02]r\xff\xff\xff\x7f.",
    "bytes without end": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.",
    "tuples in tuples": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "stolen class": b"cnumpy\nndarray\n}(U\x04kindU\x05dtypeub.",
    "class for a value": b"\x80\x02}(U\nimage_datacnumpy\nndarray\nU\nclass_dict}u.",
    "array without state": b"\x80\x02}(U\nimage_datacnumpy.core.multiarray\n_reconstruct\n(tRU\nclass_dict}u.",
    "nothing": b"",
    "a number": b"I1\n.",
    "text": b"image_data",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_is_refused_and_nothing_runs(name, place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match="a.pkl' is not a ") as error:
        read(place, MALICIOUS[name])
    check_sentence(str(error.value))


WRONG = {
    "no images": {"class_dict": {}},
    "too small": SMALL | {"image_data": np.zeros([2, 28, 28, 1], np.uint8)},
    "no classes": SMALL | {"class_dict": {}},
    "a class of none": SMALL | {"class_dict": {"a": []}},
    "positions beyond": SMALL | {"class_dict": {"a": [0, 2]}},
    "positions below": SMALL | {"class_dict": {"a": [-1]}},
    "positions in two classes": SMALL | {"class_dict": {"a": [0], "b": [0]}},
    "positions of text": SMALL | {"class_dict": {"a": "01"}},
    "positions of True": SMALL | {"class_dict": {"a": [True]}},
    "positions too large": SMALL | {"class_dict": {"a": [2**80]}},
    "a name of bytes": SMALL | {"class_dict": {b"\xff": [0]}},
    "a name with a line": SMALL | {"class_dict": {"a\nb": [0]}},
    "a list": [1, 2],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_pickle_of_something_else_is_refused(name, place):
    with pytest.raises(ValueError, match="is not a cache of mini-ImageNet .*: fetch the file again") as error:
        read(place, pickle.dumps(WRONG[name]))
    check_sentence(str(error.value))


@pytest.mark.parametrize("kind", WHOLE)
@few
@given(data=st.data())
def test_a_damaged_pickle_is_read_or_refused(folder, kind, data):
    whole, size = bytearray(WHOLE[kind]), len(WHOLE[kind])
    ends = st.one_of(st.integers(0, 300), st.integers(size - 120, size - 1))  # the instructions; the rest is pixels
    for position in data.draw(st.lists(ends, max_size=3)):
        whole[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), ends))
    place = folder / "damaged"
    place.mkdir(exist_ok=True)
    with refused():
        images, classes = read(place, bytes(whole[:cut]))
        assert images.dtype == np.uint8 and images.shape[1:] == (84, 84, 3)
        assert all(0 <= position < len(images) for positions in classes.values() for position in positions)


@few
@given(st.binary(max_size=60))
def test_bytes_are_no_pickle_or_plain(folder, data):
    path = folder / "bytes"
    path.write_bytes(data)
    with refused(), watched() as seen:
        _pickles.load(path)
    assert not seen.executed and not seen.written


@few
@given(
    st.recursive(
        st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5), st.binary(max_size=5), st.none(), st.booleans()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3), st.tuples(inner)
        ),
        max_leaves=8,
    ),
    st.sampled_from([2, 3, 4, 5]),
)
def test_plain_values_come_back_as_they_were(folder, value, protocol):
    path = folder / "plain"
    path.write_bytes(pickle.dumps(value, protocol))
    assert _pickles.load(path) == value


@few
@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["u1", "<i4", ">i8", "?", "i2"]),
    st.booleans(),
    st.integers(0, 5),
)
def test_arrays_come_back_as_they_were(folder, shape, dtype, fortran, protocol):
    path, count = folder / "array", int(np.prod(shape))
    value = np.asarray(np.arange(count).astype(dtype).reshape(shape), order="F" if fortran else "C")
    path.write_bytes(pickle.dumps([value], protocol))
    (found,) = _pickles.load(path)
    assert found.dtype == value.dtype and not found.flags.writeable
    np.testing.assert_array_equal(found, value, strict=True)
