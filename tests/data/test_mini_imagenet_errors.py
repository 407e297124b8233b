"""mini-ImageNet where something is wrong: one sentence that names the file, and nothing left behind."""

import sys
import tempfile

import pytest

pytest.importorskip("tensorflow_datasets")
import mini_imagenet_files as files
from hostile import watched

from tf_metagrad.data import mini_imagenet

SMALL = files.SMALL
pytestmark = pytest.mark.usefixtures("prepared")  # which also loads what TensorFlow Datasets loads late


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="does not exist, and lacks train.csv, val.csv, test.csv, images/ or images.zip"
    ) as error:
        mini_imagenet(data_dir=tmp_path)
    assert str(tmp_path / "downloads" / "manual" / "mini_imagenet") in str(error.value)
    assert "image-net.org" in str(error.value) and "filename,label" in str(error.value)
    files.write_tables(tmp_path)
    with pytest.raises(FileNotFoundError, match="of mini-ImageNet lacks images/ or images.zip, expected the whole set"):
        mini_imagenet(data_dir=tmp_path, manual_dir=tmp_path)
    files.write_images(tmp_path)
    (tmp_path / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match="lacks val.csv, expected"):
        mini_imagenet(data_dir=tmp_path, manual_dir=tmp_path)
    caches = tmp_path / "caches"
    caches.mkdir()
    files.write_caches(caches)
    (caches / "mini-imagenet-cache-val.pkl").unlink()
    with pytest.raises(FileNotFoundError, match="lacks mini-imagenet-cache-val.pkl, expected"):
        mini_imagenet(data_dir=tmp_path, manual_dir=caches)
    assert not (tmp_path / "mini_imagenet").exists()


def test_errors(prepared, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split is 'val', expected one of 'train', 'validation', 'test'"):
        mini_imagenet("val")
    with pytest.raises(ValueError, match="shots is 0"):
        mini_imagenet(shots=0)
    with pytest.raises(ValueError, match=r"class 'n00' has 4 examples, .* = 5: lower"):
        mini_imagenet(data_dir=prepared, **{**SMALL, "queries": 4})
    with pytest.raises(ValueError, match="ways is 5 and there are 3 classes"):
        mini_imagenet(data_dir=prepared, **{**SMALL, "ways": 5})
    files.write_caches(tmp_path)
    with pytest.raises(ValueError, match="was prepared from other files than those in .*: delete the former"):
        mini_imagenet(data_dir=prepared, manual_dir=tmp_path, **SMALL)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        mini_imagenet(data_dir=prepared)


def cut_an_image(folder):
    path = folder / "images" / "n11_2.jpg"
    path.write_bytes(path.read_bytes()[:600])


def lose_an_image(folder):
    (folder / "images" / "n11_2.jpg").unlink()


def rename_a_column(folder):
    path = folder / "val.csv"
    path.write_text(path.read_text().replace("filename,label", "file,class"))


def repeat_a_line(folder):
    path = folder / "val.csv"
    path.write_text(path.read_text() + "n11_2.jpg,n11\n")


def share_a_class(folder):
    path = folder / "val.csv"
    path.write_text(path.read_text() + "other.jpg,n01\n")


def lead_out(folder):
    path = folder / "val.csv"
    path.write_text(path.read_text() + "../secret.jpg,n11\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_an_image, "The image 'n11_2.jpg' cannot be read (.*), expected a whole JPEG or PNG file: fetch"),
        (lose_an_image, "The image 'n11_2.jpg' is missing in .*images', expected every file that the tables name"),
        (rename_a_column, "val.csv' begins with the columns 'file', 'class', expected .* filename, label: put"),
        (repeat_a_line, "names the file 'n11_2.jpg', which was named before, expected every image once"),
        (share_a_class, "The class 'n01' is in train.csv and in val.csv, expected splits that share no class"),
        (lead_out, "names the file '../secret.jpg', expected a name inside the folder of images"),
    ],
)
def test_spoilt_files_end_in_a_sentence_and_leave_nothing_prepared(spoil, message, tmp_path):
    manual, data = tmp_path / "manual", tmp_path / "data"
    manual.mkdir()
    files.write_images(files.write_tables(manual))
    spoil(manual)
    with pytest.raises(ValueError, match=message) as error:
        mini_imagenet(data_dir=data, manual_dir=manual, **SMALL)
    assert "\n" not in str(error.value)
    assert not list((data / "mini_imagenet").glob("*"))


@pytest.mark.parametrize("spoil", [None, cut_an_image, lead_out])
def test_nothing_is_written_outside_of_the_data_folder(spoil, tmp_path, monkeypatch):
    manual, data, scratch = (tmp_path / name for name in ("manual", "data", "scratch"))
    for path in (manual, scratch):
        path.mkdir()
    files.write_images(files.write_tables(manual))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {path: path.stat().st_mtime_ns for path in manual.rglob("*") if not spoil}
    if spoil:
        spoil(manual)
    with watched() as seen:
        try:
            mini_imagenet(data_dir=data, manual_dir=manual, **SMALL)
        except ValueError:
            assert spoil
    assert seen.written and not seen.executed
    outside = [path for path in seen.written if not path.startswith((str(data), str(scratch)))]
    assert not [path for path in outside if not path.isdecimal() and "__pycache__" not in path]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in manual.rglob("*")}.items()
    assert {path.name for path in tmp_path.iterdir()} == {"manual", "data", "scratch"}
