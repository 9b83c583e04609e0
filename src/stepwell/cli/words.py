"""A command line before it is parsed: its words, as far as they must be known early. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def dashed(words: Sequence[str]) -> list[str]:
    """The words with --num_layers spelled --num-layers; nothing is changed after `--`."""
    options = before_delimiter(words)
    return [_dashed(word) for word in options] + list(words[len(options) :])


def before_delimiter(words: Sequence[str]) -> list[str]:
    """The words before `--`, among which flags are looked for."""
    return list(words[: words.index("--")] if "--" in words else words)


def option(words: Sequence[str], name: str) -> str | None:
    """The value of an option, `--task facts` or `--task=facts`; None where it is not given."""
    options = before_delimiter(words)
    for index, word in enumerate(options):
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
        if word == name and index + 1 < len(options):
            return options[index + 1]
    return None


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word
