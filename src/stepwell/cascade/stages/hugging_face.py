"""A model that transformers runs, as a stage: any AutoModelForCausalLM, with our sampling.

Owns loading and what becomes of a batch. Noise has the same addresses as in our engine, in a lane
of the model's own, so that seeds mean the same and drafts can be verified at every temperature.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from stepwell.cascade.stage import Draft, Mode, Observe, Reply
from stepwell.cascade.stages.left_padded import Reading
from stepwell.cascade.stages.rows import Chooser, Ends, Row
from stepwell.device import parse_dtype, pick_device
from stepwell.errors import CascadeError, PromptError
from stepwell.generate.batch import Progress
from stepwell.generate.noise import lane_of
from stepwell.generate.request import Completion, SamplingParams
from stepwell.model.hub import locate
from stepwell.model.json_keys import read_json
from stepwell.text.tokenizer import Tokenizer

ENTROPY_TOKENS: Final = 32
MOST_LOGITS: Final = 2**27
"""So many are in memory together, in float32 512 MiB; fewer rows are read at once for it."""
NOTHING: Final = Observe()
OWN_BUSINESS: Final = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Keys of a configuration that do not say what the model computes."""


Value = TypeVar("Value")


class TransformersStage:
    """A model of transformers and its tokenizer; up to max_rows prompts are answered at once.

    defaults: sampling parameters where a call gives none. eos_ids: tokens that end an answer,
    beside the tokenizer's own.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Tokenizer,
        *,
        defaults: SamplingParams | None = None,
        eos_ids: Sequence[int] = (),
        max_rows: int = 64,
    ) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.max_rows = max_rows
        self._defaults = defaults or SamplingParams()
        self._ends = Ends.of(tokenizer, eos_ids)
        shape = model.config.get_text_config()
        self._vocab_size = int(shape.vocab_size)
        self._context: int | None = getattr(shape, "max_position_embeddings", None)

    @classmethod
    def load(
        cls,
        name: str,
        directory_or_id: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        max_rows: int = 64,
    ) -> TransformersStage:
        """The stage of a model directory or Hub id; dtype: the one of its weights if None.

        Only safetensors are read, and no code that comes with a model is run. Raises CascadeError
        where transformers cannot load it, WeightsError where it is not there.
        """
        from transformers import AutoModelForCausalLM

        directory = locate(directory_or_id)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=parse_dtype(dtype) or "auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise CascadeError(
                f"Stage {name!r}: transformers cannot load {directory}: {_first_line(error)}",
                fix="check the directory, or update transformers.",
            ) from error
        path = directory / "generation_config.json"
        declared = read_json(path) if path.is_file() else {}
        return cls(
            name,
            model.eval().to(pick_device(device)),
            Tokenizer.load(directory),
            defaults=SamplingParams.from_generation_config(declared, where=str(path)),
            eos_ids=_ids(declared.get("eos_token_id", model.config.eos_token_id)),
            max_rows=max_rows,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration, and of every weight."""
        kept = self.model.config.to_dict()
        plain = {key: value for key, value in kept.items() if key not in OWN_BUSINESS}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
        for name, parameter in sorted(self.model.named_parameters()):
            data = parameter.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
            digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
            digest.update(data.numpy().data)
        return digest.hexdigest()

    @property
    def vocabulary(self) -> str:
        """The tokenizer's fingerprint."""
        return self.tokenizer.fingerprint

    def generate(
        self,
        prompts: Sequence[str],
        *,
        observe: Observe = NOTHING,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """One reply to each prompt; see Stage."""
        call = _Call(self, observe, deadline_s, progress, sampling)
        rows = call.rows(prompts, [()] * len(prompts))
        for part in self._parts(rows, ENTROPY_TOKENS if observe.prompt_entropy else 1):
            call.decode(part)
        return [_reply(row) for row in rows]

    def verify(
        self,
        prompts: Sequence[str],
        drafts: Sequence[Draft],
        *,
        observe: Observe = NOTHING,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """The replies of `generate`; a draft is read with its prompt in one forward."""
        call = _Call(self, observe, deadline_s, progress, sampling)
        rows = call.rows(prompts, [self._draft_ids(draft) for draft in drafts])
        longest = max((len(row.draft) for row in rows), default=0)
        for part in self._parts(rows, longest + ENTROPY_TOKENS):
            call.check(part)
        for part in self._parts([row for row in rows if row.is_open], 1):
            call.decode(part)
        return [_reply(row, "verified") for row in rows]

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, ...]]:
        """The log-probability of each token of an answer, in forwards over prompt and answer."""
        begun, ends = self.encode(prompts), self.tokenizer.encode_batch(answers)
        found: list[tuple[float, ...]] = []
        pairs = list(zip(begun, ends, strict=True))
        longest = max(map(len, ends), default=0)
        for part in self._parts(pairs, longest + 1):
            reading = Reading(self.model, [before + end for before, end in part], keep=longest + 1)
            for (_, end), logits_KV in zip(part, reading.logits, strict=True):
                ids = torch.tensor(end, dtype=torch.int64, device=logits_KV.device)
                logprob_NV = logits_KV[-len(end) - 1 : -1].log_softmax(-1)
                found.append(tuple(logprob_NV.gather(1, ids[:, None])[:, 0].tolist()))
        return found

    def flops(self, completion: Completion) -> float:
        """Two for each weight that multiplies and token that was read: all but the last."""
        usage = completion.usage
        tokens = usage.total_tokens + usage.rejected_tokens - 1
        return 2.0 * self._num_multiplying * max(0, tokens)

    def forget(self) -> None:
        """Nothing: no prompt is kept."""

    def close(self) -> None:
        """Nothing: the model goes when nobody holds it."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt. Raises PromptError for one that is empty or too long."""
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        encoded = [ids or begin for ids in self.tokenizer.encode_batch(texts, special=True)]
        for number, ids in enumerate(encoded):
            if not ids:
                raise PromptError(f"Prompt {number} is empty.", fix="give at least one character.")
            if self._context is not None and len(ids) >= self._context:
                raise PromptError(
                    f"Prompt {number} has {len(ids)} tokens, but the model's context holds"
                    f" {self._context} and the answer needs one of them.",
                    fix="shorten the prompt, or use a model with a longer context.",
                )
        return encoded

    def room(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """The most tokens that an answer can have."""
        if self._context is None:
            return params.max_new_tokens
        return min(params.max_new_tokens, self._context - len(prompt_ids))

    @cached_property
    def _num_multiplying(self) -> int:
        """Parameters, without an embedding that is only looked up in."""
        looked_up = self.model.get_input_embeddings().weight
        output = self.model.get_output_embeddings()
        is_shared = output is not None and output.weight is looked_up
        return int(self.model.num_parameters()) - (0 if is_shared else looked_up.numel())

    def _draft_ids(self, draft: Draft) -> Sequence[int]:
        """A draft in ids of this stage's vocabulary."""
        if draft.vocabulary == self.vocabulary:
            return draft.token_ids
        return self.tokenizer.encode(draft.text)

    def _parts(self, rows: Sequence[Value], columns: int) -> Iterator[Sequence[Value]]:
        """The rows, so many together as the logits of their last columns leave room for."""
        count = max(1, min(self.max_rows, MOST_LOGITS // (columns * self._vocab_size)))
        return (rows[start : start + count] for start in range(0, len(rows), count))


class _Call:
    """What belongs to one call of a stage: its parameters, its deadline, and who is told of it."""

    def __init__(
        self,
        stage: TransformersStage,
        observe: Observe,
        deadline_s: float | None,
        progress: Progress | None,
        sampling: dict[str, Any],
    ) -> None:
        self._stage, self._observe, self._progress = stage, observe, progress
        asked = {**sampling, "n": 1, "logprobs": observe.top_logprobs}
        self._params = stage._defaults.changed(**asked)
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        lane = 0 if self._params.greedy else lane_of(stage.fingerprint)
        self._chooser = Chooser(self._params, stage._ends, lane, observe.top_logprobs)
        self._rows: list[Row] = []

    def rows(self, prompts: Sequence[str], drafts: Sequence[Sequence[int]]) -> list[Row]:
        """A row for each prompt, with a draft or none."""
        stage = self._stage
        self._rows = [
            Row(
                stage.tokenizer,
                ids,
                self._params,
                ends=stage._ends,
                room=stage.room(ids, self._params),
                draft=draft,
            )
            for ids, draft in zip(stage.encode(prompts), drafts, strict=True)
        ]
        return self._rows

    def check(self, rows: Sequence[Row]) -> None:
        """Let rows take what stays of their drafts, and a token of the model's own."""
        if self._ends_late(rows):
            return
        counts = [len(row.draft) + 1 for row in rows]
        keep = max(counts) + self._before
        reading = Reading(self._stage.model, [row.ids + row.draft for row in rows], keep=keep)
        self._note_entropy(rows, reading.logits, counts)
        parts = zip(reading.logits, counts, strict=True)
        packed_NV = torch.cat([logits_KV[-count:] for logits_KV, count in parts])
        self._chooser.choose(rows, packed_NV, [row.draft for row in rows])
        self._tell()

    def decode(self, rows: Sequence[Row]) -> None:
        """Let rows go on token by token until all have ended."""
        if self._ends_late(rows):
            return
        keep = 1 if rows[0].new else 1 + self._before
        reading = Reading(self._stage.model, [row.ids for row in rows], keep=keep)
        if not rows[0].new:
            self._note_entropy(rows, reading.logits, [1] * len(rows))
        logits_BV = reading.logits[:, -1]
        while True:
            still = [index for index, row in enumerate(rows) if row.is_open]
            self._chooser.choose([rows[index] for index in still], logits_BV[still])
            self._tell()
            if self._ends_late(rows) or not any(row.is_open for row in rows):
                return
            logits_BV = reading.next([row.ids[-1] for row in rows])  # ended ones fill their places

    @property
    def _before(self) -> int:
        """Columns before that of the first token, which the prompt's entropy takes."""
        return ENTROPY_TOKENS - 1 if self._observe.prompt_entropy else 0

    def _note_entropy(self, rows: Sequence[Row], logits_BKV: Tensor, counts: Sequence[int]) -> None:
        """Tell rows how unsure the model was of what follows their prompts' last tokens."""
        if not self._observe.prompt_entropy:
            return
        for row, logits_KV, count in zip(rows, logits_BKV, counts, strict=True):
            last = len(logits_KV) - count + 1
            first = max(0, last - min(ENTROPY_TOKENS, len(row.prompt_ids)))
            logprob_NV = logits_KV[first:last].log_softmax(-1)
            row.prompt_entropy = float(-(logprob_NV.exp() * logprob_NV).sum(-1).mean())

    def _ends_late(self, rows: Sequence[Row]) -> bool:
        """Whether the time is up; rows that are open then end."""
        if self._deadline is None or time.monotonic() < self._deadline:
            return False
        for row in rows:
            if row.is_open:
                row.end("timeout")
        self._tell()
        return True

    def _tell(self) -> None:
        if self._progress is not None:
            finished = sum(not row.is_open for row in self._rows)
            self._progress.update(finished, sum(len(row.new) for row in self._rows))


def _reply(row: Row, mode: Mode = "anew") -> Reply:
    said = row.completion
    return Reply(said, mode, said.top_logprobs, row.prompt_entropy)


def _ids(declared: int | Sequence[int] | None) -> list[int]:
    """The tokens of an eos_token_id: one, several or none."""
    if declared is None:
        return []
    return [declared] if isinstance(declared, int) else list(declared)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
