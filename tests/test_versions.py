"""The range that is supported: said at import, and the same wherever it is stated."""

import configparser
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from tf_metagrad import _versions

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "version", "message"),
    [
        (tf, "2.15.1", "supports TensorFlow from 2.20 to below 2.22, and found TensorFlow 2.15.1: pip install 'tensor"),
        (tf, "2.19.0", "found TensorFlow 2.19.0"),
        (tf, "2.22.0-dev20260101", "found TensorFlow 2.22.0-dev20260101"),
        (tf, "unknown", "found TensorFlow unknown"),
        (
            keras,
            "2.15.0",
            "supports Keras from 3.10 to below 4.0, and found Keras 2.15.0: pip install 'keras>=3.10,<4.0'",
        ),
        (keras, "3.9.2", "found Keras 3.9.2"),
        (keras, "4.0.0", "found Keras 4.0.0"),
    ],
)
def test_an_unsupported_version_says_so(module, version, message, monkeypatch):
    monkeypatch.setattr(module, "__version__", version)
    with pytest.raises(ImportError, match=re.escape(message)) as error:
        _versions.check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("package", "version"), [("TensorFlow", "2.20.0rc0"), ("TensorFlow", "2.21.1"), ("Keras", "3.99.0")]
)
def test_supported_versions_pass(package, version):
    _versions.check_version(package, version)


def test_another_backend_says_so(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="needs Keras with the TensorFlow backend, and found the backend 'jax'"):
        _versions.check()


def test_another_backend_says_so_at_import_before_keras_loads_it(tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", "import tf_metagrad"]
    done = subprocess.run(code, env=environment, cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(
        "ImportError: tf_metagrad needs Keras with the TensorFlow backend, and found the backend 'torch'"
    )


def test_setup_states_the_same_range():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"].split()
    for package, (low, high) in _versions.SUPPORTED.items():
        (line,) = (line for line in needed if re.match(rf"{package}[<>=]", line, re.IGNORECASE))
        bounds = [tuple(map(int, bound.split("."))) for bound in re.findall(r"[\d.]+", line)]
        assert bounds == [low, high[: len(bounds[1])]]
        oldest = (ROOT / "requirements-oldest.txt").read_text()
        assert f"{package.lower()}=={'.'.join(map(str, low))}.0" in oldest.splitlines()
