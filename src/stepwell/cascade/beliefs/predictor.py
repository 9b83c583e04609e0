"""How likely each stage's answer is good enough, given what was seen so far.

    features -> standardised, what no stage told is 0 -> regression + hidden layer
             -> drawn toward the base rate -> calibrated -> beliefs

There is a belief in every stage, run or not, in every state, whichever stages were skipped: earlier
answers are scored anew when later ones arrive. Owns the beliefs and their files; what is done with
them is stopping.py's.

    predictor.safetensors   the arrays
    predictor.json          features and sizes, and the SHA-256 of the arrays; it comes last
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stepwell.cascade.beliefs.features import FEATURE_GROUPS, FeatureSet, Seen
from stepwell.cascade.beliefs.heads import Head
from stepwell.cascade.beliefs.learning import learn
from stepwell.cascade.beliefs.states import Layout, Standards
from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.rule.paths import FloatArray, IntArray
from stepwell.config import write_atomically, write_json
from stepwell.errors import DataError, ShapeError
from stepwell.storage.staging import staged

HIDDEN = 64
ARRAYS: Final = "predictor.safetensors"
DESCRIPTION: Final = "predictor.json"
FILES: Final = frozenset({ARRAYS, DESCRIPTION})
FIT_AGAIN: Final = "fit the ladder again."
MOST_STAGES = 10  # there are 2^K states
ONE_THREAD: Final = 2**18
"""Multiplications that BLAS does on one thread. With more it wakes others, which then spin for tens
of milliseconds on the cores that the stages need."""


class _View(NamedTuple):
    """A head as one state sees it: a constant, the features known, [C], and the hidden units."""

    columns: IntArray  # [C], of Seen.flat
    standards: Standards
    inner: FloatArray  # [C, H]
    bias: FloatArray  # [H]
    head: Head  # of 1 + C + H inputs

    def beliefs(self, inputs: FloatArray, base: FloatArray) -> FloatArray:
        """Beliefs [N, K] from standardised features [N, C] and base rates [K]."""
        units = np.tanh(inputs @ self.inner + self.bias)
        design = np.concatenate([np.ones((len(inputs), 1)), inputs, units], axis=1)
        return self.head.beliefs(design, base)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Calibrated beliefs in K stages after any set of them: one hidden layer, and a head a state.

    Beyond four stages, the states with the same last stage share a head.
    """

    layout: Layout
    standards: Standards
    base: FloatArray  # [K], how often each stage is good
    inner: FloatArray  # [1 + K + D, H]
    heads: tuple[Head, ...]

    @property
    def num_stages(self) -> int:
        """K."""
        return self.layout.num_stages

    @property
    def feature_set(self) -> FeatureSet:
        """The features that it reads."""
        return self.layout.features

    @classmethod
    def fit(
        cls,
        data: Seen,
        good: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
        *,
        hidden: int = HIDDEN,
        seed: int = 0,
    ) -> Self:
        """The predictor learned from N prompts on which all stages were run.

        good is [N, K] in [0, 1]; weights [N]. The prompts must not be those that a stopping rule is
        then fitted on. Without any, beliefs are 1/2. hidden is the width of the layer, which is
        left out where prompts held out are not predicted better with it. The same arguments give
        the same bits, on however many threads torch computes elsewhere.
        """
        learned = learn(data, good, weights, hidden, seed)
        return cls(*(getattr(learned, part.name) for part in fields(cls)))

    def beliefs(self, seen: Seen, state: int) -> FloatArray:
        """Pr(stage j's answer is good | what the stages of a state told), [N, K].

        Bit n-1 of the state is stage n; what other stages told is not read. Features that are NaN
        count as average.
        """
        if seen.features != self.feature_set or seen.num_stages != self.num_stages:
            raise ShapeError(
                f"seen are features {', '.join(seen.features.groups)} of {seen.num_stages} stages,"
                f" expected {', '.join(self.feature_set.groups)} of {self.num_stages}."
            )
        if not 0 <= state < 1 << self.num_stages:
            raise ShapeError(f"state is {state}, expected one of {self.num_stages} stages.")
        view = self._view(state)
        inputs = view.standards.apply(seen.flat()[:, view.columns])
        rows = max(1, ONE_THREAD // len(view.head.spread) ** 2)
        if len(inputs) <= rows:
            return view.beliefs(inputs, self.base)
        starts = range(0, len(inputs), rows)
        parts = [view.beliefs(inputs[start : start + rows], self.base) for start in starts]
        return np.concatenate(parts)

    def paths(self, seen: Seen) -> FloatArray:
        """The beliefs of N prompts in every state, [N, 2^K, K]."""
        states = range(1 << self.num_stages)
        return np.stack([self.beliefs(seen, state) for state in states], axis=1)

    def save(self, directory: str | Path) -> None:
        """Write the predictor's two files into a directory, both or neither."""
        content = save({name: np.ascontiguousarray(each) for name, each in self._arrays().items()})
        described = Description.of(self, hashlib.sha256(content).hexdigest())
        plain = to_document(described, Description.KIND, Description.VERSION)
        with staged(Path(directory), marker=DESCRIPTION, belongs=FILES.__contains__) as new:
            write_atomically(new / ARRAYS, content)
            write_json(new / DESCRIPTION, plain)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The predictor that `save` wrote, to the bit.

        Raises FormatError where it is newer, DataError where a file is missing, damaged, or about
        other features than this version has.
        """
        described = Description.read(Path(directory) / DESCRIPTION)
        layout = Layout(FeatureSet(described.groups), described.stages)
        arrays = _read_arrays(Path(directory) / ARRAYS, described.sha256)
        _check_shapes(arrays, layout, described.hidden, Path(directory) / ARRAYS)
        heads = tuple(
            Head(*(arrays[f"heads.{number}.{part.name}"] for part in fields(Head)))
            for number in range(layout.num_heads)
        )
        standards = Standards(arrays["centre"], arrays["scale"])
        return cls(layout, standards, arrays["base"], arrays["inner"], heads)

    def _arrays(self) -> dict[str, FloatArray]:
        """All arrays by the names that they have in the file."""
        arrays = {
            "centre": self.standards.centre,
            "scale": self.standards.scale,
            "base": self.base,
            "inner": self.inner,
        }
        for number, head in enumerate(self.heads):
            for part in fields(head):
                arrays[f"heads.{number}.{part.name}"] = getattr(head, part.name)
        return arrays

    @cached_property
    def _views(self) -> dict[int, _View]:
        return {}

    def _view(self, state: int) -> _View:
        if state not in self._views:
            self._views[state] = self._viewed(state)
        return self._views[state]

    def _viewed(self, state: int) -> _View:
        """The head of a state, its inputs that are 0 there left out and those that are 1 added."""
        mask, first = self.layout.masks[state], 1 + self.num_stages
        columns = np.flatnonzero(mask[first:])
        number = self.layout.head_of(state)
        head, used = self.heads[number], self.layout.used(number)
        place = np.where(np.arange(len(mask)) < first, 0, np.cumsum(mask) - mask[:first].sum())
        hidden = self.inner.shape[1]
        onto = np.zeros((len(used) + hidden, 1 + len(columns) + hidden))
        kept = np.flatnonzero(mask[used])
        onto[kept, place[used[kept]]] = 1.0
        onto[len(used) :, 1 + len(columns) :] = np.eye(hidden)
        return _View(
            columns,
            self.standards.take(columns),
            self.inner[first + columns],
            self.inner[:first][mask[:first]].sum(axis=0),
            Head(head.weights @ onto, onto.T @ head.spread @ onto, head.strength, head.curves),
        )


@dataclass(frozen=True)
class Description:
    """What predictor.json says: the features by group and by name, sizes, the arrays' SHA-256."""

    groups: tuple[str, ...]
    features: dict[str, tuple[str, ...]]
    stages: int
    hidden: int
    sha256: str

    KIND: ClassVar[str] = "quality predictor"
    VERSION: ClassVar[int] = 2

    @classmethod
    def of(cls, predictor: Predictor, sha256: str) -> Self:
        """That of a predictor."""
        features, hidden = predictor.feature_set, predictor.inner.shape[1]
        return cls(features.groups, _names(features), predictor.num_stages, hidden, sha256)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What a file says, checked against the features that there are now."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}.", fix=FIT_AGAIN) from None
        found = from_document(cls, plain, cls.KIND, cls.VERSION)
        known = set(found.groups) <= FEATURE_GROUPS.keys()
        if not known or found.features != _names(FeatureSet(found.groups)):
            raise DataError(
                f"{path}: the predictor reads features that this stepwell does not have.",
                fix=FIT_AGAIN,
            )
        if not 1 <= found.stages <= MOST_STAGES:
            raise DataError(f"{path}: stages is {found.stages}, expected 1 to {MOST_STAGES}.")
        return found


def _names(features: FeatureSet) -> dict[str, tuple[str, ...]]:
    return {
        "prompt": features.prompt_names,
        "answer": features.answer_names,
        "pair": features.pair_names,
    }


def _read_arrays(path: Path, sha256: str) -> dict[str, FloatArray]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            problem = f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}."
            raise DataError(problem, fix=FIT_AGAIN)
        return load(content)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}.", fix=FIT_AGAIN) from None


def _check_shapes(arrays: dict[str, FloatArray], layout: Layout, hidden: int, path: Path) -> None:
    """Raises DataError where an array is missing, or not of the shape that its sizes imply."""
    stages, features = layout.num_stages, layout.num_features
    expected: dict[str, tuple[int | None, ...]] = {
        "centre": (features,),
        "scale": (features,),
        "base": (stages,),
        "inner": (1 + stages + features, hidden),
    }
    for number in range(layout.num_heads):
        width = len(layout.used(number)) + hidden
        expected[f"heads.{number}.weights"] = stages, width
        expected[f"heads.{number}.spread"] = width, width
        expected[f"heads.{number}.strength"] = (stages,)
        expected[f"heads.{number}.curves"] = stages, None
    for name, shape in expected.items():
        found = arrays[name].shape if name in arrays else ()
        fits = len(found) == len(shape) and all(
            size in (None, other) for size, other in zip(shape, found, strict=True)
        )
        if not fits:
            raise DataError(
                f"{path}: {name} is {list(found)}, expected {list(shape)}.", fix=FIT_AGAIN
            )
