"""Addressed randomness: the noise of a token is a pure function of its address, never consumed.

Owns the random generator (Philox 4x32-10) and the layout of an address in its key and counter.
Knows nothing of logits or requests. Because no state advances, neither the other rows of a batch,
nor their order, nor preemption or speculation can move the noise of a token.

The layout, all words of 32 bits:

    key 0, 1      the first 64 bits of SHA-256 of (a version label, seed, lane)
    counter 0     token id // 4; the four words that come out belong to four neighbouring tokens
    counter 1     position of the token in its sequence
    counter 2     choice
    counter 3     attempt << 8 | purpose

With one seed and lane no two addresses share a word: the layout is injective and Philox a bijection
of the counter. Two pairs of seed and lane share a key with probability 2^-64. Values beyond their
field raise OverflowError instead of wrapping round into the noise of another token.

Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

import array
import enum
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from stepwell.native import noise as native

WORD = 0xFFFFFFFF
LABEL = b"stepwell noise 1"
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Purpose(enum.IntEnum):
    """What a number is drawn for. The values are part of the layout and never change."""

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2
    RECOVER = 3
    POLICY = 4


class Address(NamedTuple):
    """Where one row's noise lies; with a token id it names one number."""

    seed: int
    """Of the request; signed 64 bits."""
    lane: int
    """Of the sampling model, from `lane_of`; unsigned 64 bits."""
    choice: int = 0
    """Which of a request's n answers."""
    position: int = 0
    """Of the token to be drawn, counted from the start of the prompt."""
    purpose: Purpose = Purpose.SAMPLE
    attempt: int = 0
    """How often this position was drafted before; 24 bits."""


def lane_of(fingerprint: str) -> int:
    """The lane of the model with this fingerprint, an unsigned integer of 64 bits."""
    return int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "big")


def exponential(
    addresses: Sequence[Address], tokens: int | torch.Tensor, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Exponential noise E = -log1p(-u) of each row and token, shape [B, K], float32, positive.

    `tokens` is the vocabulary's size, for all ids below it, or int64 ids of shape [K] or [B, K]; an
    id has the same noise either way. Ids given as a tensor decide the device.
    """
    return uniform(addresses, tokens, device=device).neg_().log1p_().neg_()


def uniform(
    addresses: Sequence[Address], tokens: int | torch.Tensor, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform noise of each row and token, shape [B, K], float32, strictly between 0 and 1.

    It is min((r + 1/2) 2^-32, 1 - 2^-24), rounded to float32 once, where r is the token's word of
    32 bits. `tokens` as for `exponential`.
    """
    if isinstance(tokens, int) and torch.device(device).type == "cpu":
        drawn = native.uniform(_words_of(addresses), tokens)
        if drawn is not None:
            return drawn
    words = random_words(addresses, tokens, device=device)
    return (2 * words + 1).to(torch.float32).mul_(2.0**-33).clamp_(max=1 - 2.0**-24)


def random_words(
    addresses: Sequence[Address], tokens: int | torch.Tensor, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Words of 32 random bits for each row and token, shape [B, K], int64, contiguous.

    `tokens` as for `exponential`. Raises OverflowError where a field of an address is too long.
    """
    if isinstance(tokens, int):
        blocks = torch.arange(-(-tokens // 4), device=device)
        return _token_words(addresses, blocks[None]).flatten(1)[:, :tokens].contiguous()
    ids = tokens.expand(len(addresses), tokens.shape[-1])
    return _token_words(addresses, ids >> 2).gather(-1, (ids & 3)[..., None]).squeeze(-1)


def _token_words(addresses: Sequence[Address], blocks: torch.Tensor) -> torch.Tensor:
    """The words of four neighbouring tokens for each row and block, shape [B, K, 4]."""
    fields = torch.frombuffer(_words_of(addresses), dtype=torch.uint32)
    rows = fields.view(-1, 5).to(blocks.device, torch.int64)
    key0, key1, *rest = rows[..., None].unbind(1)
    counter = torch.stack(
        [word.expand(len(addresses), blocks.shape[1]) for word in (blocks, *rest)]
    )
    return philox(counter, torch.stack((key0, key1))).movedim(0, -1)


def _words_of(addresses: Sequence[Address]) -> array.array[int]:
    """The words of each address, but for the token's: key 0 and 1, counter 1, 2 and 3."""
    words = array.array("I")
    for seed, lane, choice, position, purpose, attempt in addresses:
        words.extend((*_key(seed, lane), position, choice, attempt << 8 | purpose))
    return words


@functools.lru_cache(maxsize=4096)
def _key(seed: int, lane: int) -> tuple[int, int]:
    """The two key words of a seed and a lane. Raises OverflowError beyond 64 bits."""
    address = seed.to_bytes(8, "big", signed=True) + lane.to_bytes(8, "big")
    digest = hashlib.sha256(LABEL + address).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def philox(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The Philox 4x32-10 words of counters [4, B, N] under keys [2, B, 1], shape [4, B, N].

    All are int64 that hold words of 32 bits. A round is computed on the pairs (word 0, word 2) and
    (word 3, word 1), so that both of its products are one operation. A product wraps round at 64
    bits, which torch does on every device; its bits are what the unsigned product has.
    """
    multipliers, steps = _constants(counter.device)
    even, odd = counter[0::2], counter.flip(0)[0::2]
    for round_key in ((key.flip(0) + steps) & WORD).unbind(0):
        product = even * multipliers
        even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(round_key).flip(0).bitwise_and_(WORD)
        odd = product  # its upper half is masked away with the next round's words
    odd = odd & WORD
    return torch.stack((even[0], odd[1], even[1], odd[0]))


@functools.lru_cache(maxsize=16)
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The multipliers [2, 1, 1] and what each round adds to the flipped key [rounds, 2, 1, 1]."""
    rounds = [[step * turn & WORD for step in reversed(KEY_STEPS)] for turn in range(ROUNDS)]
    multipliers = torch.tensor(MULTIPLIERS, device=device)
    return multipliers.view(2, 1, 1), torch.tensor(rounds, device=device).view(ROUNDS, 2, 1, 1)
