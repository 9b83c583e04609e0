"""`stepwell convert`: a model directory in another number format, or made from a .pt file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from rich.table import Table

from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.numbers import bytes_of, short
from stepwell.config import write_atomically
from stepwell.device import DTYPES
from stepwell.errors import UsageError

FOREIGN: Final = (".pt", ".pth", ".bin")

COMPANIONS: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "generation_info.json",
)
"""Files beside the weights that belong to a model, and that stay as they are."""


def convert(
    source: Path,
    out: Path,
    /,
    *,
    config: Path | None = None,
    adapter: Annotated[Path | None, Parameter(metavar="DIRECTORY")] = None,
    dtype: Annotated[str | None, Parameter(choices=DTYPES)] = None,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> None:
    """Write a model directory from a .pt file, or from a model directory in another format.

        stepwell convert runs/facts facts-bf16 --dtype bfloat16
        stepwell convert runs/base merged --adapter runs/tuned/adapter
        stepwell convert weights.pt model --config config.json

    Nothing that a .pt file holds is run. Tokenizer files are copied.

    Parameters
    ----------
    source
        A .pt, .pth or .bin state dict, or a model directory.
    out
        The directory to write; a model that is there is replaced.
    config
        The config.json of a .pt file, or the directory that has it; by default beside it.
    adapter
        A PEFT adapter (LoRA) of the model, to be merged into it.
    dtype
        Number format of the weights; as they are where it is not given.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"{out} is the source.", fix="give another directory to write.")
    with output.open() as opened:
        if source.suffix in FOREIGN:
            if adapter is not None:
                raise UsageError(
                    "--adapter is for model directories.", fix=f"convert {source} first."
                )
            from_state_dict(source, config or source.parent, out, dtype)
        else:
            if config is not None:
                raise UsageError("--config is for .pt files.", fix="leave it out.")
            from_directory(source, adapter, out, dtype)
        show_model(out, opened)


def from_state_dict(source: Path, config: Path, out: Path, dtype: str | None) -> None:
    """Writes the model of a .pt file."""
    from stepwell.model.convert import convert_pt
    from stepwell.model.weights import load_model, save_model

    convert_pt(source, config, out)
    if dtype is not None:
        save_model(load_model(out, mmap=False), out, dtype=dtype)


def from_directory(source: Path, adapter: Path | None, out: Path, dtype: str | None) -> None:
    """Writes the model of a directory, with an adapter merged into it where one is given."""
    from stepwell.model.weights import load_model, locate, save_model

    directory = locate(source)
    model = load_model(directory)
    if adapter is not None:
        from stepwell.model.adapter import merge_adapter

        model = merge_adapter(model, adapter)
    save_model(model, out, dtype=dtype)
    copy_companions(directory, out)
    if adapter is not None:  # its tokenizer may have more tokens
        copy_companions(adapter, out)


def show_model(directory: Path, output: Output) -> None:
    """Says what was written."""
    from stepwell.model.weights import load_model

    model = load_model(directory)
    dtype = str(model.dtype).removeprefix("torch.")
    size = sum(path.stat().st_size for path in weight_files(directory))
    parameters = model.config.num_parameters
    plain = {"out": str(directory), "dtype": dtype, "parameters": parameters, "bytes": size}
    view = Table.grid(padding=(0, 2))
    view.add_row(str(directory), f"{short(parameters)} parameters", dtype, bytes_of(size))
    output.result(plain, view)


def copy_companions(source: Path, out: Path) -> None:
    """Copies what belongs to a model besides its weights and config.json."""
    from stepwell.storage.sealed import resealed

    with resealed(out, COMPANIONS):
        for name in COMPANIONS:
            if (source / name).is_file():
                write_atomically(out / name, (source / name).read_bytes())


def weight_files(directory: Path) -> Iterator[Path]:
    """The files with the weights of a model directory."""
    return directory.glob("model*.safetensors")
