"""From the ladder file to stages that answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepwell.cascade.ladder import LadderConfig, StageConfig
from stepwell.cascade.stage import Stage
from stepwell.cascade.stages.local import LocalStage
from stepwell.errors import CascadeError

LONGEST_WAIT_S = 60.0
"""For a server's answers to a batch, where the ladder file gives it no time of its own."""


def load_stages(config: LadderConfig, root: str | Path, **options: Any) -> list[Stage]:
    """The stages of a ladder, ready to answer; `root` is the ladder file's directory.

    `options` are those of TextGenerator.load, for model directories. Servers that the file launches
    are started and awaited. Raises CascadeError where a model is not there, StageError where a
    server is not; what was started by then is stopped.
    """
    stages: list[Stage] = []
    try:
        for stage in config.stages:
            stages.append(load_stage(stage, config.serving.max_rows, root, **options))
    except BaseException:
        close_stages(stages)
        raise
    return stages


def load_stage(stage: StageConfig, max_rows: int, root: str | Path, **options: Any) -> Stage:
    """One stage of a ladder."""
    if stage.server is not None:
        return _server(stage, stage.server, max_rows, root)
    directory = Path(root) / str(stage.model)
    if stage.engine == "transformers":
        from stepwell.cascade.stages.hugging_face import TransformersStage

        kept = {key: options[key] for key in ("device", "dtype") if options.get(key) is not None}
        return TransformersStage.load(stage.name, directory, max_rows=max_rows, **kept)
    weights = options.get("weights") or stage.weights
    return LocalStage.load(
        stage.name, directory, max_rows=max_rows, **{**options, "weights": weights}
    )


def close_stages(stages: Sequence[Stage]) -> None:
    """Close all of them, whatever goes wrong with one."""
    for stage in stages:
        with suppress(Exception):
            stage.close()


def _server(stage: StageConfig, url: str, max_rows: int, root: str | Path) -> Stage:
    from stepwell.cascade.stages.launch import Launcher
    from stepwell.cascade.stages.server import ServerStage

    key = _key(stage)
    launcher = None
    if stage.launch is not None:
        launcher = Launcher(stage.launch, url, directory=root)
    return ServerStage(
        stage.name,
        url,
        model=stage.model,
        api_key=key,
        max_rows=max_rows,
        parameters=stage.parameters,
        tokenizer=None if stage.tokenizer is None else Path(root) / stage.tokenizer,
        launcher=launcher,
        timeout_s=stage.timeout_s or LONGEST_WAIT_S,
    )


def _key(stage: StageConfig) -> str | None:
    """The server's key, from the environment variable that the ladder file names."""
    if stage.api_key_env is None:
        return None
    key = os.environ.get(stage.api_key_env)
    if not key:
        raise CascadeError(
            f"Stage {stage.name!r}: the environment variable {stage.api_key_env} is not set.",
            fix=f"export {stage.api_key_env}, or remove api_key_env from the ladder file.",
        )
    return key
