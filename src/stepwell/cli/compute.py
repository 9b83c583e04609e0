"""The flags of commands that run a model: where, in which number format, on how many threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter

from stepwell.device import DTYPES, WeightFormat, set_threads

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator
    from stepwell.generate.workers import WorkerPool

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
    """int8 keeps the matrices in 8 bits: half of bf16's memory and time. int4 is for a GPU."""
    strict: bool = False
    """The same bits in every company: batches, chunks and caches move nothing (CPU only)."""
    threads: int = 0
    """Threads of the CPU; 0 leaves torch's number."""

    def pool(self, model: str, devices: Sequence[str]) -> WorkerPool:
        """A process for each device, with the model."""
        from stepwell.generate.workers import WorkerPool

        threads = self.threads or None
        options = {"dtype": self.dtype, "weights": self.weights, "strict": self.strict}
        return WorkerPool(model, devices, threads=threads, **options)

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
