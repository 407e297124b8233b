"""Numerical tests run in float64, with seeds set and TF32 off."""

import os

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
