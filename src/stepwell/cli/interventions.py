"""The flags of commands that change a model on its way, or keep what passes there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Group, Parameter

from stepwell.cli.numbers import parse_choice
from stepwell.config import read_json
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.cli.console import Output
    from stepwell.generate.request import Completion
    from stepwell.generate.tape import Record
    from stepwell.model.interventions import Intervention

GROUP: Final = Group("Look inside", sort_key=70)


@Parameter(name="*", group=GROUP)
@dataclass(frozen=True)
class InterventionFlags:
    """What is changed inside of the model while it runs."""

    interventions: Annotated[str, Parameter(metavar="JSON|FILE")] = ""
    """Changes of the forward pass, such as [{"zero_heads": {"0": [1, 3]}}], or a file of them."""

    @property
    def parsed(self) -> tuple[Intervention, ...]:
        """The interventions that were asked for."""
        return read_interventions(self.interventions)


@Parameter(name="*", group=GROUP)
@dataclass(frozen=True)
class InsideFlags(InterventionFlags):
    """What is changed, and what is kept, inside of the model while it answers."""

    record: str = ""
    """Hook points to keep of each answer, such as attention.pattern,mlp.output."""
    record_layers: str = "all"
    """Which layers to keep, such as 0,2 or 0-3."""
    record_positions: str = "all"
    """Which positions: all, prompt, generated, last, or numbers such as 0,2 or 0-3."""
    record_to: Annotated[Path, Parameter(metavar="FILE")] = Path("recording.safetensors")
    """Where they go: a .safetensors file, a .npy file of one point, or a folder of those."""

    @property
    def spec(self) -> Record | None:
        """What to keep of each answer; None where nothing was asked for."""
        if not self.record:
            return None
        from stepwell.generate.recording_files import check_suffix
        from stepwell.generate.tape import Record

        check_suffix(self.record_to)
        layers = parse_choice(self.record_layers, "--record-layers")
        named = self.record_positions in ("all", "prompt", "generated", "last")
        return Record(
            points=tuple(point.strip() for point in self.record.split(",")),
            layers="all" if layers is None else tuple(layers),
            positions=self.record_positions
            if named
            else tuple(parse_choice(self.record_positions, "--record-positions") or ()),
        )

    def keep(self, answers: Sequence[Completion], output: Output) -> None:
        """Writes what was recorded of the answers."""
        rows = [row for each in answers if each.recording for row in each.recording.rows]
        if not rows:
            return
        from stepwell.generate.record import Recording
        from stepwell.generate.recording_files import write_recording

        write_recording(Recording(rows), self.record_to)
        output.note(f"Recording: {self.record_to}", style="dim")


def read_interventions(text: str) -> tuple[Intervention, ...]:
    """The interventions of a flag: a JSON list, or the name of a file that holds one.

    Raises UsageError for text that is neither, HookError and ConfigError for a wrong entry.
    """
    if not text:
        return ()
    from stepwell.model.interventions import parse_interventions

    if not text.lstrip().startswith("["):
        if not Path(text).is_file():
            raise UsageError(
                f"--interventions {text!r} is neither a JSON list nor a file.",
                fix="""write --interventions '[{"zero_heads": {"0": [1]}}]'""",
            )
        return parse_interventions(read_json(text), where=text)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--interventions is not valid JSON: {error.msg} at character {error.pos}.",
            fix="""quote it for the shell: '[{"zero_heads": {"0": [1]}}]'""",
        ) from None
    return parse_interventions(values, where="--interventions")
