"""Fixtures of the tests that run the doctor in this process."""

from collections.abc import Iterator

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig

from flexlora.settings import register_schemas


@pytest.fixture(scope="module")
def hydra_in_this_process() -> Iterator[None]:
    """Prepares Hydra as the command does. It reads its files for every example, so a faster YAML loader is used."""
    register_schemas()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        yield
    HydraConfig.instance().cfg = None
