"""Local tasks: a YAML file that says what a model is asked, and what a right answer is.

    name: capitals                        # the file's name where it is not given
    kind: multiple_choice                 # scored by the likelihood of each choice
    prompt: "Q: {question}\\nA:"
    choices: choices                      # a field with a list, or the choices of every document
    answer: answer                        # the field with the index of the right one, or its text
    documents:
      - {question: Capital of France?, choices: [Paris, Rome], answer: 0}

    kind: generate                        # scored by what the model writes
    prompt: "{question}="
    target: "{answer}"
    match: math                           # exact, contains, number or math
    max_new_tokens: 64
    stop: ["\\n"]
    data: sums.jsonl                      # a document a line, beside the YAML

    kind: task                            # examples of a task of stepwell's, by its own rule
    task: {name: facts, facts: 64}
    num_documents: 100

Owns these files and the questions that they make. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal, NamedTuple

import pydantic

from stepwell.config import Config, read_yaml
from stepwell.errors import ConfigError, DataError, suggest
from stepwell.tasks import Chats, Example, Task
from stepwell.tasks.rows import read_rows

Match = Literal["exact", "contains", "number", "math"]
BETWEEN: Final = "\n\n"  # examples, as in lm-eval
Document = Mapping[str, Any]
Name = Annotated[str, pydantic.StringConstraints(min_length=1)]
Template = Annotated[Name, pydantic.AfterValidator(lambda template: checked(template))]


class ChoiceQuestion(NamedTuple):
    """A prompt, the texts that may follow it, and the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


class OpenQuestion(NamedTuple):
    """A prompt and the right answer. example: of the task that it comes from, if any."""

    prompt: str
    target: str
    example: Example | None = None


class Documents(Config):
    """What both kinds of files share: documents here or in a file, some of them as examples."""

    name: str = ""
    prompt: Template
    documents: tuple[dict[str, Any], ...] = ()
    data: Path | None = None
    num_fewshot: Annotated[int, pydantic.Field(ge=0)] = 0
    """The first documents that are shown, solved, before each question, and are not asked."""
    delimiter: str = " "
    """Between a prompt and its answer, where an answer is scored or shown."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Documents:
        if bool(self.documents) == (self.data is not None):
            raise ValueError("expected either documents or data, a JSONL file")
        return self

    def all_documents(self) -> list[Document]:
        """The documents of the file, in order. Raises DataError or ConfigError."""
        if self.data is None:
            return list(self.documents)
        rows = read_rows(self.data)
        for row in rows:
            if not isinstance(row.value, Mapping):
                raise DataError(f"{row.where}: expected an object with the fields of a document.")
        return [row.value for row in rows]

    def _split(self) -> tuple[list[Document], list[tuple[int, Document]]]:
        """The documents that are shown, and those that are asked with their numbers."""
        documents = self.all_documents()
        shown, asked = documents[: self.num_fewshot], documents[self.num_fewshot :]
        if not asked:
            raise ConfigError(
                f"Task {self.name} has {len(documents)} documents, and num_fewshot shows"
                f" {self.num_fewshot} of them: none is left to be asked.",
                fix="give more documents, or lower num_fewshot.",
            )
        return shown, list(enumerate(asked, start=self.num_fewshot))

    def _where(self, number: int) -> str:
        return f"Task {self.name}, document {number}"


class MultipleChoice(Documents):
    """A task in which the likeliest of some given texts is the answer."""

    kind: Literal["multiple_choice"]
    choices: Name | Annotated[tuple[Template, ...], pydantic.Field(min_length=2)] = "choices"
    answer: Name = "answer"

    def questions(self, limit: int | None = None) -> list[ChoiceQuestion]:
        """What is asked, the first `limit` of it. Raises ConfigError that names the document."""
        shown, asked = self._split()
        solved = [self._solved(document, number) for number, document in enumerate(shown)]
        return [
            self._question(document, number, BETWEEN.join([*solved, ""]))
            for number, document in asked[:limit]
        ]

    def _solved(self, document: Document, number: int) -> str:
        question = self._question(document, number, "")
        return question.prompt + self.delimiter + question.choices[question.answer]

    def _question(self, document: Document, number: int, before: str) -> ChoiceQuestion:
        where = self._where(number)
        choices = self._choices(document, where)
        prompt = before + filled(self.prompt, document, where)
        return ChoiceQuestion(prompt, choices, self._index(document, choices, where))

    def _choices(self, document: Document, where: str) -> tuple[str, ...]:
        if not isinstance(self.choices, str):
            return tuple(filled(choice, document, where) for choice in self.choices)
        found = field_of(document, self.choices, where)
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) < 2:
            raise ConfigError(
                f"{where}: {self.choices!r} is {found!r}, expected a list of two or more texts."
            )
        return tuple(map(str, found))

    def _index(self, document: Document, choices: Sequence[str], where: str) -> int:
        """Which choice is right: by its index, or by its text."""
        found = field_of(document, self.answer, where)
        if isinstance(found, str) and found in choices:
            return list(choices).index(found)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(choices):
            return found
        raise ConfigError(
            f"{where}: {self.answer!r} is {found!r}, expected 0 to {len(choices) - 1} or the text"
            " of a choice."
        )


class Generate(Documents):
    """A task in which what the model writes is compared with a target."""

    kind: Literal["generate"]
    target: Template
    match: Match = "exact"
    max_new_tokens: Annotated[int, pydantic.Field(ge=1)] = 64
    stop: tuple[Name, ...] = ()

    def questions(self, limit: int | None = None) -> list[OpenQuestion]:
        """What is asked, the first `limit` of it. Raises ConfigError that names the document."""
        shown, asked = self._split()
        solved = [
            self.delimiter.join(self._texts(document, number))
            for number, document in enumerate(shown)
        ]
        before = BETWEEN.join([*solved, ""])
        texts = [self._texts(document, number) for number, document in asked[:limit]]
        return [OpenQuestion(before + prompt, target) for prompt, target in texts]

    def _texts(self, document: Document, number: int) -> tuple[str, str]:
        where = self._where(number)
        return filled(self.prompt, document, where), filled(self.target, document, where)


class OwnTask(Config):
    """Examples of a task of stepwell's from one split, scored by the task itself."""

    kind: Literal["task"]
    name: str = ""
    task: Task
    split: Literal["train", "validation", "test"] = "test"
    num_documents: Annotated[int, pydantic.Field(ge=1)] = 100

    def questions(self, limit: int | None = None) -> list[OpenQuestion]:
        """What is asked. Raises ConfigError for a task without prompts and answers."""
        count = min(self.num_documents, limit or self.num_documents)
        examples = [self.task.example_in(self.split, number) for number in range(count)]
        in_place = any(example.targets[0].in_place for example in examples)
        if in_place or self.task.is_text or isinstance(self.task, Chats):
            raise ConfigError(
                f"Task {self.task.name} does not ask for an answer after a plain prompt.",
                fix="take a task that does, such as facts or arithmetic.",
            )
        return [OpenQuestion(example.prompt, example.answer, example) for example in examples]


LocalTask = MultipleChoice | Generate | OwnTask
KINDS: Final[Mapping[str, type[LocalTask]]] = {
    "multiple_choice": MultipleChoice,
    "generate": Generate,
    "task": OwnTask,
}


def read_local_task(path: str | Path, *, num_fewshot: int | None = None) -> LocalTask:
    """The task of a YAML file; `num_fewshot` goes before what the file says.

    Raises ConfigError that names the file and what is wrong in it.
    """
    path = Path(path)
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected keys and values, such as kind: generate.")
    kind = KINDS.get(str(values.get("kind")))
    if kind is None:
        given = values.get("kind")
        problem = f"there is no kind {given!r}. {suggest(str(given), KINDS)}"
        fix = f"give one: {', '.join(KINDS)}."
        raise ConfigError(f"{path}: {problem if given else 'it names no kind.'}", fix=fix)
    task = kind.parse({"name": path.stem, **values}, where=str(path))
    if isinstance(task, OwnTask):
        if num_fewshot:
            raise ConfigError(f"{path}: a task of this kind shows no examples before a question.")
        return task
    if task.data is not None:
        task = task.changed(data=path.parent / task.data)
    return task if num_fewshot is None else task.changed(num_fewshot=num_fewshot)


def filled(template: str, document: Document, where: str) -> str:
    """The template with the fields of a document in its places; {{ and }} are braces.

    Raises ConfigError, which begins with `where`, for a field that there is not.
    """
    return "".join(
        text + ("" if name is None else str(field_of(document, name, where)))
        for text, name in pieces(template)
    )


def field_of(document: Document, name: str, where: str) -> Any:
    """The value of a field. Raises ConfigError where there is none."""
    if document.get(name) is None:
        fields = ", ".join(map(str, document)) or "none"
        raise ConfigError(f"{where} has no field {name!r}; its fields are {fields}.")
    return document[name]


def checked(template: str) -> str:
    """The template as it came. Raises ConfigError where it is none."""
    pieces(template)
    return template


def pieces(template: str) -> list[tuple[str, str | None]]:
    """(text, name of the field behind it) of a template. Raises ConfigError for any other place."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{template!r}: {error}.", fix=_PLACES) from None
    for _, name, form, conversion in parsed:
        if name is not None and (form or conversion or not name.isidentifier()):
            raise ConfigError(f"{template!r}: {{{name}}} is not the name of a field.", fix=_PLACES)
    return [(text, name) for text, name, _, _ in parsed]


_PLACES: Final = "write {field} for a place, and {{ }} for braces."
