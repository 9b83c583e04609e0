"""What an engine can run: requests held against its model, its cache and the tokens that it knows.

Owns these checks and their messages. Changes nothing, runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import dataclass

from stepwell.errors import CacheError, ConfigError, HookError, PromptError
from stepwell.generate.request import Request, SamplingParams
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import Edit
from stepwell.model.interventions import Intervention


@dataclass(frozen=True)
class Limits:
    """The model's shape, the tokens that the cache holds, and the tokens that have a meaning.

    newline_ids: None where it is not known which they are; think_ids: start and end, or nothing.
    Raises ConfigError for a token that the vocabulary lacks.
    """

    config: ModelConfig
    cache_tokens: int
    eos_ids: frozenset[int]
    newline_ids: tuple[int, ...] | None
    think_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        special = (*self.eos_ids, *(self.newline_ids or ()), *self.think_ids)
        self._check_ids(special, "end-of-sequence, newline and think tokens")

    def room(self, request: Request) -> int:
        """The most tokens that an answer can have."""
        room = self.config.context_length - len(request.prompt_ids)
        return min(request.sampling.max_new_tokens, room)

    def check(self, request: Request) -> None:
        """Raises PromptError, HookError, CacheError or ConfigError for what cannot be run."""
        for intervention in request.interventions:
            self._check_intervention(intervention)
        if request.record is not None:
            request.record.check(self.config)
        self._check_prompt(request.prompt_ids)
        self._check_sampling(request.sampling)
        self._check_room(len(request.prompt_ids) + self.room(request))

    def _check_intervention(self, intervention: object) -> None:
        kind = type(intervention).__name__
        if not isinstance(intervention, Intervention):
            raise HookError(
                f"interventions is a list of interventions, {kind} is none.",
                fix="declare it: ZeroHeads, Scale, Steer, Replace or Patch; functions of your own"
                " are for model(ids, hooks=Hooks([...])).",
            )
        if any(type(edit) is not Edit for edit in intervention.edits):
            raise HookError(f"{kind} makes edits that the kernels do not know.")
        intervention.check(self.config)

    def _check_room(self, length: int) -> None:
        if length - 1 > self.cache_tokens:  # the last token is never computed
            raise CacheError(
                f"Prompt and answer may take {length} tokens, but the cache holds"
                f" {self.cache_tokens} in all.",
                fix="ask for fewer new tokens, or raise kv_cache_bytes.",
            )

    def _check_prompt(self, prompt_ids: Series[int]) -> None:
        context_length = self.config.context_length
        if len(prompt_ids) >= context_length:
            raise PromptError(
                f"The prompt has {len(prompt_ids)} tokens, but the model's context holds"
                f" {context_length} and the answer needs one of them.",
                fix="shorten the prompt, or use a model with a longer context.",
            )
        vocab_size = self.config.vocab_size
        foreign = [token for token in prompt_ids if not 0 <= token < vocab_size]
        if foreign:
            raise PromptError(
                f"Token id {foreign[0]} is not in the model's vocabulary of {vocab_size}.",
                fix="encode the prompt with the model's own tokenizer.",
            )

    def _check_sampling(self, params: SamplingParams) -> None:
        self._check_ids(params.banned_tokens, "banned_tokens")
        self._check_ids(params.forced_tokens, "forced_tokens")
        if params.think_budget and not self.think_ids:
            raise ConfigError(
                f"think_budget is {params.think_budget}, but no think tokens are known.",
                fix="use a tokenizer that declares the roles think_start and think_end.",
            )
        if params.newline_run_limit and self.newline_ids is None:
            limit = params.newline_run_limit
            raise ConfigError(
                f"newline_run_limit is {limit}, but no newline tokens are known.",
                fix="give the engine newline_ids.",
            )

    def _check_ids(self, ids: Iterable[int], name: str) -> None:
        vocab_size = self.config.vocab_size
        for token in ids:
            if not 0 <= token < vocab_size:
                raise ConfigError(
                    f"{name}: {token} is no token, expected ids from 0 to {vocab_size - 1}.",
                    fix="look the id up with this model's tokenizer.",
                )
