"""Files from anywhere: read whole, or refused in one sentence; nothing executed, nothing written."""

import io
import os
import zipfile

import hypothesis
import mini_imagenet_files as files
import numpy as np
import pytest
from hostile import check_sentence, few, refused, watched
from hypothesis import given
from hypothesis import strategies as st

from tf_metagrad.data import _manual

JPEG, PNG = (encode(files.picture("train", "n00", 0, 20, 20)) for encode in (files.jpeg, files.png))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


# Images, archives, tables ---------------------------------------------------------------------------------------------


@few
@given(st.data())
def test_a_damaged_image_is_decoded_or_refused(data):
    whole = bytearray(data.draw(st.sampled_from([JPEG, PNG])))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(whole) - 1)))
    with refused():
        image = _manual.decode_image(bytes(whole[:cut]), "a.jpg")
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("whole", [JPEG, PNG], ids=["jpeg", "png"])
def test_a_truncated_image_is_refused(whole):
    for cut in {*range(0, len(whole) - 20, 37), 2, 3, 24}:
        with pytest.raises(ValueError, match="The image 'a.jpg' cannot be read") as error:
            _manual.decode_image(whole[:cut], "a.jpg")
        check_sentence(str(error.value))


def test_an_image_larger_than_memory_is_refused_before_it_is_decoded():
    huge = PNG[:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:]
    start = JPEG.index(b"\xff\xc0") + 5
    for data in (huge, JPEG[:start] + b"\xea\x60\xea\x60" + JPEG[start + 4 :]):
        with pytest.raises(ValueError, match="60000 by 60000 pixels, where at most 50000000 in all are read"):
            _manual.decode_image(data, "a.png")


OUTSIDE = [
    "../a.jpg",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "",
    "a//b",
    "a\\..\\b",
    "C:a.jpg",
    "a\nb.jpg",
    "a/./b",
    "~/\0",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(name, folder):
    inner = folder / "inner" / "images"
    inner.mkdir(parents=True, exist_ok=True)
    (folder / "inner" / "a.jpg").write_bytes(JPEG)
    with pytest.raises(ValueError, match="expected a name inside the folder of images") as error:
        _manual.Images(inner).read(name)
    check_sentence(str(error.value))


@pytest.mark.parametrize("name", ["../canary.jpg", "/canary.jpg", "images/../../canary.jpg", "..\\canary.jpg"])
def test_an_archive_that_leads_out_is_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/a.jpg", JPEG)
        archive.writestr(name, JPEG)
    with watched() as seen, pytest.raises(ValueError, match="expected a name inside the folder of images"):
        _manual.Images(tmp_path / "images.zip")
    assert not seen.written and [path.name for path in tmp_path.iterdir()] == ["images.zip"]


def test_what_is_no_image_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(_manual.BYTES + 1)
    for name, message in (
        ("folder", "no regular"),
        ("pipe", "no regular"),
        ("gone", "is missing"),
        ("large", "at most"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            _manual.Images(tmp_path).read(name)
        check_sentence(str(error.value))


def archive_of(method):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        archive.writestr("images/a.jpg", JPEG)
    return data.getvalue()


ARCHIVES = [archive_of(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]


@hypothesis.settings(few, max_examples=150)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused(folder, data):
    whole = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(0, 3))):
        ends = st.one_of(st.integers(0, 40), st.integers(len(whole) - 90, len(whole) - 1))
        whole[data.draw(ends)] = data.draw(st.integers(0, 255))
    (folder / "images.zip").write_bytes(whole[: data.draw(st.one_of(st.none(), st.integers(0, len(whole))))])
    with refused(), watched() as seen, _manual.Images(folder / "images.zip") as images:
        assert images.read("a.jpg") == JPEG
    assert not seen.written


cells = st.sampled_from(
    ["filename", "label", "a.jpg", "b", "", ",", '"', "\n", "\r", "\ufeff", "\0", "é", "../x", "x" * 200_000]
)


@few
@given(st.lists(cells, max_size=9).map("".join), st.sampled_from(["utf-8", "utf-16", "latin1"]), st.booleans())
def test_a_table_is_read_or_refused(folder, text, encoding, header):
    text = ("filename,label\n" if header else "") + text
    (folder / "train.csv").write_bytes(text.encode(encoding, "replace"))
    with refused():
        rows = _manual.read_table(folder / "train.csv", ("filename", "label"))
        assert rows and all(len(row) == 2 and all(row) for row in rows)
