"""How sure a model was of each token that it generated: what it said, read again.

One forward over prompt and answer gives the whole distribution at each generated token. It is the
model's own: before temperature, truncation and penalties, whatever the token was chosen by. Owns
this reading; where answers come from, a cache perhaps, does not matter to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwell.errors import PromptError
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Intervention
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer, precise

POSITIONS_AT_ONCE: Final = 256
"""Positions whose logits are in memory together."""
TOKENS_AT_ONCE: Final = 8192
"""Tokens that one forward reads, unless a single answer has more."""

Floats = NDArray[np.float64]
Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Certainty:
    """Of each generated token, [T] each: the distribution that it was chosen from.

    entropy: in nats. top: the probability of the likeliest token. logprob: of the one that came.
    """

    entropy: Floats
    top: Floats
    logprob: Floats

    def __len__(self) -> int:
        return len(self.entropy)

    def num_confident(self, threshold: float) -> int:
        """At how many tokens the likeliest one's probability is above the threshold."""
        return int(np.count_nonzero(self.top > threshold))


@torch.inference_mode()
def certainty(
    model: Transformer,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    *,
    interventions: Sequence[Intervention] = (),
) -> list[Certainty]:
    """The certainty of each answer to a prompt, all of them token ids. Computed in float32.

    A prompt is read with its answers alone, so that what else is measured moves nothing. Equal
    answers are read once. Raises PromptError where prompt or answer has no token, or where both are
    too long for the model.
    """
    if not prompt or not all(answers):
        raise PromptError("A prompt or an answer has no token.")
    wanted = [tuple(answer) for answer in answers]
    found: dict[Ids, Certainty] = {}
    for part in _parts(sorted(set(wanted), key=lambda ids: (len(ids), ids)), len(prompt)):
        found |= zip(part, _read(model, tuple(prompt), part, interventions), strict=True)
    return [found[answer] for answer in wanted]


def _parts(answers: Sequence[Ids], num_before: int) -> Iterator[Sequence[Ids]]:
    """The answers, shortest first, in parts of TOKENS_AT_ONCE."""
    start = 0
    while start < len(answers):
        end = start + 1
        while end < len(answers):
            if (end + 1 - start) * (num_before + len(answers[end])) > TOKENS_AT_ONCE:
                break
            end += 1
        yield answers[start:end]
        start = end


def _read(
    model: Transformer, prompt: Ids, answers: Sequence[Ids], interventions: Sequence[Intervention]
) -> list[Certainty]:
    """The certainty of answers that are read in one forward, padded on the right."""
    lengths = [len(answer) for answer in answers]
    rows = [[*prompt, *answer[:-1], *[0] * (max(lengths) - len(answer))] for answer in answers]
    ids_BT = torch.tensor(rows, device=model.device)
    hooks = places = None
    if interventions:
        hooks = Hooks(interventions, prompt_lengths=[len(prompt)] * len(answers))
        places = _places(ids_BT, len(prompt))
    hidden_BTC = model.hidden(ids_BT, hooks=hooks)
    cells = [
        (row, len(prompt) - 1 + place, token)
        for row, answer in enumerate(answers)
        for place, token in enumerate(answer)
    ]
    measured: list[Tensor] = []
    for start in range(0, len(cells), POSITIONS_AT_ONCE):
        part = torch.tensor(cells[start : start + POSITIONS_AT_ONCE], device=model.device)
        row_N, column_N, chosen_N = part.unbind(1)
        at = None if places is None else places.select(row_N, column_N)
        logits_N1V = model.logits(hidden_BTC[row_N, column_N][:, None], hooks=hooks, places=at)
        measured.append(_measured(logits_N1V[:, 0], chosen_N))
    table = torch.cat(measured, dim=1).cpu().double().numpy()
    return [Certainty(*each) for each in np.split(table, np.cumsum(lengths)[:-1], axis=1)]


def _places(ids_BT: Tensor, num_prompt: int) -> Places:
    """Where the tokens of rows stand that begin with the same prompt."""
    positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    num_prompt_B1 = torch.full((len(ids_BT), 1), num_prompt, device=ids_BT.device)
    return Places(positions_T.expand(ids_BT.shape), ids_BT, num_prompt_B1)


def _measured(logits_NV: Tensor, chosen_N: Tensor) -> Tensor:
    """Entropy, probability of the likeliest and log-probability of the chosen token, [3, N]."""
    logprob_NV = precise(logits_NV).log_softmax(-1)
    probability_NV = logprob_NV.exp()
    entropy_N = torch.special.entr(probability_NV).sum(-1)  # 0 where a probability is
    logprob_N = logprob_NV.gather(-1, chosen_N[:, None])[:, 0]
    return torch.stack([entropy_N, probability_NV.amax(-1), logprob_N])
