"""The flags of commands that run a model: where, in which number format, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter

from stepwell.device import DTYPES, WeightFormat, set_threads

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator

COMPUTE_GROUP: Final = Group("Where it runs", sort_key=80)


@Parameter(name="*", group=COMPUTE_GROUP)
@dataclass(frozen=True)
class ComputeFlags:
    """Device, number format and threads of a command that runs a model."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    dtype: Annotated[str | None, Parameter(choices=DTYPES)] = None
    """Number format of the weights; that of the model where it is not given."""
    weights: WeightFormat | None = None
    """int8 keeps the matrices in 8 bits: half the memory of bf16 and its time, for a small loss;
    int4 in 4 bits, for a GPU."""
    strict: bool = False
    """The same bits in every company: batches, chunks and caches move nothing (CPU only)."""
    threads: int = 0
    """Threads of the CPU; 0 leaves torch's number."""

    def load(self, model: str, **options: Any) -> TextGenerator:
        """The model, tokenizer and sampling defaults, ready to generate."""
        from stepwell.generate.text import TextGenerator

        if self.threads:
            set_threads(self.threads)
        return TextGenerator.load(
            model,
            device=self.device,
            dtype=self.dtype,
            weights=self.weights,
            strict=self.strict,
            **options,
        )
