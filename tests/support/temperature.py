"""A small study of temperature in a process of its own, which notes what its engine is asked."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import stepwell as sw
from stepwell.evals.temperature import temperature_study

TASK = sw.tasks.Arithmetic(digits=3)


class Killer:
    """Progress that ends the process, as a power cut would, when enough answers are there."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at, self.before, self.finished = kill_at, 0, 0

    def update(self, finished: int, tokens: int) -> None:
        self.finished = finished
        if self.kill_at and self.before + finished >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def next_temperature(self, _params: Any) -> None:
        self.before += self.finished


def study_noting(log: Path, cache: Path | None, kill_at: int = 0) -> None:
    """Does the study; each request goes into the log before it is submitted.

    kill_at: after how many answers the process ends itself; 0 is never.
    """
    model = sw.Transformer(
        sw.ModelConfig(
            vocab_size=TASK.tokenizer.vocab_size,
            context_length=24,
            width=32,
            num_layers=1,
            num_heads=2,
        )
    )
    model.initialize(3)
    generator = sw.TextGenerator(model.eval(), TASK.tokenizer, max_rows=4)
    submit = generator.engine.submit
    with log.open("w", buffering=1) as file:

        def noting(request: sw.Request, **how: Any) -> Any:
            choices = request.choices or tuple(range(request.sampling.n))
            line = [request.prompt_ids, request.sampling.temperature, choices]
            file.write(json.dumps(line) + "\n")
            return submit(request, **how)

        generator.engine.submit = noting  # type: ignore[method-assign]
        killer = Killer(kill_at)
        temperature_study(
            generator,
            TASK,
            temperatures=(0, 0.5, 2),
            samples=3,
            input_end=6,
            max_new_tokens=4,
            cache=sw.ResponseCache(cache) if cache else None,
            progress=killer,
            on_temperature=killer.next_temperature,
        )


if __name__ == "__main__":
    study_noting(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
