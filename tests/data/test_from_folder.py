import numpy as np
import pytest
import squares
import tensorflow as tf
from hostile import check_sentence
from squares import NAMES, SMALL, same

from tf_metagrad.data import from_folder

EIGHT = {**SMALL, "size": (8, 8)}
ALL = {"all": 1.0}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return squares.write_folder(tmp_path_factory.mktemp("folder") / "trees")


@pytest.mark.parametrize("in_memory", [True, False])
def test_tasks_are_images_of_the_classes_that_their_labels_say(trees, in_memory):
    (trees / "notes.txt").write_text("no class")
    (trees / ".hidden").mkdir(exist_ok=True)
    (trees / "oak" / "notes.txt").write_text("no image")
    (trees / "oak" / ".0.png").write_text("no image")
    tasks = from_folder(trees, "all", splits=ALL, in_memory=in_memory, **EIGHT)
    spec = tasks.element_spec
    assert (spec.support_x.shape, spec.support_x.dtype) == ([3, 2, 8, 8, 3], np.float32)
    assert (spec.query_x.shape, spec.query_y.dtype) == ([3, 4, 8, 8, 3], np.int32)
    classes, seen = squares.drawn(tasks, 30)
    assert {*classes.flat} == {*NAMES} and len(seen) == sum(squares.COUNTS)


def test_memory_and_files_give_the_same_tasks_bit_for_bit(trees):
    for options in ({"size": (8, 8)}, {"size": (5, 11), "channels": 1}):
        held, read = (
            from_folder(trees, "all", splits=ALL, seed=3, start=2, in_memory=in_memory, **SMALL, **options)
            for in_memory in (True, False)
        )
        same(held, read)
        assert held.element_spec.query_x.shape == [3, 4, *options["size"], options.get("channels", 3)]


def test_stream_is_reproducible_and_resumes(trees):
    streams = [
        from_folder(trees, "all", splits=ALL, seed=seed, start=start, in_memory=False, **EIGHT)
        for seed, start in [(1, 0), (1, 0), (1, 2), (2, 0)]
    ]
    same(streams[0], streams[1])
    same(streams[0].skip(2), streams[2])
    with pytest.raises(AssertionError):
        same(streams[0], streams[3])


def test_golden_task(trees):
    """Splits and stream are a promise: if this fails, results of earlier versions cannot be reproduced."""
    tasks = from_folder(trees, splits={"train": 0.8, "test": 0.2}, seed=11, start=4, **EIGHT)
    assert squares.drawn(tasks, 1)[0].tolist() == [["oak", "fir"], ["ash", "fir"], ["elm", "oak"]]


def test_images_of_another_size_are_resized(tmp_path):
    PIL = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    photograph = tf.cast(tf.image.resize(squares.picture(1, 1), [120, 90], "bicubic"), tf.uint8).numpy()
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / name).write_bytes(tf.io.encode_png(photograph).numpy())
    options = {**SMALL, "queries": 1, "splits": ALL, "size": (30, 20), "in_memory": False}
    task = next(iter(from_folder(tmp_path, "all", **options)))
    expected = np.asarray(PIL.fromarray(photograph).resize((20, 30), PIL.Resampling.LANCZOS)).astype(int)
    apart = np.abs(task.query_x[0, 0].numpy() * 255 - expected)
    assert apart.mean() < 0.3 and apart.max() <= 8  # Pillow rounds and clips between its two passes


def test_grey_images(tmp_path):
    squares.write_folder(tmp_path / "grey", channels=1)
    tasks = from_folder(tmp_path / "grey", "all", splits=ALL, channels=1, **EIGHT)
    assert len(squares.drawn(tasks, 30, channels=1)[1]) == sum(squares.COUNTS)


# Splits ---------------------------------------------------------------------------------------------------------------


def test_shares_divide_the_classes(trees):
    splits = {"train": 0.4, "validation": 0.2, "test": 0.4}
    sizes = {**EIGHT, "ways": 2}
    parts = [
        {*squares.drawn(from_folder(trees, name, splits=splits, **sizes), 5)[0].flat} for name in ("train", "test")
    ]
    assert [len(part) for part in parts] == [2, 2] and not parts[0] & parts[1]
    others = {
        frozenset(squares.drawn(from_folder(trees, splits=splits, split_seed=seed, **sizes), 5)[0].flat)
        for seed in range(4)
    }
    assert len(others) > 1


def test_names_divide_the_classes(trees):
    splits = {"train": ["yew", "ash", "oak"], "test": ("elm", "fir")}
    for split, names in splits.items():
        assert {*squares.drawn(from_folder(trees, split, splits=splits, **EIGHT), 5)[0].flat} == {*names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "valid"}, "split is 'valid', expected one of 'train', 'validation', 'test'"),
        ({"splits": {"train": 0.9, "test": 0.2}}, r"expected shares above 0 that add up to at most 1"),
        ({"splits": {"train": 1.5, "test": -0.5}}, r"expected shares above 0 that add up to at most 1"),
        ({"splits": {"train": float("nan")}}, r"expected shares above 0 that add up to at most 1"),
        ({"splits": 0.5}, "splits is '0.5', expected a dict"),
        ({"splits": {"train": "oak"}}, r"splits\['train'\] is 'oak', expected a list of names"),
        ({"splits": {"train": ["oak"], "test": 0.5}}, r"splits\['test'\] is '0.5', expected a list of names"),
        ({"splits": {"train": ["oak", "elk"]}}, "names the class 'elk', expected one of 'ash', 'elm'"),
        ({"splits": {"train": ["oak", "elm"], "test": ["elm"]}}, "the class 'elm' to 'train' and to 'test'"),
        ({"splits": {"train": 0.2}}, "ways is 2 and there are 1 classes"),
        ({"splits": {"train": 0.05}}, "ways is 2 and there are 0 classes"),
        ({"split_seed": -1}, "split_seed is -1, expected a whole number of at least 0"),
        ({"splits": {"train": 1.0}, "queries": 3}, "class 'elm' has 3 examples, expected at least .* = 4"),
        ({"size": 84}, "size is 84, expected height and width in pixels"),
        ({"size": (84, 0)}, r"size is \(84, 0\), expected height and width in pixels"),
        ({"channels": 4}, "channels is 4, expected 3 for colours or 1 for grey"),
        ({"ways": 1}, "ways is 1, expected a whole number of at least 2"),
    ],
)
def test_errors(trees, change, message):
    from_folder(trees, **EIGHT)
    with pytest.raises(ValueError, match=message) as error:
        from_folder(trees, **{**EIGHT, **change})
    check_sentence(str(error.value))


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder '.*nowhere', expected one that holds a folder for"):
        from_folder(tmp_path / "nowhere", **SMALL)
    with pytest.raises(FileNotFoundError, match="holds no folder, expected one for every class"):
        from_folder(tmp_path, **SMALL)


@pytest.mark.parametrize("damage", [lambda data: data[:60], lambda data: b""], ids=["cut", "empty"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, damage):
    path = squares.write_folder(tmp_path / "trees") / "fir" / "3.PNG"
    path.write_bytes(damage(path.read_bytes()))
    options = {**EIGHT, "splits": {"train": 1.0}}
    for in_memory in (True, False):
        with pytest.raises(ValueError, match=f"The image '{path}' cannot be read .* JPEG or PNG file: fetch") as error:
            from_folder(tmp_path / "trees", in_memory=in_memory, **options)
        check_sentence(str(error.value))
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(from_folder(tmp_path / "trees", in_memory=False, check=False, **options).take(30))
