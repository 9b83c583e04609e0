"""The logit lens: what each layer would say next, if the head read it there.

After nostalgebraist 2020: the residual stream behind every layer goes through the final norm and
the head. The last row is the model's own answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stepwell.errors import PromptError
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Intervention
from stepwell.model.transformer import precise
from stepwell.report import Heatmap, Page, write_png
from stepwell.study.heatmap import visible


@dataclass(frozen=True, eq=False)
class Lens:
    """Log-probabilities [L + 1, T, V] of the next token; row 0 reads what enters layer 0.

    tokens: the text's; names: each token of the model's vocabulary as people read it, empty where
    the tokenizer has none.
    """

    log_probabilities: Tensor
    tokens: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def places(self) -> list[str]:
        """Where each row reads the stream."""
        layers = range(len(self.log_probabilities) - 1)
        return ["embedding", *(f"after layer {layer}" for layer in layers)]

    @property
    def likeliest(self) -> Tensor:
        """The likeliest next token of each layer at each position, int64 [L + 1, T]."""
        return self.log_probabilities.argmax(-1)

    def probability(self, token: int) -> Tensor:
        """Of one token, at each layer and position, [L + 1, T]. Raises PromptError for no token."""
        if not 0 <= token < len(self.names):
            raise PromptError(f"The vocabulary has tokens 0..{len(self.names) - 1}, not {token}.")
        return self.log_probabilities[..., token].exp()

    @property
    def figure(self) -> Heatmap:
        """The likeliest token of each layer and position, coloured by its probability."""
        best = self.log_probabilities.max(-1)
        return Heatmap(
            title="What each layer would say next",
            values=best.values.exp().numpy(),
            x_ticks=[visible(token) for token in self.tokens],
            y_ticks=self.places,
            x_label="after",
            value_label="probability",
            text=[[visible(self.names[token]) for token in row] for row in best.indices.tolist()],
            value_range=(0.0, 1.0),
            note="The residual stream behind a layer, read by the final norm and the head.",
        )

    def write_html(self, path: str | Path, *, command: str = "") -> Path:
        """The path of a page with the lens, which needs nothing else."""
        return Page("Logit lens", command=command).add(self.figure).write(path)

    def write_png(self, path: str | Path, *, dark: bool = False) -> Path:
        """The path of a picture of the lens."""
        return write_png(self.figure, path, dark=dark)


def logit_lens(
    generator: TextGenerator, text: str, interventions: Sequence[Intervention] = ()
) -> Lens:
    """What each layer would say after each token of a text, under changes of the layers."""
    model, [ids] = generator.model, generator.encode([text])
    spec = Record(points=("residual.before", "residual.after"))
    seen = record(model, [ids], spec, interventions)
    states = [seen["residual.before", 0]]
    states += [seen["residual.after", layer] for layer in range(model.config.num_layers)]
    with torch.inference_mode():
        stream_LTC = torch.cat(states).to(model.device, model.dtype)
        logits_LTV = model.logits(model.final_norm(stream_LTC))
    return Lens(
        precise(logits_LTV).log_softmax(-1).cpu(),
        tuple(generator.tokens(text)),
        tuple(map(generator.tokenizer.token, range(model.config.vocab_size))),
    )
