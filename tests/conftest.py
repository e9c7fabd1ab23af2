from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared():
    """Folder of data and reference numbers that lies beside the repository in development."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs reference data that is not shipped: no folder {folder}")
    return folder
