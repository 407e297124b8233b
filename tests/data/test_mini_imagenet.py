import pathlib
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("tensorflow_datasets")
import mini_imagenet_files as files

from tf_metagrad.data import _mini_imagenet_builder, _prepared, mini_imagenet

SMALL = files.SMALL
pytestmark = pytest.mark.usefixtures("quiet")


def loaded(data, split):
    images, labels, names = _prepared.read(str(data / "mini_imagenet" / "1.0.0"), split)
    return images, np.array(names)[labels]


def decoded(split, label, k):
    return tf.io.decode_jpeg(files.jpeg(files.picture(split, label, k)), dct_method="INTEGER_ACCURATE").numpy()


# What comes out -------------------------------------------------------------------------------------------------------


def test_shapes_and_dtypes(prepared):
    spec = mini_imagenet(data_dir=prepared, **SMALL).element_spec
    assert (spec.support_x.shape, spec.support_x.dtype) == ([2, 3, 84, 84, 3], np.float32)
    assert (spec.query_x.shape, spec.query_y.dtype) == ([2, 6, 84, 84, 3], np.int32)


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("validation", "val"), ("test", "test")])
def test_every_image_is_there_once_in_order(prepared, split, name):
    images, classes = loaded(prepared, split)
    assert images.dtype == tf.uint8 and "CPU" in images.device
    assert classes.tolist() == [label for label, _, _ in files.names(name)]
    for image, (label, k, _) in zip(images, files.names(name), strict=True):
        np.testing.assert_array_equal(image, decoded(name, label, k))


def test_tasks_are_images_of_the_classes_that_their_labels_say(prepared):
    known = {decoded("val", label, k).tobytes(): label for label, k, _ in files.names("val")}
    for task in mini_imagenet("validation", data_dir=prepared, **SMALL).take(5).unbatch():
        support, query = (
            [known[np.round(x.numpy() * 255).astype(np.uint8).tobytes()] for x in part]
            for part in (task.support_x, task.query_x)
        )
        assert sorted(support) == files.CLASSES["val"]
        assert query == [support[label] for label in task.query_y]
        seen = np.concatenate([task.support_x, task.query_x]).reshape(9, -1)
        assert len(np.unique(seen, axis=0)) == 9 and seen.min() >= 0 and seen.max() <= 1


def test_stream_is_reproducible_and_resumes(prepared):
    whole, again, resumed, other = (
        np.stack([task.query_x for task in mini_imagenet(data_dir=prepared, seed=seed, start=start, **SMALL).take(3)])
        for seed, start in [(1, 0), (1, 0), (1, 2), (2, 0)]
    )
    np.testing.assert_array_equal(whole, again)
    np.testing.assert_array_equal(whole[2], resumed[0])
    assert not np.array_equal(whole, other)


def test_golden_task(prepared):
    """The stream is a promise: if this fails, results of earlier versions cannot be reproduced."""
    task = next(iter(mini_imagenet("test", data_dir=prepared, **{**SMALL, "meta_batch": 1}, seed=11, start=4)))
    known = {decoded("test", label, k).tobytes(): name for label, k, name in files.names("test")}
    drawn = [known[np.round(x.numpy() * 255).astype(np.uint8).tobytes()] for x in task.query_x[0]]
    assert " ".join(drawn) == GOLDEN


GOLDEN = "n22_0.jpg n22_2.jpg n21_3.jpg n21_2.jpg n20_0.jpg n20_3.jpg"


# The forms in which it is shared --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["images/", ""])
def test_an_archive_gives_what_a_folder_gives(prepared, tmp_path, prefix):
    files.write_zip(files.write_tables(tmp_path), prefix)
    mini_imagenet(data_dir=tmp_path, manual_dir=tmp_path, **SMALL)
    for part, other in zip(loaded(tmp_path, "test"), loaded(prepared, "test"), strict=True):
        np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5, "Python 2"])
def test_a_cache_is_read_whatever_wrote_it(tmp_path, protocol):
    files.write_caches(tmp_path, protocol)
    for split in files.SPLITS:
        images, classes = _mini_imagenet_builder.read_cache(tmp_path / f"mini-imagenet-cache-{split}.pkl")
        assert list(classes) == files.CLASSES[split]
        for label, k, _ in files.names(split):
            np.testing.assert_array_equal(images[classes[label][k]], files.picture(split, label, k))


def test_caches_where_users_put_them(tmp_path):
    manual = tmp_path / "downloads" / "manual" / "mini_imagenet"
    manual.mkdir(parents=True)
    files.write_caches(manual)
    mini_imagenet(data_dir=tmp_path, **SMALL)
    images, classes = loaded(tmp_path, "test")
    expected = [files.picture("test", label, k) for label, k, _ in files.names("test")]
    np.testing.assert_array_equal(images, expected)
    assert classes.tolist() == [label for label, _, _ in files.names("test")]


def test_images_of_another_size_and_format_are_resized(tmp_path):
    files.write_images(files.write_tables(tmp_path), files.png, height=168, width=120)
    mini_imagenet(data_dir=tmp_path, manual_dir=tmp_path, **SMALL)
    images, _ = loaded(tmp_path, "validation")
    PIL = pytest.importorskip("PIL.Image")
    for image, (label, k, _) in zip(images, files.names("val"), strict=True):
        whole = PIL.fromarray(files.picture("val", label, k, height=168, width=120))
        expected = np.asarray(whole.resize((84, 84), PIL.Resampling.LANCZOS)).astype(int)
        apart = np.abs(image.numpy().astype(int) - expected)
        assert apart.mean() < 0.3 and apart.max() <= 8  # Pillow rounds and clips between its two passes


# The real images ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_data):
    if not (real_data / "mini_imagenet" / "images.zip").is_file():
        pytest.skip("no real data: mini_imagenet/images.zip is missing")
    return real_data / "mini_imagenet"


def test_real_tables_and_archive(real):
    found = _mini_imagenet_builder.find_files(real)
    rows = _mini_imagenet_builder.read_tables(found)
    assert {name: len({label for label, _ in part}) for name, part in rows.items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    with zipfile.ZipFile(found[3]) as archive:
        members = {pathlib.PurePosixPath(name).name for name in archive.namelist()}
    assert {name for part in rows.values() for _, name in part} == members


def test_real_tasks(real, tmp_path):
    """A few real classes, through the whole of it."""
    for split in files.SPLITS:
        lines = (real / f"{split}.csv").read_text().splitlines()
        kept = [line for line in lines[1:] if int(re.search(r"(\d{8})\.", line)[1]) < 60]
        (tmp_path / f"{split}.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    (tmp_path / "images.zip").symlink_to(real / "images.zip")
    tasks = mini_imagenet("test", queries=5, data_dir=tmp_path, manual_dir=tmp_path)
    for task in tasks.take(3):
        x = task.query_x.numpy()
        assert x.shape == (4, 25, 84, 84, 3) and x.min() == 0 and x.max() == 1
        assert 0.3 < x.mean() < 0.6 and 0.2 < x.std() < 0.35  # photographs
        assert np.abs(np.diff(x, axis=2)).mean() < 0.1  # neighbouring pixels are alike
        assert all(len(np.unique(part.reshape(25, -1), axis=0)) == 25 for part in x)
