import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data():
    """Folder of real datasets; a test that asks for it skips where there is none."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("TF_METAGRAD_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data: TF_METAGRAD_TEST_DATA names no folder")
    return folder


@pytest.fixture(scope="module")
def quiet():
    """TensorFlow Datasets shows no progress."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()


@pytest.fixture(scope="module")
def prepared(quiet, tmp_path_factory):
    """A folder in which mini-ImageNet was prepared from tables and a folder of images; the files are gone."""
    import mini_imagenet_files as files

    from tf_metagrad.data import mini_imagenet

    manual, data = (tmp_path_factory.mktemp(name) for name in ("manual", "data"))
    files.write_images(files.write_tables(manual))
    mini_imagenet(data_dir=data, manual_dir=manual, **files.SMALL)
    shutil.rmtree(manual)
    return data


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory):
    """A folder in which TensorFlow Datasets finds a small CIFAR-100."""
    import cifar100_files as files

    return files.write(tmp_path_factory.mktemp("cifar100"))
