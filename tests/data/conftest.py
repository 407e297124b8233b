import shutil

import pytest


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
