"""mini-ImageNet as a TensorFlow Datasets builder, from files that users fetch by hand.

Importing this module registers it: `tfds.load("mini_imagenet")` then works as for any other dataset.
"""

import io
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from tf_metagrad.data import _manual, _pickles

SIZE = 84
SPLITS = {"train": "train", "validation": "val", "test": "test"}
TABLES = [f"{name}.csv" for name in SPLITS.values()]
CACHES = [f"mini-imagenet-cache-{name}.pkl" for name in SPLITS.values()]
INSTRUCTIONS = (
    "mini-ImageNet is fetched by hand, since ImageNet asks its users to agree to terms. Put into the manual folder "
    "either train.csv, val.csv and test.csv, with the columns filename,label, beside the folder images/ or the archive "
    "images.zip (the tables are those of Ravi and Larochelle, github.com/twitter-research/meta-learning-lstm; the "
    "images are ImageNet's, image-net.org, whole or already 84x84), or "
    "mini-imagenet-cache-train.pkl, mini-imagenet-cache-val.pkl and "
    "mini-imagenet-cache-test.pkl (shared with github.com/renmengye/few-shot-ssl-public)"
)


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold the dataset, in `folder` or in its `mini_imagenet`: tables and images, or pickles.

    Raises:
        FileNotFoundError: neither is complete; the message says what is missing.
    """
    inner = folder / "mini_imagenet"
    folder = inner if any((inner / name).is_file() for name in TABLES + CACHES) else folder
    images = [folder / name for name in ("images", "images.zip") if (folder / name).exists()][:1]
    tables, caches = ([folder / name for name in names if (folder / name).is_file()] for names in (TABLES, CACHES))
    if len(tables) == 3 and images:
        return tables + images
    if len(caches) == 3:
        return caches
    found = {path.name for path in tables + caches}
    missing = [name for name in (CACHES if caches and not tables else TABLES) if name not in found]
    missing += [] if images or (caches and not tables) else ["images/ or images.zip"]
    lacks = "lacks" if folder.is_dir() else "does not exist, and lacks"
    raise FileNotFoundError(
        f"The manual folder {str(folder)!r} of mini-ImageNet {lacks} {', '.join(missing)}, expected the whole set. "
        f"{INSTRUCTIONS}; or pass another manual_dir."
    )


def read_tables(files: list[pathlib.Path]) -> dict[str, list[tuple[str, str]]]:
    """Returns for each table the (label, file name) of its lines, in order.

    Raises:
        ValueError: a table is no table; a file stands twice; or a class is in two splits.
    """
    rows, classes, seen = {}, {}, set()
    for table in files[:3]:
        rows[table.stem] = sorted((label, name) for name, label in _manual.read_table(table, ("filename", "label")))
        for label, name in rows[table.stem]:
            _manual.check_inside(name, str(table))
            if name in seen:
                raise ValueError(
                    f"{str(table)!r} names the file {name!r}, which was named before, expected every image once: "
                    "take the line out, or fetch the tables again."
                )
            seen.add(name)
            if classes.setdefault(label, table.name) != table.name:
                raise ValueError(
                    f"The class {label!r} is in {classes[label]} and in {table.name}, expected splits that share no "
                    "class: fetch the tables again."
                )
    return rows


def read_cache(path: pathlib.Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the images, uint8 [n, 84, 84, 3], and for every class the positions of its images.

    Raises:
        ValueError: the pickle holds something else, or asks for code.
    """
    content = _pickles.load(path)
    try:
        parts = {_pickles.check_text(key): value for key, value in content.items()}
        images, classes = (
            parts["image_data"],
            {_pickles.check_text(key): value for key, value in parts["class_dict"].items()},
        )
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, 3):
            raise TypeError("image_data is no uint8 array of shape [n, 84, 84, 3]")
        positions = {label: _pickles.check_numbers(classes[label], len(images)) for label in sorted(classes)}
        together = np.concatenate([*positions.values(), np.zeros(0, np.int64)])
        if not classes or len(np.unique(together)) < len(together):
            raise ValueError("class_dict has no class, or an image in two places")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{str(path)!r} is not a cache of mini-ImageNet ({' '.join(str(error).split())[:200]}), expected a dict "
            "with image_data, uint8 [n, 84, 84, 3], and class_dict, positions by class name: fetch the file again."
        ) from error
    return images, positions


class MiniImagenet(tfds.core.GeneratorBasedBuilder):
    """mini-ImageNet: 84x84 photographs of 100 classes, 64 for training, 16 for validation, 20 for testing."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "From tables and images, or from pickles."}  # noqa: RUF012  TensorFlow Datasets asks so
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS + "."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "class_name": tfds.features.Text(),
                    "file_name": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                }
            ),
            metadata=tfds.core.MetadataDict(files={}),
            disable_shuffling=True,  # by class and name: the tasks of a seed depend on the files alone
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        files = find_files(pathlib.Path(dl_manager.manual_dir))
        self.info.metadata["files"] = _manual.fingerprint(files)
        if len(files) == 3:
            return {split: self._of_cache(path) for split, path in zip(SPLITS, files, strict=True)}
        rows = read_tables(files)
        return {split: self._of_table(rows[name], files[3]) for split, name in SPLITS.items()}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("Every split has a generator of its own.")

    def _of_table(self, rows: list[tuple[str, str]], path: pathlib.Path) -> Iterator:
        with _manual.Images(path) as images:
            for number, (label, name) in enumerate(rows):
                data = images.read(name)
                image = _manual.decode_image(data, name)
                whole = (
                    io.BytesIO(data) if image.shape == (SIZE, SIZE, 3) else _manual.resize(image, (SIZE, SIZE)).numpy()
                )
                yield number, {"image": whole, "class_name": label, "file_name": name}

    def _of_cache(self, path: pathlib.Path) -> Iterator:
        images, classes = read_cache(path)
        places = [(label, place) for label, positions in classes.items() for place in positions]
        for number, (label, place) in enumerate(places):
            yield number, {"image": images[place], "class_name": label, "file_name": f"{label}/{place}"}
