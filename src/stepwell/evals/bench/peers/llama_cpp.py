"""llama.cpp as a peer, through the C interface of its Python bindings.

It decodes tokens that are given rather than chosen: what choosing costs in Python is not its own.
Its model files are made from ours, beside the model, and kept.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp  # type: ignore[import-not-found,unused-ignore]

from .conversation import FIRST_PROMPT, Player, Setup, Timing, converse, random_prompts
from .gguf_file import gguf_of

BATCH, MICRO_BATCH = 2048, 512


class Token(NamedTuple):
    """A token to compute: where it stands in which row, and whether its logits are wanted."""

    token_id: int
    position: int
    row: int
    wanted: bool


class LlamaCpp(Player):
    """A GGUF model, and a context for the number of rows that was asked for last."""

    version = str(llama_cpp.__version__)

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._path = str(gguf_of(Path(setup.model), setup.weights)).encode()
        llama_cpp.llama_backend_init()
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._rows = 0
        self._context: Any = None
        self._model = self._loaded()

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        self._prepare(rows)
        ids = random_prompts(seed, [prompt + new] * rows, self._setup.vocab_size)
        begun = time.perf_counter()
        for row in range(rows):
            self._read(self._context, ids[row][:prompt], row)
        read = time.perf_counter()
        for position in range(prompt, prompt + new - 1):
            self._decode(
                self._context,
                [Token(ids[row][position], position, row, True) for row in range(rows)],
            )
        return Timing(read - begun, time.perf_counter() - read)

    def load(self, seed: int) -> float:
        [ids] = random_prompts(seed, [FIRST_PROMPT], self._setup.vocab_size)
        begun = time.perf_counter()
        model = self._loaded()
        context = self._context_of(model, 1)
        self._read(context, ids, 0)
        seconds = time.perf_counter() - begun
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
        return seconds

    def _prepare(self, rows: int) -> None:
        """An empty context for so many rows."""
        if rows != self._rows:
            if self._context is not None:
                llama_cpp.llama_free(self._context)
            self._rows, self._context = rows, self._context_of(self._model, rows)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _read(self, context: Any, ids: list[int], row: int) -> None:
        """A prompt, in batches; logits come of its last token."""
        last = len(ids) - 1
        tokens = [Token(token, place, row, place == last) for place, token in enumerate(ids)]
        for start in range(0, len(tokens), BATCH):
            self._decode(context, tokens[start : start + BATCH])

    def _decode(self, context: Any, tokens: list[Token]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, row, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = wanted
        code = llama_cpp.llama_decode(context, batch)
        assert code == 0, f"llama_decode gave {code}"
        llama_cpp.llama_get_logits(context)  # waits for them

    def _loaded(self) -> Any:
        model = llama_cpp.llama_model_load_from_file(
            self._path, llama_cpp.llama_model_default_params()
        )
        assert model, f"{self._path.decode()} cannot be loaded"
        return model

    def _context_of(self, model: Any, rows: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = max(4096, rows * self._setup.length)
        parameters.n_batch, parameters.n_ubatch = BATCH, MICRO_BATCH
        parameters.n_threads = parameters.n_threads_batch = self._setup.threads
        parameters.n_seq_max = rows
        context = llama_cpp.llama_init_from_model(model, parameters)
        assert context, "no context could be made"
        return context


def main() -> None:
    """Converses until the input ends."""
    converse(LlamaCpp)
