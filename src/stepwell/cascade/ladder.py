"""The ladder file: which stages there are, how to make them, and how to decide between them.

Owns the schema of ladder.yaml and where its parts lie on disk. What was fitted is kept beside it,
in a folder named after it: `ladder.yaml` and `ladder.fitted/`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from stepwell.config import Config, read_yaml, write_yaml
from stepwell.device import WeightFormat
from stepwell.errors import ConfigError, FormatError
from stepwell.generate.request import SamplingParams

FORMAT_VERSION: Final = 1


class Section(Config):
    """A part of the file. A key that nothing follows, such as a bare `policy:`, says nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_bare_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}


class StageConfig(Section):
    """One stage: a model directory, and optionally what to train to get it."""

    name: str = Field(min_length=1)
    model: str = Field(min_length=1, description="model directory, relative to the ladder file")
    weights: WeightFormat | None = Field(
        None, description="int8, int4: keep its matrices in 8 or 4 bits"
    )
    train: dict[str, Any] | None = Field(None, description="how to make it: task, preset, steps")


class RiskConfig(Section):
    """How much doubt counts: kappa standard deviations of the gain, 0 for none."""

    kappa: float = 0.0


class PolicyConfig(Section):
    """The price of a failure. `auto` keeps the largest stage's quality within a point."""

    model_config = ConfigDict(populate_by_name=True)

    lam: float | Literal["auto"] = Field("auto", alias="lambda")
    mode: Literal["anew"] = Field("anew", description="every stage answers the prompt anew")
    risk: RiskConfig = RiskConfig()

    @field_validator("lam", mode="wrap")
    @classmethod
    def _auto_or_price(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        with suppress(ValidationError):
            lam = check(value)
            if lam == "auto" or lam >= 0:
                return lam
        raise ValueError("expected auto, or a number from 0")


class ServingConfig(Section):
    """How many rows a stage runs at once; costs are measured at this batch size."""

    max_rows: int = Field(64, ge=1, le=65_536)


class LadderConfig(Section):
    """A ladder of stages, smallest first."""

    format_version: int = Field(FORMAT_VERSION, ge=1)
    stages: tuple[StageConfig, ...] = Field(min_length=2)
    policy: PolicyConfig = PolicyConfig()
    costs: Literal["measured", "flops"] = "measured"
    serving: ServingConfig = ServingConfig()
    sampling: dict[str, Any] = Field(default_factory=dict, description="fields of SamplingParams")

    @field_validator("sampling")
    @classmethod
    def _can_be_sampled(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        try:
            check_sampling(sampling)
        except ConfigError as error:
            raise ValueError(error.problem) from None
        return sampling

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages share a name: {', '.join(names)}")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The ladder that a file describes.

        Raises ConfigError that names file and field, FormatError where a newer version wrote it.
        """
        values = read_yaml(path)
        version = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatError(
                f"{path} has format_version {version}, this stepwell reads up to {FORMAT_VERSION}.",
                fix="update stepwell.",
            )
        return cls.parse(values, where=str(path))

    def write(self, path: str | Path) -> None:
        """Save the ladder as YAML, without the fields that have their defaults."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        write_yaml(path, {"format_version": FORMAT_VERSION, **plain})


def check_sampling(sampling: dict[str, Any]) -> None:
    """Nothing; raises ConfigError where a cascade, one answer to a prompt, cannot sample so."""
    params = SamplingParams(**sampling)
    if params.n != 1:
        raise ConfigError(
            f"A cascade gives one answer to a prompt, n is {params.n}.",
            fix="ask once for each answer, each time with another seed.",
        )


def fitted_directory(ladder_file: str | Path) -> Path:
    """Where what was fitted for a ladder file lies."""
    return Path(ladder_file).with_suffix(".fitted")
