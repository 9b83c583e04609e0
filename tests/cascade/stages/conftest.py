"""A tiny model, a server that speaks for it in some dialect, and a stage of that server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.openai_server import Open, OpenAIServer
from support.tiny_models import save_tiny

from stepwell.cascade.stages.server import ServerStage
from stepwell.generate.text import TextGenerator


@pytest.fixture(scope="session")
def spoken_for(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model that servers speak for."""
    return save_tiny(tmp_path_factory.mktemp("server") / "model")


@pytest.fixture(scope="session")
def ours(spoken_for: Path) -> TextGenerator:
    """That model, run by us."""
    return TextGenerator.load(spoken_for)


@pytest.fixture(scope="session")
def theirs(spoken_for: Path) -> TextGenerator:
    """That model, run by the servers."""
    return TextGenerator.load(spoken_for)


@pytest.fixture
def opened(theirs: TextGenerator) -> Iterator[Open]:
    """Opens a server that speaks some dialect, and a stage of it; both end with the test."""
    with ExitStack() as stack:

        def open_both(
            spoken: str = "vllm",
            generator: TextGenerator | None = None,
            *,
            models: tuple[str, ...] = ("tiny",),
            **options: Any,
        ) -> tuple[OpenAIServer, ServerStage]:
            server = stack.enter_context(OpenAIServer(generator or theirs, spoken, models=models))
            stage = ServerStage("big", server.url, **{"timeout_s": 10.0, **options})
            stack.callback(stage.close)
            return server, stage

        yield open_both
