"""`stepwell completion`: commands and flags completed by bash, zsh and fish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from cyclopts import App

from stepwell.cli.app import make_app
from stepwell.cli.console import OutputFlags
from stepwell.errors import UsageError

Shell = Literal["bash", "zsh", "fish"]
SHELLS: Final = ("bash", "zsh", "fish")


def show(shell: Shell | None = None, /) -> None:
    """Print the completion script of a shell.

        stepwell completion show fish > ~/.config/fish/completions/stepwell.fish

    Parameters
    ----------
    shell
        The shell; by default the one in SHELL.
    """
    print(_whole_app().generate_completion(shell=shell or current_shell()))


def install(
    shell: Shell | None = None,
    /,
    *,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> None:
    """Write the completion script where the shell finds it, and name it in its start-up file.

        stepwell completion install zsh

    Parameters
    ----------
    shell
        The shell; by default the one in SHELL.
    """
    with output.open() as opened:
        chosen = shell or current_shell()
        path = _whole_app().install_completion(shell=chosen)
        opened.result({"shell": chosen, "script": str(path)}, f"Installed {path}")
        opened.note(f"It works in the next {chosen} that you start.", style="dim")


def current_shell() -> Shell:
    """The shell that SHELL names. Raises UsageError where it is another one, or not set."""
    name = Path(os.environ.get("SHELL", "")).name
    for shell in SHELLS:
        if name == shell:
            return shell
    raise UsageError(f"SHELL names {name or 'no shell'}.", fix=f"say which: {', '.join(SHELLS)}.")


def _whole_app() -> App:
    return make_app(whole=True)
