"""Tables of effects: a number with its standard error for each layer and head, or position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stepwell.errors import PromptError
from stepwell.model.config import ModelConfig
from stepwell.report import Facts, Heatmap, Page, write_png

Array = NDArray[np.float64]
ALIKE = 1e-6
"""Two scores are the same where they differ by less than this share: float32 tells no more."""


@dataclass(frozen=True, eq=False)
class EffectTable:
    """Effects [L, columns] with standard errors over the texts (NaN where there is but one).

    facts: what they are measured against. note: how to read them.
    """

    effects: Array
    standard_errors: Array
    columns: tuple[str, ...]
    title: str
    value_label: str
    facts: tuple[tuple[str, str], ...] = ()
    note: str = ""

    @classmethod
    def shares(
        cls,
        patched_NLP: Tensor,
        start_N: Tensor,
        end_N: Tensor,
        columns: Sequence[str],
        *,
        title: str,
        metric: str,
    ) -> EffectTable:
        """Shares of the way from one score to another: ratios of means over the texts.

        Standard errors are those of a ratio estimator (Cochran 1977, chapter 6). Raises PromptError
        where the two scores do not differ.
        """
        patched, start, end = (each.double().numpy() for each in (patched_NLP, start_N, end_N))
        way_N = end - start
        if abs(way_N.mean()) <= ALIKE * max(np.abs(start).max(), np.abs(end).max()):
            raise PromptError(
                "The clean and the corrupt texts have the same score: there is nothing to explain.",
                fix="choose texts that the model answers differently.",
            )
        moved_NLP = patched - start[:, None, None]
        effects = moved_NLP.mean(0) / way_N.mean()
        residual_NLP = moved_NLP - effects * way_N[:, None, None]
        return cls(
            effects,
            _standard_error(residual_NLP) / abs(way_N.mean()),
            tuple(columns),
            title,
            "share of the difference",
            (
                ("score", metric),
                ("before patching", f"{start.mean():.4g}"),
                ("in the run that is patched in", f"{end.mean():.4g}"),
                ("pairs of texts", str(len(start))),
            ),
            "0: nothing of the difference between the two runs comes with this part; 1: all of it.",
        )

    @classmethod
    def differences(
        cls, values_NLP: Tensor, columns: Sequence[str], *, title: str, value_label: str
    ) -> EffectTable:
        """Means over the texts."""
        values = values_NLP.double().numpy()
        facts = (("texts", str(len(values))),)
        error = _standard_error(values)
        return cls(values.mean(0), error, tuple(columns), title, value_label, facts)

    @property
    def has_errors(self) -> bool:
        """Whether there are standard errors to be told: known, and not all 0."""
        return bool(np.nansum(self.standard_errors) > 0)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Layer, column, effect and standard error of each cell, the greatest effect first."""
        order = np.argsort(-np.abs(self.effects), axis=None, kind="stable")
        cells = [divmod(int(each), len(self.columns)) for each in order]
        return [
            {
                "layer": layer,
                "column": self.columns[column],
                "effect": float(self.effects[layer, column]),
                "standard_error": _or_none(self.standard_errors[layer, column]),
            }
            for layer, column in cells
        ]

    def plain(self) -> dict[str, Any]:
        """All of the table, as JSON holds it."""
        facts = dict(self.facts)
        return {"title": self.title, "value": self.value_label, "facts": facts, "rows": self.rows}

    @property
    def figure(self) -> Heatmap:
        """The table as a heatmap, layers down."""
        return Heatmap(
            title=self.title,
            values=self.effects,
            error=self.standard_errors if self.has_errors else None,
            x_ticks=self.columns,
            y_ticks=[f"layer {layer}" for layer in range(len(self.effects))],
            value_label=self.value_label,
            center=0.0,
            note=self.note,
        )

    def page(self, command: str = "") -> Page:
        """A page with the table and what it is measured against."""
        page = Page(self.title, command=command)
        return page.add(self.figure, *([Facts(self.facts)] if self.facts else []))

    def write_html(self, path: str | Path, *, command: str = "") -> Path:
        """The path of a page with the table, which needs nothing else."""
        return self.page(command).write(path)

    def write_png(self, path: str | Path, *, dark: bool = False) -> Path:
        """The path of a picture of the table."""
        return write_png(self.figure, path, dark=dark)


def head_names(config: ModelConfig) -> tuple[str, ...]:
    """The names of columns that stand for the heads of a layer."""
    return tuple(f"head {head}" for head in range(config.num_heads))


def _standard_error(values_N: Array) -> Array:
    """Of a mean over the first axis; NaN of a single value."""
    count = len(values_N)
    if count == 1:
        return np.full(values_N.shape[1:], np.nan)
    return np.asarray(values_N.std(0, ddof=1) / np.sqrt(count), np.float64)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
