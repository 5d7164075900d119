"""Every baseline test is deterministic: hypothesis is derandomised, torch is seeded, and there is no network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("baselines", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("baselines")


@pytest.fixture(autouse=True)
def _offline_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
