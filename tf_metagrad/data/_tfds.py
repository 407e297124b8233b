"""Where TensorFlow Datasets keeps a dataset: found, downloaded, or prepared from files that users fetch by hand."""

import os
import pathlib
import types
from collections.abc import Callable

from absl import logging

from tf_metagrad.data import _manual


def import_tfds(title: str) -> types.ModuleType:
    """Returns the module `tensorflow_datasets`, which takes seconds to import and which few datasets need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{title} is read by the package tensorflow-datasets, not found: "
            "pip install tensorflow-datasets importlib_resources."
        ) from error
    return tfds


def find(name: str, title: str, data_dir: str | os.PathLike | None, download: bool) -> str:
    """Returns the folder of a dataset of TensorFlow Datasets, after preparing it if asked to.

    Raises:
        ValueError: there is no dataset of this name.
        FileNotFoundError: it is not in `data_dir`, and `download` is False.
        ImportError: the package `tensorflow-datasets` is not installed.
    """
    tfds = import_tfds(title)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"name is {name!r}, expected a dataset of TensorFlow Datasets: `tfds.list_builders()` lists them; "
            "one of your own is found by its data_dir."
        ) from error
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"{title} is not in {builder.data_path}, expected it as TensorFlow Datasets prepares it: "
            f"run `tfds build {name} --data_dir={builder.data_path.parents[len(name.split('/'))]}`, "
            "pass another data_dir, or pass download=True (--download of the scripts)."
        )
    return os.fspath(builder.data_path)


def prepare_by_hand(
    builder_class: type,
    find_files: Callable[[pathlib.Path], list[pathlib.Path]],
    title: str,
    data_dir: str | os.PathLike | None,
    manual_dir: str | os.PathLike | None,
) -> str:
    """Returns the folder of a dataset made from files that users fetch, after preparing it where it is not.

    Args:
        builder_class: the builder, whose metadata names the files with their sizes.
        find_files: maps the manual folder to the files, or raises FileNotFoundError.
        title: the dataset's name in messages.
        data_dir: where TensorFlow Datasets keeps its datasets; None for its own default.
        manual_dir: the folder of the files; None for `downloads/manual/<name>` in `data_dir`.

    Raises:
        FileNotFoundError: it is not prepared, and files are missing.
        ValueError: a file is damaged or forged, or the dataset was prepared from others.
    """
    tfds = import_tfds(title)
    builder = builder_class(data_dir=data_dir)
    default = pathlib.Path(builder.data_path).parents[1] / "downloads" / "manual" / builder.name
    manual = default if manual_dir is None else pathlib.Path(manual_dir)
    if not builder.is_prepared():
        logging.info("Preparing %s in %s, once.", title, builder.data_path)
        find_files(manual)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    elif manual_dir is not None and builder.info.metadata["files"] != _manual.fingerprint(find_files(manual)):
        raise ValueError(
            f"{title} in {str(builder.data_path)!r} was prepared from other files than those in {str(manual)!r}, "
            "expected the same: delete the former to prepare it again, pass another data_dir, or leave manual_dir out."
        )
    return os.fspath(builder.data_path)
