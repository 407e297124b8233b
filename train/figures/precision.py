"""Float64 for models made in a context."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Let Keras make float64 layers and variables; put back what was there."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
