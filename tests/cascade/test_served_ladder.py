"""A ladder with a server among its stages, which dies: what a trace says of it.

The servers themselves, vLLM and llama.cpp, are in test_real_ladder.py.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
from support.openai_server import OpenAIServer
from support.processes import free_port, is_gone, wait_until
from support.question_ladders import prompts, question_ladder

from stepwell.cascade.guard import Failure, Guard
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.prepare import Preparation, first_prompts
from stepwell.cascade.stages.load import close_stages, load_stage, load_stages
from stepwell.cascade.stages.server import ServerStage
from stepwell.generate.text import TextGenerator

ASKED = prompts(100)[-8:]


def prepare(file: Path) -> None:
    """Collect, calibrate and fit."""
    config = LadderConfig.read(file)
    stages = load_stages(config, file.parent)
    try:
        preparation = Preparation(file, config, stages)
        questions = preparation.questions()
        costs = preparation.calibrate(first_prompts(questions, config.serving.max_rows))
        preparation.fit(preparation.collect(questions), costs)
    finally:
        close_stages(stages)


def test_a_server_that_is_gone_is_named_so_and_gone_around(tmp_path: Path) -> None:
    port = free_port()
    large = {"server": f"http://127.0.0.1:{port}/v1", "parameters": 1e5}
    file = question_ladder(tmp_path, count=48, large=large, serving={"max_rows": 4})
    with OpenAIServer(TextGenerator.load(tmp_path / "large"), port=port):
        prepare(file)
        cascade = Cascade.load(file)
        sound = cascade.generate_batch(ASKED, lam=1000.0)
    with cascade:
        assert {answer.trace[-1].stage for answer in sound} == {"large"}
        assert not any(visit.fault for answer in sound for visit in answer.trace)
        for fault in ("gone", "down"):
            answers = cascade.generate_batch(ASKED, lam=1000.0)
            failed = [visit for each in answers for visit in each.trace if visit.fault is not None]
            assert {(visit.stage, visit.fault) for visit in failed} == {("large", fault)}
            assert len(failed) == len(ASKED)
            assert all("cannot be reached" in visit.problem for visit in failed)
            assert {answer.stage for answer in answers} == {"small"}


def test_a_launched_server_that_was_killed_is_gone_with_its_last_words(tmp_path: Path) -> None:
    """Any file server lists models and is well; it knows no completions, and says so."""
    listed = {"data": [{"id": "big", "owned_by": "vllm"}]}
    (tmp_path / "v1").mkdir()
    (tmp_path / "health").touch()
    (tmp_path / "v1/models").write_text(json.dumps(listed))
    port = free_port()
    command = f"{shlex.quote(sys.executable)} -u -m http.server {port} --bind 127.0.0.1"
    config = LadderConfig.parse(
        {
            "stages": [
                {"name": "small", "model": "small"},
                {"name": "large", "server": f"http://127.0.0.1:{port}", "launch": command},
            ]
        }
    )
    stage = load_stage(config.stages[1], 4, tmp_path)
    assert isinstance(stage, ServerStage)
    try:
        assert faults(stage) == {"error"}  # 501, from a server that lives
        process = stage._launcher._process  # type: ignore[union-attr]
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not stage._launcher.is_alive)  # type: ignore[union-attr]
        assert faults(stage) == {"gone"}
        with pytest.raises(Exception, match="POST /v1/completions"):
            stage.generate(ASKED, temperature=0.0)
    finally:
        stage.close()
    assert wait_until(lambda: is_gone(process.pid))


def faults(stage: ServerStage) -> set[str]:
    """How a guard calls the failures of a stage."""
    outcomes = Guard(stage).ask(ASKED, None, None, temperature=0.0)
    return {each.fault for each in outcomes if isinstance(each, Failure)}
