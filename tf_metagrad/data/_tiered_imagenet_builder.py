"""tiered-ImageNet as a TensorFlow Datasets builder, from the pickles that its authors publish.

Importing this module registers it: `tfds.load("tiered_imagenet")` then works as for any other dataset.
"""

import io
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from tf_metagrad.data import _manual, _pickles

SIZE = 84
SPLITS = {"train": "train", "validation": "val", "test": "test"}
FILES = [f"{name}_{part}.pkl" for name in SPLITS.values() for part in ("images_png", "labels")]
FOLDERS = ("tiered-imagenet", "tiered_imagenet")  # the archive's own folder, and the dataset's name
INSTRUCTIONS = (
    "tiered-ImageNet is fetched by hand, since ImageNet asks its users to agree to terms. Put into the manual folder "
    "train_images_png.pkl, train_labels.pkl, val_images_png.pkl, val_labels.pkl, test_images_png.pkl and "
    "test_labels.pkl, as in tiered-imagenet.tar, 12.9 GB, of github.com/renmengye/few-shot-ssl-public"
)


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the six files, in `folder` or in its `tiered-imagenet`: images and labels of train, val and test.

    Raises:
        FileNotFoundError: some are missing; the message says which.
    """
    inner = [folder / name for name in FOLDERS if any((folder / name / file).is_file() for file in FILES)]
    folder = inner[0] if inner else folder
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        lacks = "lacks" if folder.is_dir() else "does not exist, and lacks"
        raise FileNotFoundError(
            f"The manual folder {str(folder)!r} of tiered-ImageNet {lacks} {', '.join(missing)}, expected the whole "
            f"set. {INSTRUCTIONS}; or pass another manual_dir."
        )
    return [folder / name for name in FILES]


def read_labels(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """Returns the class number of every image, int64 [n], and the names of the classes.

    The superclasses of the file are left out: its numbers for them run beyond its names.

    Raises:
        ValueError: the pickle holds something else, or asks for code.
    """
    content = _pickles.load(path)
    try:
        parts = {_pickles.check_text(key): value for key, value in content.items()}
        names = [_pickles.check_text(name) for name in parts["label_specific_str"]]
        if len(set(names)) < len(names):
            raise ValueError("a class has the name of another")
        return _pickles.check_numbers(parts["label_specific"], len(names)), names
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{str(path)!r} does not hold labels of tiered-ImageNet ({' '.join(str(error).split())[:200]}), expected "
            "a dict with label_specific, the class number of every image, and label_specific_str, the names of the "
            "classes: fetch the file again."
        ) from error


def read_images(path: pathlib.Path, count: int) -> list[np.ndarray]:
    """Returns the encoded images, uint8 vectors of PNG data, all at once; they share the memory of the file.

    Raises:
        ValueError: the pickle holds something else, or asks for code.
    """
    images = _pickles.load(path)
    if not isinstance(images, list) or not all(isinstance(x, np.ndarray) and x.dtype == np.uint8 for x in images):
        found = f"a {type(images).__name__} of other values"
    elif len(images) != count:
        found = f"{len(images)} images for {count} labels"
    else:
        return images
    raise ValueError(
        f"{str(path)!r} does not hold the images of tiered-ImageNet ({found}), expected a list of PNG files as uint8 "
        "arrays, one for each label: fetch the file again."
    )


class TieredImagenet(tfds.core.GeneratorBasedBuilder):
    """tiered-ImageNet: 84x84 photographs of 608 classes in 34 categories, of which no two splits share one."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "From the published pickles."}  # noqa: RUF012  TensorFlow Datasets asks so
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS + "."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "class_name": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                }
            ),
            metadata=tfds.core.MetadataDict(files={}),
            disable_shuffling=True,  # as published: the tasks of a seed depend on the files alone
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        files = find_files(pathlib.Path(dl_manager.manual_dir))
        self.info.metadata["files"] = _manual.fingerprint(files)
        splits, seen = {}, {}
        for split, images, labels in zip(SPLITS, files[::2], files[1::2], strict=True):
            numbers, names = read_labels(labels)
            for name in names:
                if seen.setdefault(name, labels.name) != labels.name:
                    raise ValueError(
                        f"The class {name!r} is in {seen[name]} and in {labels.name}, expected splits that share no "
                        "class: fetch the files again."
                    )
            splits[split] = self._generate_examples(images, numbers, names)
        return splits

    def _generate_examples(self, path: pathlib.Path, numbers: np.ndarray, names: list[str]) -> Iterator:
        for place, (image, number) in enumerate(zip(read_images(path, len(numbers)), numbers, strict=True)):
            data, name = image.tobytes(), f"{path.name}[{place}]"
            shape = _manual.decode_image(data, name).shape
            if shape != (SIZE, SIZE, 3):
                raise ValueError(
                    f"The image {name!r} is {shape[1]} by {shape[0]} pixels, expected {SIZE} by {SIZE}: fetch the file "
                    "again."
                )
            yield place, {"image": io.BytesIO(data), "class_name": names[number]}
