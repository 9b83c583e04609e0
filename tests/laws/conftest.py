"""What engines of the laws compute with."""

from __future__ import annotations

import pytest

from stepwell.generate import engine as engine_module
from stepwell.model import native
from stepwell.model.blocks import BLOCK
from stepwell.native.library import unavailable_reason


@pytest.fixture(params=["kernels", "torch"])
def both_executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", BLOCK)
