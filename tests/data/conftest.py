import os
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
