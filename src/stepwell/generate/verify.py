"""The acceptance rule of speculative decoding: which drafted tokens stay, and what follows them.

Owns both ways to verify a draft, as pure functions of logits and addresses. Knows no model, cache
or drafter. Logits are `sampling.process`'s, for all rows the same parameters; each row of logits
belongs to the tokens before it, the drafted ones included.

    by equality     a drafted token stays where the target samples that very token with its own
                    noise, so the text is the one of plain decoding, whoever drafted and how well
    by rejection    a drafted token stays with the chance min(1, p / q), so the text has plain
                    decoding's distribution but not its tokens; more drafted tokens stay where the
                    drafter does not share the target's noise

A batch is ragged and packed: the target's logits [N, V] hold, draft after draft, one row for each
drafted token and one for the token after the last; a drafter's [M, V] hold the drafted ones alone.
An address is that of a draft's first token; the positions and purposes after it are set here.
A row's result has the same bits whatever drafts stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from stepwell.errors import LogitsError, ShapeError
from stepwell.generate.noise import Address, Purpose, uniform
from stepwell.generate.request import SamplingParams
from stepwell.generate.sampling import sample

NO_TOKEN = -1
"""Stands for the token of a row whose logits allow none."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of each draft: so many of its first tokens stay, then comes one token more.

    Both are [B], int64. That token is the target's own in place of the first drafted one that did
    not stay, or after all of them; NO_TOKEN where its logits allow none.
    """

    num_accepted: Tensor
    next_ids: Tensor

    @property
    def failed(self) -> tuple[int, ...]:
        """The rows that end after what was accepted, for want of logits that allow a token."""
        return tuple((self.next_ids == NO_TOKEN).nonzero().flatten().tolist())


def verify_by_equality(
    target_NV: Tensor,
    drafts: Sequence[Sequence[int]],
    params: SamplingParams,
    addresses: Sequence[Address] = (),
) -> Verified:
    """What stays of each draft because the target samples the same, or, greedy, finds it likeliest.

    Reads SAMPLE, so that the tokens are those that `sample` gives one by one; greedy parameters
    need no addresses. Raises ShapeError where drafts, logits and addresses do not fit.
    """
    packing = _Packing.of(drafts, target_NV)
    noise: list[Address] = []
    if not params.greedy:
        counts = [len(draft) + 1 for draft in drafts]
        noise = _addresses(addresses, [range(count) for count in counts], Purpose.SAMPLE)
    sampled_N = _sample_sound(target_NV, params, noise)
    num_accepted_B = packing.leading(sampled_N[packing.places] == packing.ids)
    return Verified(num_accepted_B, sampled_N[packing.firsts + num_accepted_B])


def num_equal(draft: Sequence[int], sampled: Sequence[int]) -> int:
    """How many tokens of a draft stay by equality, where what the target samples is known already.

    Those before the first that differs, or for which nothing is sampled.
    """
    pairs = enumerate(zip(draft, sampled, strict=False))
    known = min(len(draft), len(sampled))
    return next((place for place, (token, own) in pairs if token != own), known)


def verify_by_rejection(
    target_NV: Tensor,
    drafts: Sequence[Sequence[int]],
    params: SamplingParams,
    addresses: Sequence[Address] = (),
    drafter_MV: Tensor | None = None,
) -> Verified:
    """What stays of each draft by rejection sampling, which leaves the target's distribution.

    A drafted token x stays where u q(x) < p(x), u from ACCEPT; the first that does not is replaced
    by a draw from (p - q)+ and full drafts are followed by one from p, both with RECOVER.
    drafter_MV must be what the tokens were drawn from, with noise of neither purpose. None says
    that they were not drawn at all, as in prompt lookup: q is then 1 at each, which is exact for
    every draft that ignores the noise read here. Addresses, the greedy case and errors as for
    `verify_by_equality`.

    Sources: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
    """
    if params.greedy:
        return verify_by_equality(target_NV, drafts, params)
    packing = _Packing.of(drafts, target_NV)
    p_NV = target_NV.softmax(dim=-1)
    q_NV = packing.drafter_probabilities(p_NV, drafter_MV)
    noise = _addresses(addresses, [range(len(draft)) for draft in drafts], Purpose.ACCEPT)
    u_M = uniform(noise, packing.ids[:, None])[:, 0] if noise else p_NV.new_empty(0)
    p_M, q_M = (each_NV[packing.places, packing.ids] for each_NV in (p_NV, q_NV))
    num_accepted_B = packing.leading(u_M * q_M < p_M)

    decisive_B = packing.firsts + num_accepted_B
    remaining_BV = residual(p_NV[decisive_B], q_NV[decisive_B])
    offsets = [(count,) for count in num_accepted_B.tolist()]
    noise = _addresses(addresses, offsets, Purpose.RECOVER)
    return Verified(num_accepted_B, _sample_sound(remaining_BV.log(), params, noise))


def residual(p_BV: Tensor, q_BV: Tensor) -> Tensor:
    """The weights (p - q)+ of what the target would say and the drafter too seldom does, [B, V].

    They do not sum to 1. A row where rounding leaves none, or whose q is NaN, is p's.
    """
    weights_BV = (p_BV - q_BV).clamp_(min=0)
    return torch.where(weights_BV.amax(dim=-1, keepdim=True) > 0, weights_BV, p_BV)


@dataclass(frozen=True, slots=True)
class _Packing:
    """Where the drafts lie in packed logits; all int64.

    ids and places are those of the drafted tokens, [M]; firsts, where a draft begins, and lengths
    are those of the drafts, [B].
    """

    ids: Tensor
    places: Tensor
    firsts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, drafts: Sequence[Sequence[int]], target_NV: Tensor) -> Self:
        """The packing of these drafts. Raises ShapeError unless the logits have their rows."""
        num_rows = sum(len(draft) + 1 for draft in drafts)
        if target_NV.ndim != 2 or len(target_NV) != num_rows:
            raise ShapeError(
                f"The target's logits are {list(target_NV.shape)}, expected [{num_rows}, V]: one "
                f"row for each drafted token and one more for each of {len(drafts)} drafts."
            )
        device = target_NV.device
        ids = [token for draft in drafts for token in draft]
        ids_M = torch.tensor(ids, dtype=torch.int64, device=device)
        lengths_B = torch.tensor([len(draft) for draft in drafts], device=device)
        index_B = torch.arange(len(drafts), device=device)
        first_B = lengths_B.cumsum(0) - lengths_B + index_B
        places_M = torch.arange(len(ids), device=device) + index_B.repeat_interleave(lengths_B)
        return cls(ids_M, places_M, first_B, lengths_B)

    def leading(self, kept_M: Tensor) -> Tensor:
        """How many tokens each draft keeps before the first that it does not, [B], int64."""
        longest = max(self.lengths.tolist(), default=0)
        offsets_K = torch.arange(longest, device=kept_M.device)
        drafted_BK = offsets_K < self.lengths[:, None]
        kept_BK = torch.zeros_like(drafted_BK).masked_scatter_(drafted_BK, kept_M)
        return kept_BK.cumprod(dim=1).sum(dim=1)

    def drafter_probabilities(self, p_NV: Tensor, drafter_MV: Tensor | None) -> Tensor:
        """What each token was drafted with, shaped as p; 0 in the rows after the last token.

        Raises ShapeError unless the drafter's logits have one row a token and the target's width.
        """
        q_NV = torch.zeros_like(p_NV)
        if drafter_MV is None:
            q_NV[self.places, self.ids] = 1
            return q_NV
        expected = [len(self.ids), p_NV.shape[1]]
        if list(drafter_MV.shape) != expected:
            raise ShapeError(
                f"The drafter's logits are {list(drafter_MV.shape)}, expected {expected}: one row "
                "for each drafted token, over the target's vocabulary."
            )
        q_NV[self.places] = drafter_MV.softmax(dim=-1)
        return q_NV


def _addresses(
    firsts: Sequence[Address], offsets: Sequence[Sequence[int]], purpose: Purpose
) -> list[Address]:
    """The address of each row at each of its offsets. Raises ShapeError unless rows are as many."""
    if len(firsts) != len(offsets):
        raise ShapeError(f"{len(firsts)} addresses for {len(offsets)} drafts, expected one each.")
    return [
        first._replace(position=first.position + offset, purpose=purpose)
        for first, row in zip(firsts, offsets, strict=True)
        for offset in row
    ]


def _sample_sound(
    logits_NV: Tensor, params: SamplingParams, addresses: Sequence[Address]
) -> Tensor:
    """`sample` where the logits of a row allow a token, NO_TOKEN where they do not, [N], int64."""
    try:
        return sample(logits_NV, params, addresses)
    except LogitsError as error:
        bad = set(error.rows)
    ids_N = torch.full((len(logits_NV),), NO_TOKEN, device=logits_NV.device)
    sound = [row for row in range(len(logits_NV)) if row not in bad]
    kept = [address for row, address in enumerate(addresses) if row not in bad]
    if sound:
        ids_N[sound] = sample(logits_NV[sound], params, kept)
    return ids_N
