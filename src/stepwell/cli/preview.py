"""`stepwell preview`: examples of a task as tokens, with the trained ones marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.text import Text

from stepwell.cli.configured import chosen_tasks, configured_task, task_flags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.flags import with_flags
from stepwell.errors import DataError, UsageError
from stepwell.tasks import IGNORE, TASKS, Example, Task

if TYPE_CHECKING:
    from stepwell.tasks.example import Encoded

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Shown:
    """A token; `label` is what the model shall say where it stands, None where it is not trained.

    A token that the one before it predicts has itself as its label.
    """

    token: str
    label: str | None = None
    depth: int = 0


def preview_command(tokens: Sequence[str] | None) -> Callable[..., None]:
    """The command for the words that follow `preview`; None gives it the flags of all tasks."""
    flags = task_flags(list(TASKS.values()) if tokens is None else chosen_tasks(tokens))

    def preview(
        *,
        task: Annotated[str | None, Parameter(choices=tuple(TASKS))] = None,
        config: Annotated[Path | None, Parameter(metavar="PATH")] = None,
        split: Split = "train",
        index: int = 0,
        count: int = 1,
        output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
        **given: Any,
    ) -> None:
        """Show examples of a task as the model sees them, with the trained tokens marked.

        A trained token is coloured, or in brackets where there is no colour. Where the model is
        asked for something else than that token, its label follows an arrow.

            stepwell preview --task facts
            stepwell preview --task variable-renaming --renames 8 --count 3 --split test

        Parameters
        ----------
        task
            The task whose examples these are.
        config
            A run.yaml; flags change it.
        split
            The split to take them from.
        index
            The first example, from 0.
        count
            How many to show.
        """
        if count < 1 or index < 0:
            raise UsageError(f"There are no examples {index} to {index + count - 1}.")
        with output.open() as opened:
            made = configured_task(flags, given, name=task, file=config)
            show_examples(made, split, range(index, index + count), opened)

    return with_flags(preview, flags)


def show_examples(task: Task, split: str, indices: Sequence[int], output: Output) -> None:
    """Prints examples. Raises DataError where one of them trains no token."""
    plain, view = [], Text()
    for index in indices:
        example = task.example_in(split, index)
        shown = tokens_of(task, example)
        trained = sum(each.label is not None for each in shown)
        if not trained:
            raise DataError(
                f"Example {index} of the {split} split of task {task.name} trains no token.",
                fix="give its Example a target, and see that the task's encode labels it.",
            )
        plain.append(
            {
                "index": index,
                "split": split,
                "text": example.text,
                "trained": trained,
                "tokens": [asdict(each) for each in shown],
            }
        )
        view.append(
            f"{task.name}, {split} {index}: {len(shown)} tokens, {trained} trained\n", style="dim"
        )
        view.append_text(marked(shown, colour=output.in_colour))
        view.append("\n" if index == indices[-1] else "\n\n")
    view.rstrip()
    output.result(plain, view)


def tokens_of(task: Task, example: Example) -> list[Shown]:
    """The example's tokens with their labels, and what a model shall add at the end."""
    encoded = task.encode(example)
    in_place = example.targets[0].in_place
    return list(_in_place(task, encoded) if in_place else _following(task, encoded))


def marked(shown: Sequence[Shown], *, colour: bool) -> Text:
    """The tokens in a row, the trained ones coloured or in brackets."""
    text = Text()
    for each in shown:
        token = each.token.replace("\n", "⏎\n")
        if each.label is None:
            text.append(token)
            continue
        arrow = "" if each.label == each.token else f"→{each.label}"
        if colour:
            text.append(token, style="bold green").append(arrow, style="magenta")
        else:
            text.append(f"[{token}{arrow}]")
    return text


def _in_place(task: Task, encoded: Encoded) -> Iterator[Shown]:
    """Each token with the label that stands on it."""
    name = task.tokenizer.token
    for token, label, depth in zip(encoded.ids, encoded.labels, encoded.depths, strict=True):
        yield Shown(name(token), None if label == IGNORE else name(label), depth)


def _following(task: Task, encoded: Encoded) -> Iterator[Shown]:
    """Each token with the label of the position before it: itself, where it is trained."""
    name = task.tokenizer.token
    yield Shown(name(encoded.ids[0]))
    following = [*encoded.ids[1:], None]
    for token, label, depth in zip(following, encoded.labels, encoded.depths, strict=True):
        if label != IGNORE:
            yield Shown(name(label if token is None else token), name(label), depth)
        elif token is not None:
            yield Shown(name(token))
