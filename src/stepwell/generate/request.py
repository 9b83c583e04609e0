"""What is asked of the engine and what comes back: sampling parameters, requests, events, results.

Owns these values and their bounds, the defaults that a model's generation_config.json declares, and
the named presets. Does no arithmetic and imports no torch: what the parameters do to logits is
sampling.py's.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import pydantic

from stepwell.config import Config
from stepwell.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from stepwell.generate.record import RecordedRow, Recording
    from stepwell.generate.tape import Record

GREEDY_BELOW: Final = 1e-5
"""Lower temperatures only tell apart logits that differ by rounding, and overflow float32."""

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


def between(low: float, high: float, *, open_low: bool = False) -> pydantic.AfterValidator:
    """A check that a number lies in [low, high], or in (low, high]; its error names the range."""
    expected = f"above {low} and at most {high}" if open_low else f"from {low} to {high}"

    def check(value: float) -> float:
        if low <= value <= high and not (open_low and value == low):
            return value
        raise ValueError(f"expected a number {expected}")

    return pydantic.AfterValidator(check)


TokenId = Annotated[int, between(0, 2**31 - 1)]
Penalty = Annotated[float, between(-2, 2)]
Count = Annotated[int, between(0, 2**31 - 1)]
StopString = Annotated[str, pydantic.StringConstraints(min_length=1)]


class SamplingParams(Config):
    """How tokens are chosen and when to stop. The order in which fields act is sampling.py's."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    temperature: Annotated[float, between(0, 100)] = 1.0
    """Divides the logits; 0, or anything below 1e-5, takes the likeliest token (greedy)."""
    top_k: Count = 0
    """Keep the k likeliest tokens and those tied with the last of them; 0 keeps all."""
    top_p: Annotated[float, between(0, 1, open_low=True)] = 1.0
    """Keep the fewest likeliest tokens that together hold this probability."""
    min_p: Annotated[float, between(0, 1)] = 0.0
    """Drop tokens less likely than this share of the likeliest one."""
    repetition_penalty: Annotated[float, between(0, 100, open_low=True)] = 1.0
    """Divides positive, multiplies negative logits of tokens in prompt and answer; 1 is off."""
    repetition_window: Count = 0
    """How many of the last tokens repetition_penalty looks at; 0 is all of them."""
    presence_penalty: Penalty = 0.0
    """Subtracted from the logit of each token that the answer holds already."""
    frequency_penalty: Penalty = 0.0
    """Subtracted from a token's logit once for each time that the answer holds it already."""
    no_repeat_ngram_size: Count = 0
    """No run of this many tokens occurs twice in prompt and answer; 0 is off."""
    banned_tokens: tuple[TokenId, ...] = ()
    """Tokens that are never chosen, unless forced."""
    forced_tokens: tuple[TokenId, ...] = ()
    """The first tokens of the answer."""
    max_new_tokens: Annotated[int, between(1, 2**31 - 1)] = 64
    """The longest answer, in tokens."""
    min_new_tokens: Count = 0
    """Before this many tokens the answer cannot end by itself."""
    n: Annotated[int, between(1, 1024)] = 1
    """Answers to each prompt; num_return_sequences is taken for it."""
    seed: Annotated[int, between(-(2**63), 2**63 - 1)] = 0
    """Same seed, same answer."""
    ignore_eos: bool = False
    """Generate on past end-of-sequence tokens."""
    stop: Annotated[tuple[StopString, ...], pydantic.Field(max_length=16)] = ()
    """Strings at which the answer ends, without them; at most 16."""
    newline_run_limit: Count = 0
    """The most newline tokens in a row in the answer; 0 is no limit."""
    think_budget: Count = 0
    """The longest think section, in tokens, after which it is ended; 0 is no limit."""
    do_sample: bool | None = None
    """False is greedy whatever the temperature."""
    logprobs: Annotated[int, between(0, 1024)] | None = None
    """Report each token's log-probability, and those of this many likeliest tokens beside it."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _take_other_spellings(cls, values: Any) -> Any:
        """`values` with num_return_sequences renamed to n and a single stop string made a tuple."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if "num_return_sequences" in values:
            count = values.pop("num_return_sequences")
            if values.setdefault("n", count) != count:
                raise ValueError(
                    f"n is {values['n']} but num_return_sequences is {count}; give one"
                )
        if isinstance(values.get("stop"), str):
            values["stop"] = (values["stop"],)
        return values

    @pydantic.model_validator(mode="after")
    def _check_lengths(self) -> Self:
        """Itself. Raises where what must be generated is longer than max_new_tokens."""
        for name, length in (
            ("min_new_tokens", self.min_new_tokens),
            ("the number of forced_tokens", len(self.forced_tokens)),
        ):
            if length > self.max_new_tokens:
                raise ValueError(
                    f"{name} is {length}, expected at most max_new_tokens, {self.max_new_tokens}"
                )
        return self

    def changed(self, **values: Any) -> Self:
        """A copy with some fields replaced, whichever spelling is used; validated like a new one.

        Greedy parameters that are only asked to sample do so at temperature 1.
        """
        kept = dict(self)
        if "num_return_sequences" in values:
            del kept["n"]
        if values.get("do_sample") and self.temperature < GREEDY_BELOW:
            kept["temperature"] = 1.0
        return type(self)(**{**kept, **values})

    @property
    def processing(self) -> tuple[Any, ...]:
        """What decides what becomes of logits: equal for rows that can be sampled together."""
        values: tuple[Any, ...] = _of_logits(vars(self))
        return values

    @property
    def greedy(self) -> bool:
        """Whether each token is the likeliest one and no noise is needed."""
        return self.do_sample is False or self.temperature < GREEDY_BELOW

    @property
    def takes_likeliest(self) -> bool:
        """Whether each token is the model's likeliest, whatever came before, and is all we want."""
        return self.greedy and bool(_of_greedy(vars(self)) == _PLAIN)

    @classmethod
    def from_generation_config(
        cls, values: Mapping[str, Any], *, where: str = "generation_config.json"
    ) -> Self:
        """The parameters that a generation_config.json declares; the rest have our defaults.

        `do_sample: false` becomes temperature 0, so that a temperature asked for later counts.
        Raises ConfigError for a key that may change the answer and that is not supported here,
        unless its value turns it off.
        """
        given = {key: value for key, value in values.items() if value is not None}
        for key in sorted(given.keys() - _TAKEN.keys() - _READ_HERE - _IGNORED):
            if key not in _OFF or given[key] != _OFF[key]:
                raise ConfigError(
                    f"{where}: {key} is {given[key]!r}, which stepwell does not support.",
                    fix=f"remove {key} from the file, or pass sampling parameters of your own.",
                )
        taken = {ours: given[theirs] for theirs, ours in _TAKEN.items() if theirs in given}
        if given.get("do_sample") is False:
            taken["temperature"] = 0.0
        banned = [
            *given.get("suppress_tokens", ()),
            *_single(given.get("bad_words_ids", ()), where),
        ]
        return cls.parse({**taken, "banned_tokens": banned}, where=where)


_of_logits: Final = operator.itemgetter(
    *(SamplingParams.model_fields.keys() - {"seed", "n", "max_new_tokens", "stop"})
)
"""All fields but those that say which noise is drawn, or when an answer ends."""

_of_greedy: Final = operator.itemgetter(
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"),
    *("banned_tokens", "forced_tokens", "min_new_tokens", "newline_run_limit", "think_budget"),
    "logprobs",
)
"""What a greedy choice depends on beside the logits, and what is reported with it."""

_PLAIN: Final = _of_greedy(vars(SamplingParams()))


def _single(words: Iterable[list[int]], where: str) -> list[int]:
    """The tokens of words of one token each. Raises ConfigError for a longer word."""
    for word in words:
        if len(word) != 1:
            raise ConfigError(
                f"{where}: bad_words_ids holds {word}, expected words of one token each.",
                fix="remove the word from the file, or pass sampling parameters of your own.",
            )
    return [word[0] for word in words]


SAMPLING_PRESETS: Final[Mapping[str, SamplingParams]] = MappingProxyType(
    {
        "study": SamplingParams(temperature=0.6, top_k=50, top_p=0.95, max_new_tokens=2048),
        "chat": SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1),
    }
)
"""Named parameters: `study` compares models on reasoning, `chat` talks without repeating itself."""


@dataclass(frozen=True)
class Request:
    """A prompt and what to do with it. Lists of ids or interventions are taken and kept as tuples.

    cache_salt: requests find each other's prompts in the cache only where they have the same salt.
    choices: which of the n answers to generate; all of them where None.
    record: what to keep of each answer's row, a Record.
    deadline_s: seconds from submission after which what is not finished is ended ("timeout").

    Raises PromptError where the prompt is empty; ids are held against the vocabulary by the engine.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    interventions: tuple[Any, ...] = ()
    request_id: str = field(default_factory=lambda: secrets.token_hex(16))
    cache_salt: str = ""
    deadline_s: float | None = None
    choices: tuple[int, ...] | None = None
    record: Record | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(int(token) for token in self.prompt_ids))
        object.__setattr__(self, "interventions", tuple(self.interventions))
        if self.choices is not None and not set(self.choices) <= set(range(self.sampling.n)):
            raise ConfigError(
                f"choices is {self.choices}, expected some of 0 to {self.sampling.n - 1}."
            )
        if not self.prompt_ids:
            raise PromptError(
                f"request {self.request_id}: the prompt holds no token, expected at least one.",
                fix="begin the prompt with the tokenizer's beginning-of-sequence token.",
            )


@dataclass(frozen=True)
class Usage:
    """Tokens that a request took.

    cached_tokens of the prompt came from the prefix cache. accepted_tokens of the completion were
    drafted and stayed; rejected_tokens were drafted beside it and did not.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted_tokens: int = field(default=0, compare=False)
    rejected_tokens: int = field(default=0, compare=False)

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Completion:
    """One finished answer; logprobs are the model's own, before any sampling parameter.

    top_logprobs: at each place the likeliest tokens with theirs, likeliest first, if asked for.
    error: what went wrong, where finish_reason is "error". executors: what computed it, of "native"
    (the kernels), "torch" and "tiles" (torch, in strict mode). recording: what was asked to be kept
    of its row; the last token was never read, so it has no values.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    error: str = ""
    executors: tuple[str, ...] = field(default=(), compare=False)
    recording: Recording | None = field(default=None, compare=False, repr=False)

    def plain(self) -> dict[str, Any]:
        """The answer as JSON can hold it: without its recording."""
        return {
            name: asdict(value) if name == "usage" else value
            for name, value in vars(self).items()
            if name != "recording"
        }


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One more token of a choice.

    Where asked for: the model's own log-probability of it, before any sampling parameter, and the
    likeliest tokens with theirs, most likely first.
    """

    choice: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The end of a choice; `error` says what went wrong where its reason is "error".

    executors: what computed it; recording: what was kept of its row, where that was asked for.
    """

    choice: int
    reason: FinishReason
    usage: Usage
    error: Exception | None = None
    executors: tuple[str, ...] = ()
    recording: RecordedRow | None = None


Event = TokenEvent | FinishedEvent

_TAKEN: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "num_return_sequences": "n",
    "stop_strings": "stop",
}
"""Keys of a generation_config.json, and our fields that mean the same."""

_READ_HERE: Final = frozenset({"do_sample", "suppress_tokens", "bad_words_ids"})

_OFF: Final[Mapping[str, Any]] = {
    "constraints": [],
    "diversity_penalty": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "generation_kwargs": {},
    "guidance_scale": 1,
    "min_length": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "remove_invalid_values": False,
    "token_healing": False,
    "typical_p": 1,
}
"""Keys that change the answer, each with the value at which it does not."""

_IGNORED: Final = frozenset(
    {
        # Token ids: the tokenizer and the engine read them where they need them.
        *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"),
        # The engine ends where the context does.
        "max_length",
        # What beam search does with its beams, which are one.
        *("early_stopping", "length_penalty"),
        # A constant added to a row of logits moves no choice.
        "renormalize_logits",
        # How the same answer is computed: caches, compilation, lossless speculation.
        *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
        *("cache_config", "cache_implementation", "compile_config", "continuous_batching_config"),
        *(
            "disable_compile",
            "is_assistant",
            "low_memory",
            "max_cache_len",
            "max_matching_ngram_size",
        ),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "prefill_chunk_size"),
        *("prompt_lookup_num_tokens", "return_legacy_cache", "target_lookbehind", "use_cache"),
        # What transformers hands back beside the text, and where the file came from.
        *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
        *("return_dict_in_generate", "transformers_version"),
        *("_commit_hash", "_from_model_config", "_original_object_hash"),
    }
)
"""Keys that have no say in which tokens are chosen."""
