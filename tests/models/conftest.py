"""What the tests of the backbones share."""

from pathlib import Path

import pytest
from encoder_helpers import write_encoders


@pytest.fixture(scope="session")
def encoders(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of one small encoder of each architecture."""
    return write_encoders(tmp_path_factory.mktemp("encoders"), tiny_bert)
