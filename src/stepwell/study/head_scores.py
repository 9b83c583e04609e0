"""What kind of head is it: scores of attention patterns on a random text that comes twice.

    previous    weight on the token before
    duplicate   weight on the same token, the first time it came
    induction   weight on what followed the same token the first time (Olsson et al. 2022)

Each is a mean over the second half of the text, where all three places exist and differ.
"""

from __future__ import annotations

import torch

from stepwell.errors import UsageError
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.hooks import PATTERN
from stepwell.study.effects import EffectTable

KINDS = ("previous", "duplicate", "induction")


def head_scores(
    generator: TextGenerator, *, length: int = 32, texts: int = 8, seed: int = 0
) -> dict[str, EffectTable]:
    """Mean attention [L, H] of each kind, with standard errors over random texts.

    length: tokens before the text is repeated; it is made of all tokens that are not special.
    Raises UsageError where twice the length does not fit the model's context.
    """
    config = generator.model.config
    if length < 3 or 2 * length > config.context_length:
        raise UsageError(
            f"length is {length}, expected 3 to {config.context_length // 2} for a context of"
            f" {config.context_length}."
        )
    halves_NT = _random_tokens(generator, length, texts, seed)
    rows = torch.cat((halves_NT, halves_NT), 1).tolist()
    seen = record(generator.model, rows, Record(points=(PATTERN,)))
    patterns_NLHTS = torch.stack([seen[PATTERN, layer] for layer in range(config.num_layers)], 1)
    queries = torch.arange(length, 2 * length)
    back = {"previous": 1, "duplicate": length, "induction": length - 1}
    return {
        kind: EffectTable.differences(
            patterns_NLHTS[..., queries, queries - back[kind]].mean(-1),
            [f"head {head}" for head in range(config.num_heads)],
            title=f"{kind.capitalize()}-token heads" if kind != "induction" else "Induction heads",
            value_label="mean attention",
        )
        for kind in KINDS
    }


def _random_tokens(generator: TextGenerator, length: int, texts: int, seed: int) -> torch.Tensor:
    """Ordinary tokens in random order, int64 [texts, length]; none twice where there are enough."""
    tokenizer = generator.tokenizer
    ids = set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    ordinary, random = torch.tensor(sorted(ids)), torch.Generator().manual_seed(seed)
    rounds = -(-length // len(ordinary))

    def text() -> torch.Tensor:
        parts = [torch.randperm(len(ordinary), generator=random) for _ in range(rounds)]
        return ordinary[torch.cat(parts)[:length]]

    return torch.stack([text() for _ in range(texts)])
