"""A process that generates for another: JSON lines in, JSON lines out.

    {"source": ..., "device": ..., "threads": ..., "options": {...}}    the first line: what to load
    {"number": 3, "prompts": [...], "sampling": {...}}                  every other: what to answer
    {"ready": true}                                                     once it is loaded
    {"number": 3, "answers": [[...]]}                                   completions, as their fields
    {"number": 3, "error": {"kind": ..., "problem": ..., "fix": ...}}   what went wrong instead

Run as `python -m stepwell.generate.worker` by `WorkerPool`. Ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from stepwell.device import set_threads
from stepwell.errors import StepwellError
from stepwell.generate.request import Completion
from stepwell.generate.text import TextGenerator


def serve(lines: Iterator[str], out: TextIO) -> None:
    """Load what the first line names, then answer line by line."""
    generator: TextGenerator | None = None
    for line in lines:
        asked = json.loads(line)
        number = asked.get("number")
        try:
            if generator is None:
                generator = _load(asked)
                reply: dict[str, Any] = {"ready": True}
            else:
                answers = generator.generate_batch(asked["prompts"], **asked["sampling"])
                plain = [[_plain(choice) for choice in choices] for choices in answers]
                reply = {"number": number, "answers": plain}
        except StepwellError as error:
            kind = type(error).__name__
            problem = {"kind": kind, "problem": error.problem, "fix": error.fix}
            reply = {"number": number, "error": problem}
        print(json.dumps(reply), file=out, flush=True)


def _load(asked: dict[str, Any]) -> TextGenerator:
    if asked["threads"]:
        set_threads(asked["threads"])
    return TextGenerator.load(asked["source"], device=asked["device"], **asked["options"])


def _plain(completion: Completion) -> dict[str, Any]:
    return completion.plain()


def main() -> None:
    """Answer over standard input and output; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(iter(sys.stdin.readline, ""), replies)


if __name__ == "__main__":
    main()
