"""The logit lens: what each layer would say next, if the head read it there.

After nostalgebraist 2020: the residual stream behind every layer goes through the final norm and
the head. The last row is the model's own answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stepwell.errors import PromptError
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.report import Heatmap, Page, write_png
from stepwell.study.heatmap import visible


@dataclass(frozen=True, eq=False)
class Lens:
    """Log-probabilities [L + 1, T, V] of the next token; row 0 reads what enters layer 0.

    tokens: the text's; names: each token of the vocabulary as people read it.
    """

    log_probabilities: Tensor
    tokens: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def likeliest(self) -> Tensor:
        """The likeliest next token of each layer at each position, int64 [L + 1, T]."""
        return self.log_probabilities.argmax(-1)

    def probability(self, token: int) -> Tensor:
        """Of one token, at each layer and position, [L + 1, T]."""
        if not 0 <= token < len(self.names):
            raise PromptError(f"Token {token} is none of the {len(self.names)}.")
        return self.log_probabilities[..., token].exp()

    @property
    def figure(self) -> Heatmap:
        """The likeliest token of each layer and position, coloured by its probability."""
        best_LT = self.likeliest
        values = self.log_probabilities.exp().gather(-1, best_LT[..., None])[..., 0]
        layers = len(best_LT) - 1
        return Heatmap(
            title="What each layer would say next",
            values=values.numpy(),
            x_ticks=[visible(token) for token in self.tokens],
            y_ticks=["embedding", *(f"after layer {layer}" for layer in range(layers))],
            x_label="after",
            value_label="probability",
            text=[[visible(self.names[token]) for token in row] for row in best_LT.tolist()],
            value_range=(0.0, 1.0),
            note="The residual stream behind a layer, read by the final norm and the head.",
        )

    def write_html(self, path: str | Path, *, command: str = "") -> Path:
        """The path of a page with the lens, which needs nothing else."""
        return Page("Logit lens", command=command).add(self.figure).write(path)

    def write_png(self, path: str | Path, *, dark: bool = False) -> Path:
        """The path of a picture of the lens."""
        return write_png(self.figure, path, dark=dark)


def logit_lens(generator: TextGenerator, text: str) -> Lens:
    """What each layer would say after each token of a text."""
    model, [ids] = generator.model, generator.encode([text])
    seen = record(model, [ids], Record(points=("residual.before", "residual.after")))
    num_layers = model.config.num_layers
    states = [seen["residual.before", 0]]
    states += [seen["residual.after", layer] for layer in range(num_layers)]
    with torch.inference_mode():
        stream_LTC = torch.cat(states).to(model.device, model.dtype)
        logits_LTV = model.logits(model.final_norm(stream_LTC)).float().cpu()
    return Lens(
        logits_LTV.log_softmax(-1),
        tuple(generator.tokens(text)),
        tuple(map(generator.tokenizer.token, range(generator.tokenizer.vocab_size))),
    )
