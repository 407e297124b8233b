"""The versions of TensorFlow and Keras that the library was tested with; others are refused when it is imported.

It replaces a few functions of TensorFlow while it traces a model, so another version may give wrong numbers, silently.
setup.cfg states the same ranges.
"""

import os
import re

SUPPORTED = {"TensorFlow": ((2, 20), (2, 22)), "Keras": ((3, 10), (4, 0))}


def check() -> None:
    """Raises ImportError where TensorFlow, Keras or Keras's backend is not one that the library supports."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend == "tensorflow":  # where it is another, Keras may not even load
        import keras
        import tensorflow as tf

        check_version("TensorFlow", tf.__version__)
        check_version("Keras", keras.__version__)
        backend = keras.config.backend()
    if backend != "tensorflow":
        raise ImportError(
            f"tf_metagrad needs Keras with the TensorFlow backend, and found the backend {backend!r}: set the "
            'environment variable KERAS_BACKEND=tensorflow, or "backend" in the file keras.json, before the import.'
        )


def check_version(package: str, version: str) -> None:
    """Raises ImportError unless `version` of `package` is in the supported range.

    Args:
        package: "TensorFlow" or "Keras".
        version: as the package states it.

    Raises:
        ImportError: it is older or newer, or no version at all.

    Example:
        >>> check_version("Keras", "3.12.1")
        >>> check_version("Keras", "2.15.0")
        Traceback (most recent call last):
        ImportError: tf_metagrad supports Keras from 3.10 to below 4.0, and found Keras 2.15.0: pip install ...
    """
    (low, high), numbers = SUPPORTED[package], re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not low <= tuple(map(int, numbers.groups())) < high:
        first, end = (".".join(map(str, bound)) for bound in (low, high))
        raise ImportError(
            f"tf_metagrad supports {package} from {first} to below {end}, and found {package} {version}: "
            f"pip install '{package.lower()}>={first},<{end}'."
        )
