"""Prompt templates fill declared places with what a row holds, and do nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stepwell.errors import ConfigError, FormatError, PromptError
from stepwell.text.messages import Message
from stepwell.text.prompt_template import PromptTemplate, PromptTemplates

FILE = """
format_version: 1
templates:
  sums:
    fields: [question]
    text: "Q: {question}\\nA:"
    system: You add.
    models:
      qwen*: "{question}="
      "*-Base": {text: "{question} is", system: ""}
  facts:
    fields: [key, sign]
    text: "{key}{sign}"
"""


def written(tmp_path: Path, content: str | dict[str, Any]) -> Path:
    path = tmp_path / "templates.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def entry(**values: Any) -> dict[str, Any]:
    """A file of one template."""
    template = {"fields": ["question"], "text": "{question}", **values}
    return {"format_version": 1, "templates": {"sums": template}}


@pytest.fixture
def templates(tmp_path: Path) -> PromptTemplates:
    return PromptTemplates.load(written(tmp_path, FILE))


def test_one_file_holds_several_tasks_and_several_models_a_task(templates) -> None:
    assert templates.names == ("sums", "facts")
    row = {"question": "2+3"}
    assert templates.get("sums").render(row) == "You add.\n\nQ: 2+3\nA:"
    assert templates.get("sums", model="Qwen/Qwen3-0.6B").render(row) == "You add.\n\n2+3="
    assert templates.get("sums", model="runs/small-base/").render(row) == "2+3 is"
    assert templates.get("sums", model="qwen-base").render(row) == "You add.\n\n2+3=", "the first"
    assert templates.get("sums", model="gpt2") == templates.get("sums")
    assert templates.get("facts", model="qwen").render(key="ab", sign=">") == "ab>"


def test_the_only_template_needs_no_name(tmp_path) -> None:
    assert PromptTemplates.load(written(tmp_path, entry())).get().render(question="a") == "a"


def test_for_a_chat_the_system_message_is_one_of_its_own(templates) -> None:
    assert templates.get("sums").messages(question="2+3") == [
        Message("system", "You add."),
        Message("user", "Q: 2+3\nA:"),
    ]
    assert templates.get("facts").messages(key="a", sign="b") == [Message("user", "ab")]


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="{}")))
def test_what_a_row_holds_stands_there_as_it_is(value: str, around: str) -> None:
    template = PromptTemplate("any", ("field",), around + "{{{field}}}" + around)
    assert template.render(field=value) == f"{around}{{{value}}}{around}"


def test_a_value_that_looks_like_a_template_is_not_one() -> None:
    template = PromptTemplate("two", ("a", "b"), "{a}{b}")
    assert template.render(a="{b}{{", b="{a.__class__}") == "{b}{{{a.__class__}"
    assert "{a}{b}".replace("{a}", "{b}").replace("{b}", "x") == "xx", "as a naive one does"


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (0.5, "0.5"), (True, "True"), ("", "")])
def test_numbers_are_written_as_python_does(value, text) -> None:
    assert PromptTemplate("any", ("a",), "<{a}>").render({"a": value}) == f"<{text}>"


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, b"a"], ids=repr)
def test_nothing_else_is_written(value) -> None:
    with pytest.raises(PromptError, match=f"'a' is of type {type(value).__name__}"):
        PromptTemplate("any", ("a",), "{a}").render({"a": value})


def test_a_missing_field_is_an_error_that_names_the_misspelt_one() -> None:
    template = PromptTemplate("any", ("question", "hint"), "{question} {hint}")
    with pytest.raises(PromptError, match=r"needs the field 'question'\. .*mean 'qestion'"):
        template.render({"qestion": "2+3", "hint": "add", "id": 4})
    with pytest.raises(PromptError, match=r"needs the field 'hint'\. The row has: id\."):
        template.render({"question": "2+3", "id": 4})
    with pytest.raises(PromptError, match=r"needs the field 'question'\.$"):
        template.render()


def test_a_row_may_hold_more_unless_it_is_strict() -> None:
    template = PromptTemplate("any", ("question",), "{question}")
    row = {"question": "2+3", "answer": "5"}
    assert template.render(row) == "2+3"
    with pytest.raises(PromptError, match="no field 'answer'"):
        template.render(row, strict=True)


def test_a_field_is_needed_also_by_the_words_that_leave_it_out(tmp_path) -> None:
    content = entry(fields=["question", "hint"], text="{question}{hint}", models={"q": "{hint}"})
    template = PromptTemplates.load(written(tmp_path, content)).get("sums", model="q")
    with pytest.raises(PromptError, match="needs the field 'question'"):
        template.render(hint="b")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text": "{qestion}{question}"}, "{qestion} is not one of its fields. Did you mean"),
        ({"text": "{question.__class__}"}, "{question.__class__} is no name of a field"),
        ({"text": "{question[0]}"}, "{question[0]} is no name"),
        ({"text": "{question!r}"}, "{question!r} is no name"),
        ({"text": "{question:>9}"}, "{question:>9} is no name"),
        ({"text": "{}"}, "{} is no name"),
        ({"text": "{0}"}, "{0} is no name"),
        ({"text": "{question} }"}, "Single '}' encountered"),
        ({"text": '{question} {"a": 1}'}, "is no name of a field"),
        ({"system": "{hint}"}, "system: {hint} is not one of its fields"),
        ({"models": {"q*": "{hint}"}}, "'sums for q*', text: {hint} is not"),
        ({"models": {"q*": {"txt": "a"}}}, "ModelWords.txt'. Did you mean 'text'"),
        ({"models": {"": "{question}"}}, "a pattern is empty"),
        ({"fields": ["question", "hint"]}, "declares the field 'hint', which has no place"),
        ({"field": ["question"]}, "Did you mean 'fields'"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_file_is_said_when_it_is_read(tmp_path, values, said) -> None:
    with pytest.raises(ConfigError) as caught:
        PromptTemplates.load(written(tmp_path, entry(**values)))
    assert said in str(caught.value)
    assert "templates.yaml" in str(caught.value)


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(FormatError, match="format_version 2"):
        PromptTemplates.load(written(tmp_path, "format_version: 2\ntemplates: {}"))
    for content in ("[1]", "format_version: 1\ntemplates: {}", "templates: {}", "a: [", ""):
        with pytest.raises(ConfigError, match=r"templates\.yaml"):
            PromptTemplates.load(written(tmp_path, content))
    with pytest.raises(ConfigError, match="cannot be read"):
        PromptTemplates.load(tmp_path / "nowhere.yaml")


def test_a_task_that_is_not_there_is_suggested(templates) -> None:
    with pytest.raises(ConfigError, match=r"no template 'sum'\. Did you mean 'sums'"):
        templates.get("sum")
    with pytest.raises(ConfigError, match=r"Which template\? Known: facts, sums"):
        templates.get()


def test_a_fingerprint_is_of_what_is_rendered(templates, tmp_path) -> None:
    one = templates.get("sums")
    same = PromptTemplate("other name", ("question",), one.text, one.system)
    assert one.fingerprint == same.fingerprint
    others = [
        templates.get("sums", model="qwen"),
        templates.get("facts"),
        PromptTemplate("sums", ("question",), one.text),
        PromptTemplate("sums", ("question",), one.text + " ", one.system),
    ]
    assert len({one.fingerprint, *(each.fingerprint for each in others)}) == 5
