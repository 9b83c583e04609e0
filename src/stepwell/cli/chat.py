"""`stepwell chat`: a conversation in the terminal.

Owns the prompt, the commands that begin with an exclamation mark, and what a reply looks like. What
a turn is made of is the business of `generate.conversation`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.flags import given_values, with_flags
from stepwell.cli.generate import FLAGS, preset_values
from stepwell.cli.interrupt import stop_on_interrupt
from stepwell.errors import StepwellError, UsageError, suggest
from stepwell.generate.request import SAMPLING_PRESETS

if TYPE_CHECKING:
    from stepwell.generate.conversation import Conversation
    from stepwell.generate.request import Completion

NEWLINES: Final = 4  # newlines in a row that a reply may have, where nothing else is said
DIM: Final = "\x1b[2m"
PLAIN: Final = "\x1b[0m"
HELP: Final = """\
  an empty line           begins a new conversation
  !set                    shows what can be set
  !set temperature 0.2    sets a sampling parameter
  !set system Be brief.   sets what is said before everything, and begins anew
  !set think off          asks for replies without thinking, where the template can
  !save talk.jsonl        appends the conversation to a file that `train --task chats` reads
  !help                   shows this
  !quit, or Ctrl-D        ends
  Ctrl-C                  stops a reply, and keeps what was said of it"""


def _chat(
    model: str,
    /,
    *,
    system: str = "",
    think: bool = True,
    preset: Annotated[str | None, Parameter(choices=tuple(SAMPLING_PRESETS))] = None,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
    **given: Any,
) -> int:
    """Talk with a model. Its thinking is dimmed; an empty line begins a new conversation.

        stepwell chat runs/sums --temperature 0
        stepwell chat Qwen/Qwen3-0.6B --system "Be brief." --preset chat

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub, with a chat template.
    system
        What is said before everything.
    think
        Ask for thinking before each reply, where the template can ask.
    preset
        Named sampling parameters; flags change them.
    """
    named = {"newline_run_limit": NEWLINES, **preset_values(preset)}
    sampling = {**named, **given_values(FLAGS, given)}
    with output.open() as opened:
        from stepwell.generate.conversation import Conversation

        generator = compute.load(model)
        generator.defaults.changed(n=1, **sampling)  # what is wrong in it is said before the prompt
        talk = Conversation(generator, system=system, thinking=think)
        return Terminal(talk, sampling, opened).run()


chat: Callable[..., int] = with_flags(_chat, FLAGS)


class Terminal:
    """One talk: lines in, replies out. sampling: what was set, by name."""

    def __init__(self, talk: Conversation, sampling: dict[str, Any], output: Output) -> None:
        self.talk, self.sampling, self.output = talk, sampling, output
        self.commands: dict[str, Callable[[str], object]] = {
            "help": lambda _: self.output.note(HELP, style="dim"),
            "set": self.set,
            "save": self.save,
        }

    def run(self) -> int:
        """Until the input ends; the exit code."""
        if self.output.interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  # lines can be edited, and come back
            self.output.note("An empty line begins anew; !help says what more.", style="dim")
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except KeyboardInterrupt:  # a second one, or one beside the reply
                self.output.note("\nstopped", style="dim")
        return 0

    def _turn(self) -> bool:
        """A line and what it asks for; whether the talk goes on."""
        line = self._line()
        name, _, rest = (line or "").removeprefix("!").partition(" ")
        if line is None or (line.startswith("!") and name in ("quit", "exit")):
            return False
        try:
            if not line.strip():
                self.restart()
            elif line.startswith("!"):
                self._command(name)(rest.strip())
            else:
                self.say(line)
        except StepwellError as error:
            self.output.warn(str(error))
        return True

    def say(self, text: str) -> None:
        """Prints the reply as it comes."""
        begun = time.perf_counter()
        spoken = self.talk.say(text, **self.sampling)
        thinking, done = False, None
        said = {True: "", False: ""}
        with stop_on_interrupt(lambda: None) as stop_requested:
            for each in spoken:
                if each.thinking != thinking and each.text:
                    thinking = each.thinking
                    self._turn_over(thinking)
                said[each.thinking] += each.text
                if not self.output.json:
                    self.output.write(each.text)
                done = each.completion
                if stop_requested():
                    spoken.close()
                    break
        if self.output.json:
            reason = done.finish_reason if done else "cancelled"
            plain = {"think": said[True], "answer": said[False], "finish_reason": reason}
            self.output.write(json.dumps(plain, ensure_ascii=False) + "\n")
            return
        self.output.write((self._end_of_thinking if thinking else "") + "\n")
        self._conclude(done, time.perf_counter() - begun)

    def restart(self) -> None:
        """Forgets what was said."""
        if self.talk.messages:
            self.output.note("A new conversation.", style="dim")
        self.talk.restart()

    def set(self, words: str) -> None:
        """Sets one value, or shows them all. Raises ConfigError."""
        name, _, value = words.partition(" ")
        if not name:
            self.output.note(self._settings(), style="dim")
        elif name == "system":
            self.talk.system = value.strip()
            self.restart()
        elif name == "think":
            if value.strip() not in ("on", "off"):
                raise UsageError(f"think is on or off, not {value.strip()!r}.")
            self.talk.thinking = value.strip() == "on"
        else:
            changed = {**self.sampling, name: _read(value)}
            self.talk.generator.defaults.changed(n=1, **changed)
            self.sampling = changed

    def save(self, words: str) -> None:
        """Appends the conversation to a file. Raises UsageError."""
        if not words:
            raise UsageError("!save needs the path of a file.", fix="!save talk.jsonl")
        if not self.talk.messages:
            raise UsageError("Nothing has been said yet.")
        try:
            with Path(words).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.talk.plain(), ensure_ascii=False) + "\n")
        except OSError as error:
            raise UsageError(f"{words}: {error.strerror}.", fix="give another path.") from None
        self.output.note(f"Appended to {words}.", style="dim")

    def _command(self, name: str) -> Callable[[str], object]:
        if name not in self.commands:
            known = [f"!{each}" for each in (*self.commands, "quit")]
            raise UsageError(f"There is no !{name}. {suggest(f'!{name}', known)}")
        return self.commands[name]

    def _line(self) -> str | None:
        """What is typed next, None at the end of the input. Ctrl-C drops a line."""
        asking = "> " if self.output.interactive else ""
        while True:
            try:
                return input(asking) if asking else _piped()
            except EOFError:
                self.output.note("" if asking else Text())
                return None
            except KeyboardInterrupt:
                self.output.note("\n!quit or Ctrl-D ends.", style="dim")

    def _turn_over(self, thinking: bool) -> None:
        """Between thinking and answer."""
        if self.output.json:
            return
        if thinking:
            self.output.write(DIM if self.output.in_colour else "(")
        else:
            self.output.write(f"{self._end_of_thinking}\n")

    @property
    def _end_of_thinking(self) -> str:
        return PLAIN if self.output.in_colour else ")"

    def _conclude(self, done: Completion | None, seconds: float) -> None:
        """Says how much came in which time, and how much of the prompt was known."""
        if done is None:
            self.output.note("stopped", style="dim")
            return
        usage = done.usage
        speed = usage.completion_tokens / max(seconds, 1e-9)
        known = f"{usage.cached_tokens} of {usage.prompt_tokens} tokens before were in the cache"
        parts = [f"{usage.completion_tokens} tokens, {speed:.0f} a second", known]
        if done.finish_reason != "stop":
            parts.append(f"ended by {done.finish_reason}")
        self.output.note("; ".join(parts), style="dim")
        if done.error:
            self.output.warn(done.error)

    def _settings(self) -> str:
        params = self.talk.generator.defaults.changed(n=1, **self.sampling)
        rows = {"system": self.talk.system, "think": "on" if self.talk.thinking else "off"}
        rows |= {name: str(value) for name, value in params if name != "n"}
        return "\n".join(f"  {name} {value}" for name, value in rows.items())


def _piped() -> str:
    """A line of an input that is no terminal. Raises EOFError at its end."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _read(value: str) -> Any:
    """A value as it is typed: JSON, or else text."""
    try:
        return json.loads(value)
    except ValueError:
        return value.strip()
