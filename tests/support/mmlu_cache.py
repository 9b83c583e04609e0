"""MMLU's files as the datasets library keeps them, with rows of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def put_mmlu(
    cache: Path, subject: str, rows: Sequence[dict[str, Any]], split: str = "test"
) -> None:
    """Rows where the library keeps those of a subject."""
    from datasets.arrow_writer import ArrowWriter

    folder = cache / "cais___mmlu" / subject / "0.0.0" / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(folder / f"mmlu-{split}.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
