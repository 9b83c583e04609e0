"""The documentation is true: its code runs, its commands exist, its links lead somewhere.

The ```python blocks of a page are executed in order, in one namespace; a ```text block right after
one is what it prints. The lines `$ stepwell ...` of ```console blocks go through the command line
in this process. `<!-- not run: why -->` in the line above a block excepts it; its commands still
have to parse.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import stepwell as sw
from stepwell.cascade.ladder import LadderConfig
from stepwell.cli import main
from stepwell.cli.app import COMMANDS, FAMILIES, imported, make_app
from stepwell.cli.words import dashed
from stepwell.generate.request import SAMPLING_PRESETS
from stepwell.model.families import FAMILIES as MODEL_FAMILIES
from stepwell.model.hooks import POINTS
from stepwell.train.config import OptimizerConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (*sorted(DOCS.glob("*.md")), ROOT / "README.md")

FENCE = re.compile(r"```(\w*)$")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->$")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PROMPT = "$ stepwell "


@dataclass(frozen=True)
class Block:
    """Fenced code: its language, the line at which its code begins, and what stands around it.

    excuse: why it is not run. output: what it has to print, where the page shows that.
    """

    page: Path
    line: int
    language: str
    code: str
    excuse: str = ""
    output: str | None = None

    @property
    def commands(self) -> list[tuple[int, list[str]]]:
        """The command lines `$ stepwell ...`, each with its line in the page, without that word.

        Where the output goes to a file, as in `> FILE`, that is left out.
        """
        found = []
        for number, line in enumerate(self.code.splitlines(), start=self.line):
            if line.startswith(PROMPT):
                words = shlex.split(line, comments=True)[2:]
                found.append((number, words[: words.index(">")] if ">" in words else words))
        return found


class UntrueError(Exception):
    """A page says what is not so; the message begins with page and line."""

    def __init__(self, page: Path, line: int, problem: str) -> None:
        super().__init__(f"{page.name}:{line}: {problem}")


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = lines.index("```", number + 1)
        code = "".join(line + "\n" for line in lines[number + 1 : end])
        excuse = NOT_RUN.match(lines[number - 1]) if number else None
        output = _output_after(lines, end + 1) if fence[1] == "python" else None
        block = Block(page, number + 2, fence[1], code, excuse[1] if excuse else "", output)
        found.append(block)
        number = end + 1
    return found


def _output_after(lines: list[str], start: int) -> str | None:
    """The ```text block that comes next, with nothing but empty lines between."""
    while start < len(lines) and not lines[start]:
        start += 1
    if lines[start : start + 1] != ["```text"]:
        return None
    return "".join(line + "\n" for line in lines[start + 1 : lines.index("```", start + 1)])


def run_page(page: Path) -> None:
    """Runs all that a page has to run. Raises UntrueError at the first thing that is not so."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        if block.language == "python" and not block.excuse:
            printed = run_python(block, namespace)
            if block.output is not None and printed != block.output:
                raise UntrueError(page, block.line, f"printed\n{printed}instead of\n{block.output}")
        elif block.language == "console":
            for line, command in block.commands:
                parse_command(page, line, command)
                if not block.excuse:
                    run_command(page, line, command)


def run_python(block: Block, namespace: dict[str, Any]) -> str:
    """What the block prints. Raises UntrueError where it fails."""
    printed = io.StringIO()
    try:
        tree = ast.parse("\n" * (block.line - 1) + block.code, str(block.page))
        code = compile(tree, str(block.page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        line = next((p.lineno for p in reversed(places) if p.filename == str(block.page)), None)
        if isinstance(error, SyntaxError):
            line = error.lineno
        raise UntrueError(block.page, line or block.line, said_by(error)) from error
    return printed.getvalue()


def run_command(page: Path, line: int, command: list[str]) -> None:
    """Nothing. Raises UntrueError where the command's exit code is not 0."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(command)
    if code:
        raise UntrueError(page, line, f"exit code {code}\n{said.getvalue()}")


def parse_command(page: Path, line: int, command: list[str]) -> None:
    """Nothing. Raises UntrueError where there is no such command, or it has no such flag."""
    tokens = dashed(command)
    try:
        make_app(tokens).parse_args(tokens, exit_on_error=False, print_error=False)
    except Exception as error:
        raise UntrueError(page, line, said_by(error)) from error


def said_by(error: Exception) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {error}"


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page outside of its fenced blocks, numbered."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def anchors_of(page: Path) -> set[str]:
    """What `#` links into a page can name: its headings, spelled as MkDocs does."""
    headings = (line.lstrip("#").strip() for _, line in prose_of(page) if line.startswith("#"))
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", word) for word in words}


def broken_links(page: Path) -> list[str]:
    """One line for each relative link that leads to no file, or to no heading of it."""
    faults = []
    for number, line in prose_of(page):
        for target in LINK.findall(line):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors_of(file)):
                faults.append(f"{page.name}:{number}: {target}")
    return faults


def missing(page: str, names: Iterable[str]) -> list[str]:
    """Those of the names that a page does not hold as code."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [name for name in names if not re.search(rf"`{re.escape(name)}\b[^`]*`", text)]


# -- what is run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, workplace: Path) -> None:
    run_page(page)


def test_what_is_not_run_says_why(record_property: Callable[[str, object], None]) -> None:
    excused = [block for page in PAGES for block in blocks_of(page) if block.excuse]
    record_property("not run", [f"{b.page.name}:{b.line}: {b.excuse}" for b in excused])
    assert [block.language for block in excused if block.language != "console"] == []
    assert len(excused) == 14, "fewer is better; more needs a reason that holds"


def test_a_ladder_file_on_a_page_is_one() -> None:
    files = [b for b in blocks_of(DOCS / "cascade.md") if b.language == "yaml"]
    assert files
    for block in files:
        LadderConfig.parse(yaml.safe_load(block.code), where=f"cascade.md:{block.line}")


def test_every_fence_is_seen() -> None:
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if "```" in line]
        assert len(fences) == 2 * len(blocks_of(page)), page.name


PLANTED = """\
# A page

```python
x = 1
```

```python
print(x)
{failing}
```
"""


@pytest.mark.parametrize(
    ("failing", "line"),
    [
        ("y = x / 0", 9),
        ("y = = 2", 9),
        ("```\n\n```text\n2", 8),  # what is printed is 1
        ("```\n\n```console\n$ stepwell no-such-command", 12),
        ("```\n\n```console\n$ stepwell train --no-such-flag", 12),
        ("```\n\n```console\n$ stepwell train --task facts --steps 0", 12),
    ],
)
def test_a_planted_fault_is_reported_with_page_and_line(
    failing: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "planted.md"
    page.write_text(PLANTED.format(failing=failing))
    with pytest.raises(UntrueError, match=rf"^planted\.md:{line}: "):
        run_page(page)


# -- what is there ---------------------------------------------------------------------------------


def test_every_public_name_is_on_some_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [n for n in sw.__all__ if not re.search(rf"\bsw\.{re.escape(n)}\b", text)] == []


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("generate.md", sw.SamplingParams.model_fields),
        ("generate.md", SAMPLING_PRESETS),
        ("train.md", sw.TrainerConfig.model_fields),
        ("train.md", OptimizerConfig.model_fields),
        ("finetune.md", sw.LoraConfig.model_fields),
        ("tasks.md", sw.tasks.TASKS),
        ("inspect.md", POINTS),
        ("models.md", MODEL_FAMILIES),
        ("models.md", sw.presets),
        ("models.md", sw.ModelConfig.model_fields),
    ],
)
def test_a_reference_is_complete(page: str, names: Iterable[str]) -> None:
    assert missing(page, names) == []


def test_the_shapes_of_presets_are_those_on_the_page() -> None:
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    shapes = {
        name: f"{preset.num_layers} × {preset.width} | {preset.num_heads}"
        for name, preset in sw.presets.items()
    }
    assert (
        dict(re.findall(r"^\| `([\w.-]+)` \| (\d+ × \d+ \| \d+) \|", page, re.MULTILINE)) == shapes
    )


def test_the_command_line_page_lists_the_commands_that_there_are() -> None:
    headings = re.findall(
        r"^#+ `stepwell ([\w -]+)`$", (DOCS / "command-line.md").read_text(), re.M
    )
    families = [
        f"{name} {command.name}" for name, (group, *_) in FAMILIES.items() for command in group
    ]
    assert headings == [*(command.name for command in COMMANDS), *families]


def test_the_command_line_page_has_the_examples_of_every_help() -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    commands = (*COMMANDS, *(command for group, *_ in FAMILIES.values() for command in group))
    for command in commands:
        function = imported(f"stepwell.cli.{command.home}")
        function = function(None) if command.by_tokens else function
        examples = re.findall(r"^ +(stepwell .+)$", function.__doc__ or "", re.MULTILINE)
        assert [e for e in examples if f"$ {e}\n" not in page] == [], command.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](page.md#one) [b](page.md#two) [c](gone.md) [d](https://x.y)\n")
    assert broken_links(page) == ["page.md:2: page.md#two", "page.md:2: gone.md"]


def test_the_site_has_every_page_and_asks_nothing_of_the_network() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = [file for entry in site["nav"] for file in _files(entry)]
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))
    assert site["theme"]["font"] is False
    assert "repo_url" not in site, "the theme would ask its host for the number of stars"


def _files(entry: Any) -> list[str]:
    """The files of an entry of the navigation, of its subentries too."""
    if isinstance(entry, str):
        return [entry]
    return [file for inner in entry.values() for file in _files_of(inner)]


def _files_of(inner: Any) -> list[str]:
    return [inner] if isinstance(inner, str) else [file for each in inner for file in _files(each)]
