"""Numerical tests run in float64, with seeds set and TF32 off."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture
def float64():
    """Keras' default type is float64 for the test."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def real_data():
    """Folder of real datasets; a test that asks for it skips where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TF_METAGRAD_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data: TF_METAGRAD_TEST_DATA names no folder")
    return folder
