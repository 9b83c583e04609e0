"""The commands of `stepwell`, and the way from a command line to an exit code.

Owns the list of commands and what every one of them has in common. A command's module is imported
when that command is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cyclopts import App, ArgumentCollection, Group

from stepwell.cli.console import Output, make_console
from stepwell.cli.faults import INTERRUPTED, Fault, fault_of, show
from stepwell.cli.help_page import HelpPage
from stepwell.cli.words import before_delimiter
from stepwell.version import __version__

PAGE_WIDTH: Final = 80  # columns of help where there is no terminal to ask

ABOUT: Final = """Train, look inside, generate from and cascade decoder-only transformers.

    stepwell demo
    stepwell train --task facts --preset facts-large --steps 700 --run-name facts
    stepwell generate runs/facts "zpqk>" --temperature 0
    stepwell inspect runs/facts "zpqk>" --out attention.html
"""

START = Group("Start here", sort_key=1)
TRAIN = Group("Train", sort_key=2)
USE = Group("Use a model", sort_key=3)
FIT = Group("Fit a ladder", sort_key=4)
SHELL = Group("Settings", sort_key=5)


@dataclass(frozen=True)
class Command:
    """A command: where its function is, its line in the list, and the group that it is listed in.

    home: "module:function" in this package. by_tokens: that function makes the command for the
    words that follow it, or for None with every flag, because the flags depend on them.
    """

    name: str
    home: str
    summary: str
    group: Group
    by_tokens: bool = False


COMMANDS: Final = (
    Command("demo", "demo:demo", "From nothing to a trained ladder of models.", START),
    Command("doctor", "doctor:doctor", "What is wrong here, and the fix.", START),
    Command("train", "train:train_command", "Train a model on a task.", TRAIN, by_tokens=True),
    Command("finetune", "finetune:finetune", "Teach conversations to a model.", TRAIN),
    Command("sweep", "sweep:sweep_command", "Many runs with some fields varied.", TRAIN, True),
    Command("runs", "runs:runs", "Training runs: how far, how good, side by side.", TRAIN),
    Command("preview", "preview:preview_command", "Examples as a model sees them.", TRAIN, True),
    Command("generate", "generate:generate", "Answers to a prompt, or to a file of them.", USE),
    Command("chat", "chat:chat", "Talk with a model in the terminal.", USE),
    Command("inspect", "inspect:inspect", "Attention, next tokens, the logit lens.", USE),
    Command("patch", "patch:patch", "Which part of a model does it.", USE),
    Command("heads", "heads:heads", "What each head attends to, or contributes.", USE),
    Command("eval", "eval:evaluate", "How good a model is at tasks, with intervals.", USE),
    Command("models", "models:models", "Run folders and models, and how good they are.", USE),
    Command("convert", "convert:convert", "Another number format, or from .pt.", USE),
    Command("profile", "profile:profile", "Where the time of one answer goes.", USE),
    Command("bench", "bench:bench", "Speed and memory, beside other programs.", USE),
)
CASCADE: Final = (
    Command("run", "cascade:run", "Answer a prompt by a ladder of models.", USE),
    Command("profile", "cascade_profile:profile", "Where the time of an answer went.", USE),
    Command("collect", "cascade_prepare:collect", "All stages' answers to all questions.", FIT),
    Command("calibrate", "cascade_prepare:calibrate", "What answers cost on this machine.", FIT),
    Command("fit", "cascade_prepare:fit", "Learn when to stop, and certify it.", FIT),
    Command("eval", "cascade_eval:evaluate", "Against simpler rules, over seeds.", FIT),
)
EXPERIMENT: Final = (
    Command(
        "temperature", "experiment:temperature_command", "Accuracy and confidence by it.", USE, True
    ),
)
COMPLETION: Final = (
    Command("install", "completion:install", "Install it for your shell.", SHELL),
    Command("show", "completion:show", "Print the script of a shell.", SHELL),
)
FAMILIES: Final = {
    "cascade": (CASCADE, "Several sizes of a model, each prompt only as deep as it needs.", USE),
    "experiment": (EXPERIMENT, "Studies of a model: what a temperature does.", USE),
    "completion": (COMPLETION, "Flags and commands completed by the shell.", SHELL),
}


def run_words(words: Sequence[str]) -> int:
    """Runs a command line whose flags are spelled with dashes, and returns its exit code."""
    return guarded(words, lambda: execute(make_app(words), words))


def make_app(tokens: Sequence[str] = (), *, whole: bool = False) -> App:
    """The app with all its commands; that of `tokens` shows its own help, not its line in the list.

    whole: every command at once with all flags that it may ever have, as completion needs.
    """
    app = bare_app("stepwell", help=ABOUT)
    _add_commands(app, COMMANDS, tokens, whole)
    for name, (commands, about, group) in FAMILIES.items():
        family = bare_app(name, help=about, group=group)
        _add_commands(family, commands, tokens[1:] if tokens[:1] == [name] else (), whole)
        app.command(family)
    return app


class CommandApp(App):
    """An app that looks at its function's signature once; cyclopts asks thrice for one --help."""

    def assemble_argument_collection(self, **_options: Any) -> ArgumentCollection:
        """The command's arguments, with the help that its docstring has for them."""
        known: dict[str, ArgumentCollection] = vars(self)
        if "arguments" not in known:
            known["arguments"] = super().assemble_argument_collection(parse_docstring=True)
        return known["arguments"]


def bare_app(name: str, **options: Any) -> App:
    """An app without commands, in the manner of this command line."""
    app = CommandApp(
        name=name,
        version=__version__,
        version_flags=("--version",) if name == "stepwell" else (),
        help_format="plaintext",
        help_formatter=HelpPage(),
        group_parameters=Group("Options", sort_key=1),
        group_arguments=Group("Arguments", sort_key=0),
        console=make_console(sys.stdout, pipe_width=PAGE_WIDTH),
        **options,
    )
    for flag in (*app.help_flags, *app.version_flags):
        app[flag].group = SHELL
    return app


def _add_commands(
    app: App, commands: Sequence[Command], tokens: Sequence[str], whole: bool
) -> None:
    for command in commands:
        home = f"stepwell.cli.{command.home}"
        if not whole and tokens[:1] != [command.name]:
            app.command(home, name=command.name, group=command.group, help=command.summary)
            continue
        function = imported(home)
        if command.by_tokens:
            function = function(None if whole else tokens[1:])
        app.command(bare_app(command.name, group=command.group, default_command=function))


def execute(app: App, tokens: Sequence[str]) -> int:
    """Parses the tokens, runs the command that they name, and returns its exit code."""
    command, bound, _ = app.parse_args(list(tokens), exit_on_error=False, print_error=False)
    code = command(*bound.args, **bound.kwargs)
    return code if isinstance(code, int) else 0


def guarded(tokens: Sequence[str], run: Callable[[], int], *, usage: str | None = None) -> int:
    """What `run` returns, or the exit code of what it raises, which is shown on standard error.

    usage: how the command is called, where the tokens do not tell.
    """
    output = Output(json="--json" in before_delimiter(tokens))
    try:
        return run()
    except KeyboardInterrupt:
        show(Fault("KeyboardInterrupt", "Interrupted.", exit_code=INTERRUPTED), output)
        return INTERRUPTED
    except BrokenPipeError:
        # what reads our output has gone away; keep the interpreter from writing more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        called = usage or usage_of(tokens)
        fault = fault_of(error, commands=known_commands(tokens), usage=called)
        show(fault, output)
        return fault.exit_code


def known_commands(tokens: Sequence[str]) -> list[str]:
    """The commands that could stand where the unknown one does."""
    if tokens and tokens[0] in FAMILIES:
        return [command.name for command in FAMILIES[tokens[0]][0]]
    return [*(command.name for command in COMMANDS), *FAMILIES]


def usage_of(tokens: Sequence[str]) -> str:
    """How the command of a command line is called: `stepwell cascade run`."""
    words = ["stepwell"]
    for token in tokens[:2]:
        if token not in known_commands(words[1:]):
            break
        words.append(token)
        if token not in FAMILIES:
            break
    return " ".join(words)


def imported(path: str) -> Any:
    """The object at `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
