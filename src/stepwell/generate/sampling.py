"""The one sampler: from logits to token ids, as pure functions of tensors.

Owns what sampling parameters do to logits, and the choice itself. Draws no randomness of its own:
the noise of a token comes from noise.py, by address. All functions work row by row: a row's result
has the same bits whatever rows stand beside it. Logits are [B, V] float32 and are never written to.

The order is that of transformers' `generate`; a star marks what it lacks:

     1. repetition penalty, over prompt and answer
     2. * presence and frequency penalties, over the answer (OpenAI's: subtracted)
     3. no-repeat n-grams, over prompt and answer
     4. banned tokens, * the guard against runs of newlines
     5. the minimum of new tokens: no end-of-sequence token before it
     6. * the think budget: only think_end once a think section has had its tokens
     7. forced first tokens, which override all of the above
     8. temperature
     9. top-k
    10. top-p
    11. min-p

Steps 8 to 11 are left out where the choice is greedy. A token that is ruled out has the logit -inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch

from stepwell.errors import ConfigError, LogitsError, ShapeError
from stepwell.generate.noise import Address, exponential
from stepwell.generate.request import SamplingParams

RULED_OUT = float("-inf")
NARROWED_ABOVE = 512
"""Below this many tokens, looking for those that are left costs more than it saves."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class History:
    """One row's tokens: `ids` [S], int64, holds num_prompt ids of the prompt, then the answer's.

    A view of a longer buffer serves, so that a history costs nothing to make at every step.
    """

    ids: torch.Tensor
    num_prompt: int

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int] = ()) -> Self:
        """The history that holds these ids."""
        return cls(torch.tensor([*prompt, *answer], dtype=torch.int64), len(prompt))

    @property
    def num_new(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.ids) - self.num_prompt


def sample(
    logits: torch.Tensor, params: SamplingParams, addresses: Sequence[Address]
) -> torch.Tensor:
    """The token of each row under its own noise, shape [B], int64; logits come from `process`.

    Equals `choose` with the noise of the whole vocabulary, but draws only what can matter: none
    where the choice is greedy, and that of the tokens left where some are ruled out.
    """
    if params.greedy:
        return choose(logits, params)
    if not (params.top_k or params.min_p or params.top_p < 1):
        noise = exponential(addresses, logits.shape[1], device=logits.device)
        return choose(logits, params, noise)
    ids = tokens_left(logits)
    chosen = choose(logits.gather(1, ids), params, exponential(addresses, ids))
    return ids.gather(1, chosen[:, None]).squeeze(1)


def choose(
    logits: torch.Tensor, params: SamplingParams, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """The token of each row, shape [B], int64: argmax of log p - log E, ties to the lower id.

    noise holds E, exponential, [B, V] float32; p is the softmax of the logits, whose constant moves
    no argmax and is replaced by the row's highest logit. A greedy choice needs no noise and is the
    argmax of the logits. Raises LogitsError that names the rows without a finite highest logit.
    """
    if params.greedy:
        highest, ids = logits.max(dim=-1)
        _check_finite(highest)
        return ids
    if noise is None or noise.shape != logits.shape:
        shape = None if noise is None else list(noise.shape)
        raise ShapeError(
            f"noise is {shape}, expected {list(logits.shape)}, the shape of the logits."
        )
    highest = logits.amax(dim=-1, keepdim=True)
    _check_finite(highest.squeeze(1))
    return (logits - highest).sub_(noise.log()).argmax(dim=-1)


def _check_finite(highest: torch.Tensor) -> None:
    """Nothing. Raises LogitsError where the highest logit of a row [B] is NaN or infinite."""
    # x - x is 0 for finite x and else NaN, which counts as true: the cheapest such test.
    if (highest - highest).any():
        rows = torch.nonzero(~highest.isfinite()).flatten().tolist()
        raise LogitsError(
            f"The highest logit of rows {rows} is not a finite number: the model put out NaN or "
            "infinity, or the sampling parameters rule out every token.",
            fix="check weights and interventions; loosen banned_tokens or no_repeat_ngram_size.",
            rows=tuple(rows),
        )


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """The log-probabilities of logits, same shape, float32."""
    return logits.log_softmax(dim=-1, dtype=torch.float32)


def process(
    logits: torch.Tensor,
    params: SamplingParams,
    history: Sequence[History] = (),
    *,
    eos_ids: Sequence[int] = (),
    newline_ids: Sequence[int] = (),
    think_ids: Sequence[int] = (),
) -> torch.Tensor:
    """The logits [B, V] after all that params ask for, in the order given above.

    history has one entry a row and is read only where a parameter needs it. think_ids are those of
    think_start and think_end, in this order. With all parameters off the result is `logits` itself.
    Raises ShapeError where rows and histories differ in number, and ConfigError for token ids
    beyond the vocabulary.
    """
    penalized = penalize(logits, params, history)
    constrained = constrain(penalized, params, history, eos_ids, newline_ids, think_ids)
    return constrained if params.greedy else warp(constrained, params)


def penalize(
    logits: torch.Tensor, params: SamplingParams, history: Sequence[History]
) -> torch.Tensor:
    """The logits after steps 1 to 3, which look back at the tokens so far."""
    if params.repetition_penalty != 1:
        recent = _padded(logits, [row.ids[-params.repetition_window :] for row in history])
        logits = repetition_penalty(logits, recent, params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        answers = _padded(logits, [row.ids[row.num_prompt :] for row in history])
        logits = additive_penalties(
            logits, answers, params.presence_penalty, params.frequency_penalty
        )
    if params.no_repeat_ngram_size:
        context = _padded(logits, [row.ids for row in history])
        logits = no_repeat_ngram(logits, context, params.no_repeat_ngram_size)
    return logits


def constrain(
    logits: torch.Tensor,
    params: SamplingParams,
    history: Sequence[History],
    eos_ids: Sequence[int],
    newline_ids: Sequence[int],
    think_ids: Sequence[int],
) -> torch.Tensor:
    """The logits after steps 4 to 7, which rule tokens out by their ids."""
    if params.banned_tokens:
        banned = _marked(logits, params.banned_tokens, "banned_tokens")
        logits = logits.masked_fill(banned, RULED_OUT)
    if params.newline_run_limit and newline_ids:
        answers = _padded(logits, [row.ids[row.num_prompt :] for row in history])
        logits = no_long_newline_run(logits, answers, params.newline_run_limit, newline_ids)
    if params.min_new_tokens and eos_ids:
        early = _one_each(logits, [row.num_new < params.min_new_tokens for row in history])
        ends = _marked(logits, eos_ids, "the end-of-sequence tokens")
        logits = logits.masked_fill(_column(logits, early) & ends, RULED_OUT)
    if params.think_budget and think_ids:
        context = _padded(logits, [row.ids for row in history])
        logits = end_thinking(logits, context, params.think_budget, *think_ids)
    if params.forced_tokens:
        num_new = _one_each(logits, [row.num_new for row in history])
        logits = force(logits, num_new, params.forced_tokens)
    return logits


def warp(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The logits after steps 8 to 11, which shape the distribution that is sampled from."""
    if params.temperature != 1:
        logits = logits / params.temperature
    if params.top_k:
        logits = top_k(logits, params.top_k)
    if params.top_p < 1:
        logits = top_p(logits, params.top_p)
    if params.min_p:
        logits = min_p(logits, params.min_p)
    return logits


def repetition_penalty(logits: torch.Tensor, ids: torch.Tensor, penalty: float) -> torch.Tensor:
    """The logits; of tokens in ids [B, S], positive ones are divided, negative ones multiplied.

    Here and below an id of V is padding and stands for no token. Source: Keskar et al. 2019, 4.1.
    """
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(_present(logits, ids), penalized, logits)


def additive_penalties(
    logits: torch.Tensor, ids: torch.Tensor, presence: float, frequency: float
) -> torch.Tensor:
    """The logits less presence for tokens in ids [B, S], and frequency for each time they occur."""
    rows, vocab_size = logits.shape
    ones = logits.new_ones(1).expand_as(ids)
    counts = logits.new_zeros(rows, vocab_size + 1).scatter_add_(1, ids, ones)[:, :vocab_size]
    return logits - frequency * counts - presence * (counts > 0)


def no_repeat_ngram(logits: torch.Tensor, ids: torch.Tensor, size: int) -> torch.Tensor:
    """The logits without tokens that would complete a run of `size` tokens found in ids [B, S].

    Padding comes first in a row, so that the ends of all rows are aligned.
    """
    if ids.shape[1] < size:
        return logits
    runs = ids.unfold(1, size, 1)
    begun = ids[:, None, ids.shape[1] - size + 1 :]
    same = (runs[..., :-1] == begun).all(dim=-1)
    completing = runs[..., -1].masked_fill(~same, logits.shape[1])
    return logits.masked_fill(_present(logits, completing), RULED_OUT)


def no_long_newline_run(
    logits: torch.Tensor, ids: torch.Tensor, limit: int, newline_ids: Sequence[int]
) -> torch.Tensor:
    """The logits without the newline tokens in rows where ids [B, S] end with `limit` of them."""
    if ids.shape[1] < limit:
        return logits
    newlines = _marked(logits, newline_ids, "the newline tokens")
    at_limit = torch.isin(ids[:, -limit:], torch.nonzero(newlines)[:, 1]).all(dim=1, keepdim=True)
    return logits.masked_fill(at_limit & newlines, RULED_OUT)


def end_thinking(
    logits: torch.Tensor, ids: torch.Tensor, budget: int, think_start: int, think_end: int
) -> torch.Tensor:
    """The logits where a row can only go on with think_end once it has thought for `budget` tokens.

    A row of ids [B, S] thinks since its last think_start, unless a think_end came later.
    """
    length = ids.shape[1]
    age = torch.arange(length - 1, -1, -1, device=ids.device)
    since_start, since_end = (
        torch.where(ids == token, age, length).amin(dim=1, keepdim=True)
        for token in (think_start, think_end)
    )
    spent = (since_start < since_end) & (since_start >= budget)
    end = _marked(logits, (think_end,), "think_end")
    return torch.where(spent, torch.where(end, 0.0, RULED_OUT), logits)


def force(logits: torch.Tensor, num_new: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """The logits where a row with t < len(tokens) new tokens can only go on with tokens[t]."""
    _marked(logits, tokens, "forced_tokens")
    due = [tokens[count] if count < len(tokens) else None for count in num_new]
    column = torch.tensor([[token or 0] for token in due], device=logits.device)
    forced = torch.full_like(logits, RULED_OUT).scatter_(1, column, 0.0)
    return torch.where(_column(logits, [token is not None for token in due]), forced, logits)


def top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """The logits without those below the k-th highest of their row; ties with it stay."""
    lowest = logits.topk(min(k, logits.shape[1])).values[:, -1:]
    return logits.masked_fill(logits < lowest, RULED_OUT)


def top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """The logits of the fewest tokens, by falling logit then rising id, that hold at least p.

    A token stays where those before it hold less than p; sums are taken in float64. Tokens that are
    each below (1 - p) / 2V cannot be among them, so that only the others are sorted. NaN stays, for
    `choose` to find. Source: Holtzman et al. 2020, section 3.1.
    """
    probabilities = logits.softmax(dim=-1)
    total = probabilities.sum(dim=-1, keepdim=True, dtype=torch.float64)
    too_small = probabilities < (1 - p) / (2 * logits.shape[1])
    hopeful = logits.masked_fill(too_small, RULED_OUT)
    ids = tokens_left(hopeful)
    ranked, order = hopeful.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    held = probabilities.gather(1, ids).cumsum(dim=-1, dtype=torch.float64)
    before = torch.nn.functional.pad(held[:, :-1], (1, 0))
    kept = ranked.masked_fill(before >= p * total, RULED_OUT)
    return torch.full_like(logits, RULED_OUT).scatter_(1, ids, kept)


def min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """The logits without tokens less likely than p times the likeliest.

    Source: Nguyen et al. 2024, section 3.
    """
    probabilities = logits.softmax(dim=-1)
    floor = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < floor, RULED_OUT)


def tokens_left(logits: torch.Tensor) -> torch.Tensor:
    """Ids [B, K], rising, among which are all tokens that are not ruled out.

    K is the most that a row has left; rows with fewer end with ids that are ruled out. A small
    vocabulary is given whole.
    """
    rows, vocab_size = logits.shape
    if vocab_size <= NARROWED_ABOVE:
        return torch.arange(vocab_size, device=logits.device).expand(rows, -1)
    left = logits != RULED_OUT
    counts = left.sum(dim=-1)
    row, token = left.nonzero(as_tuple=True)
    slot = torch.arange(len(row), device=logits.device) - (counts.cumsum(0) - counts)[row]
    ids = logits.argmin(dim=-1, keepdim=True).repeat(1, max(1, int(counts.max())))
    ids[row, slot] = token
    return ids


def _one_each(logits: torch.Tensor, values: list[Value]) -> list[Value]:
    """The values themselves. Raises ShapeError unless there is one for each row of logits."""
    if len(values) != len(logits):
        raise ShapeError(f"{len(values)} histories for {len(logits)} rows, expected one for each.")
    return values


def _padded(logits: torch.Tensor, ids: list[torch.Tensor]) -> torch.Tensor:
    """The ids of all rows as one tensor [B, S], with V before the shorter ones."""
    padding = logits.shape[1]
    padded = torch.nn.utils.rnn.pad_sequence(
        _one_each(logits, ids), batch_first=True, padding_value=padding, padding_side="left"
    )
    return padded.to(logits.device)


def _present(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Which tokens each row of ids [B, S] holds, bool [B, V]."""
    rows, vocab_size = logits.shape
    present = torch.zeros(rows, vocab_size + 1, dtype=torch.bool, device=logits.device)
    return present.scatter_(1, ids, True)[:, :vocab_size]


def _marked(logits: torch.Tensor, ids: Sequence[int], name: str) -> torch.Tensor:
    """Which tokens are among ids, bool [1, V]. Raises ConfigError for ids beyond the vocabulary."""
    vocab_size = logits.shape[1]
    if max(ids) >= vocab_size:
        raise ConfigError(
            f"{name}: {max(ids)} is no token, expected ids from 0 to {vocab_size - 1}.",
            fix="look the id up with this model's tokenizer.",
        )
    marked = torch.zeros(1, vocab_size, dtype=torch.bool, device=logits.device)
    marked[:, list(ids)] = True
    return marked


def _column(logits: torch.Tensor, flags: list[bool]) -> torch.Tensor:
    """Flags of rows as bool [B, 1], beside the logits."""
    return torch.tensor(flags, device=logits.device)[:, None]
