"""How --help looks: headings, flags in one column, what they do in the next.

Plain text apart from colour, so that it reads the same in a pipe. Owns the layout only.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

NAME_WIDTH: Final = 30  # columns of the flags, their indentation included
WIDEST: Final = 100  # longer lines are hard to read
CHOICES_WIDTH: Final = 14  # choices of more characters come after the description


class HelpPage:
    """A help formatter of cyclopts, which says what its methods are given."""

    def __call__(
        self,
        console: Console,
        options: ConsoleOptions,  # noqa: ARG002
        panel: HelpPanel,
    ) -> None:
        """Prints one group of commands or flags under its heading."""
        if not panel.entries:
            return
        print_text(console, Text(f"\n{panel.title}", style="bold"))
        width = min(console.width, WIDEST)
        note = _plain(panel.description)
        if note:
            filled = textwrap.fill(note, width, initial_indent="  ", subsequent_indent="  ")
            print_text(console, Text(filled, style="dim"))
        names = [_names(entry) for entry in panel.entries]
        column = min(NAME_WIDTH, max(len(name) for name in names) + 4)
        for name, entry in zip(names, panel.entries, strict=True):
            print_text(console, _row(name, entry, column, width))

    def render_usage(
        self,
        console: Console,
        options: ConsoleOptions,  # noqa: ARG002
        usage: Any,
    ) -> None:
        """Prints the line that says how the command is called."""
        if usage:
            print_text(console, Text.assemble(("Usage: ", "bold"), str(usage).strip()))

    def render_description(
        self,
        console: Console,
        options: ConsoleOptions,  # noqa: ARG002
        description: Any,
    ) -> None:
        """Prints what the command does: paragraphs are wrapped, examples are left as they are."""
        width = min(console.width, WIDEST)
        for paragraph in _plain(description).split("\n\n"):
            if _is_example(paragraph):
                lines = "".join(f"\n  {line.strip()}" for line in paragraph.splitlines())
                print_text(console, Text(lines, style="cyan"))
            elif paragraph.strip():
                print_text(console, Text("\n" + textwrap.fill(" ".join(paragraph.split()), width)))


def print_text(console: Console, text: Text) -> None:
    """Prints lines that have been wrapped already."""
    console.print(text, soft_wrap=True)


def _is_example(paragraph: str) -> bool:
    """Whether it is a command to be typed: indented, unless docstring_parser has dedented it."""
    return paragraph.startswith(("    ", "stepwell ", "python -m "))


def _row(name: str, entry: HelpEntry, column: int, width: int) -> Text:
    """A flag and what it does; a name that is too long has a line of its own."""
    words = [_plain(entry.description)]
    if entry.choices and not _short_choices(entry):
        words.append(f"One of {', '.join(entry.choices)}.")
    if entry.required:
        words.append("[required]")
    elif entry.default not in (None, "", "False", "()"):
        words.append(f"[{entry.default}]")
    body = " ".join(word for word in words if word)
    lines = textwrap.wrap(body, max(20, width - column), break_on_hyphens=False) or [""]
    head = f"  {name}"
    if len(head) > column - 2:
        lines.insert(0, "")
    row = Text(head if len(head) > column - 2 else head.ljust(column), style="cyan")
    row.append(lines[0], style="default")
    for line in lines[1:]:
        row.append("\n" + " " * column + line, style="default")
    row.rstrip()
    return row


def _names(entry: HelpEntry) -> str:
    """`-n, --answers INT`; a flag that can be negated as `--[no-]compile`."""
    if entry.positional_label:
        return entry.positional_label
    longs = list(entry.positive_names)
    for negative in entry.negative_names:
        positive = "--" + negative.removeprefix("--no-")
        if positive in longs:
            longs[longs.index(positive)] = "--[no-]" + positive.removeprefix("--")
    names = ", ".join([*entry.positive_shorts, *longs])
    metavar = "|".join(entry.choices) if entry.choices and _short_choices(entry) else entry.metavar
    return f"{names} {metavar}" if metavar else names


def _short_choices(entry: HelpEntry) -> bool:
    """Whether the choices fit in the column of names."""
    return sum(len(choice) + 1 for choice in entry.choices or ()) <= CHOICES_WIDTH


def _plain(text: Any) -> str:
    """The characters of what cyclopts hands over as text."""
    primary = getattr(text, "primary_renderable", text)
    return str(getattr(primary, "plain", primary or "")).rstrip()
