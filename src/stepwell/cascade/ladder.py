"""The ladder file: which stages there are, how to make them, and how to decide between them.

Owns the schema of ladder.yaml and where its parts lie on disk. What was collected and fitted is
kept beside it, in folders named after it: `ladder.yaml`, `ladder.collected/`, `ladder.fitted/`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
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
UNITS: Final = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

Engine = Literal["stepwell", "transformers"]


class Section(Config):
    """A part of the file. A key that nothing follows, such as a bare `policy:`, says nothing."""

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_bare_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}


def _bytes(value: Any) -> Any:
    """A size such as 2GiB as a number; anything else is left for the check that follows."""
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]iB)", value) if isinstance(value, str) else None
    return value if found is None else int(float(found[1]) * UNITS[found[2]])


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Price(Section):
    """What a stage's tokens cost, in any currency, a million of them."""

    prompt: float = Field(0.0, ge=0)
    completion: float = Field(0.0, ge=0)


class StageConfig(Section):
    """One stage: a model directory, or a server; optionally what to train, or to launch, first."""

    name: str = Field(min_length=1)
    model: str | None = Field(
        None,
        min_length=1,
        description="model directory, relative to the ladder file; of a server, the model's name",
    )
    engine: Engine = Field("stepwell", description="what runs a model directory")
    weights: WeightFormat | None = Field(
        None, description="int8, int4: keep its matrices in 8 or 4 bits"
    )
    train: dict[str, Any] | None = Field(None, description="how to make it: task, preset, steps")
    server: str | None = Field(None, pattern=r"^https?://", description="an OpenAI-compatible API")
    launch: str | None = Field(None, min_length=1, description="command that starts the server")
    api_key_env: str | None = Field(None, description="environment variable with the server's key")
    tokenizer: str | None = Field(None, description="of a server's model: its tokenizer's folder")
    parameters: float | None = Field(None, gt=0, description="of a server's model, for FLOPs")
    price: Price | None = Field(None, description="a million tokens, for costs: price")
    timeout_s: float | None = Field(None, gt=0, description="longest wait for a batch of answers")

    @model_validator(mode="after")
    def _is_a_model_or_a_server(self) -> Self:
        if self.server is None:
            if self.model is None:
                raise ValueError(f"stage {self.name!r} has neither model nor server")
            for field in ("launch", "api_key_env", "tokenizer", "parameters"):
                if getattr(self, field) is not None:
                    raise ValueError(f"stage {self.name!r}: {field} is for a server")
        else:
            for field in ("train", "weights"):
                if getattr(self, field) is not None:
                    raise ValueError(f"stage {self.name!r}: {field} is not for a server")
        return self


class PredictorConfig(Section):
    """The network that foretells which stage is right: its width, and what it may look at."""

    hidden: int = Field(64, ge=0, le=4096, description="0: logistic regression")
    features: Literal["all"] | tuple[str, ...] = Field("all", description="groups of features")


class RiskConfig(Section):
    """How much doubt counts: kappa standard deviations of the gain, 0 for none."""

    kappa: float = 0.0


class Budget(Section):
    """A mean cost a prompt that is met, in units of the mean full answer of the largest stage."""

    budget: float = Field(gt=0)


class CertificateConfig(Section):
    """Excess loss over the largest stage is at most epsilon, with probability 1 - delta."""

    epsilon: Share = 0.02
    delta: Share = 0.05


class Certified(Section):
    """The cheapest rule that has such a certificate; the largest stage where none has."""

    certificate: CertificateConfig


class PolicyConfig(Section):
    """The price of a failure. `auto` is the cheapest certified one, where there is a certificate;

    else the cheapest one that keeps the largest stage's quality within a point.
    """

    lam: float | Literal["auto"] | Budget | Certified = Field("auto", alias="lambda")
    mode: Literal["lossless", "anew"] = Field(
        "lossless", description="lossless: a stage verifies the answer before; anew: it does not"
    )
    risk: RiskConfig = RiskConfig()

    @field_validator("lam", mode="wrap")
    @classmethod
    def _auto_or_price(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, dict):
            kind = Certified if "certificate" in value else Budget
            return kind.model_validate(value)
        with suppress(ValidationError):
            lam = check(value)
            if not isinstance(lam, float) or lam >= 0:
                return lam
        raise ValueError(
            "expected auto, a number from 0, {budget: ...} or {certificate: {epsilon, delta}}"
        )


class QuestionsConfig(Section):
    """What the stages are asked to fit the rule: examples of a task, a file, or a public data set.

    Where nothing is said, the task that the stages were trained on. rollouts: answers a stage and
    prompt, where sampling; a label is then the share that is right.
    """

    task: dict[str, Any] | str | None = None
    file: str | None = Field(None, description='lines {"prompt": ..., "answer": ...}')
    dataset: Literal["mmlu"] | None = Field(
        None, description="read where it lies in the cache of the datasets library"
    )
    checker: Literal["exact", "agreement"] = Field(
        "exact", description="agreement: right is what the largest stage says"
    )
    rollouts: int = Field(1, ge=1, le=64)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(each is not None for each in (self.task, self.file, self.dataset)) > 1:
            raise ValueError("give a task, a file or a dataset, one of them")
        return self


class ServingConfig(Section):
    """How many rows a stage runs at once, at which costs are measured; what is kept, how long.

    kv_cache_bytes bounds keys and values kept for prompts that may go on. deadline_s: seconds after
    which a prompt has its answer, from the stages that gave one; None waits for all.
    """

    max_rows: int = Field(64, ge=1, le=65_536)
    queue: int = Field(256, ge=1)
    kv_cache_bytes: Bytes = 2**30
    deadline_s: float | None = Field(None, gt=0)


class LadderConfig(Section):
    """A ladder of stages, smallest first."""

    format_version: int = Field(FORMAT_VERSION, ge=1)
    stages: tuple[StageConfig, ...] = Field(min_length=2)
    predictor: PredictorConfig = PredictorConfig()
    policy: PolicyConfig = PolicyConfig()
    costs: Literal["measured", "flops", "price"] = "measured"
    questions: QuestionsConfig = QuestionsConfig()
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
    def _stages_fit_together(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages share a name: {', '.join(names)}")
        priced = [stage.price is not None for stage in self.stages]
        if self.costs == "price" and not all(priced):
            raise ValueError(f"costs is price, but stage {names[priced.index(False)]!r} has none")
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


def collected_directory(ladder_file: str | Path) -> Path:
    """Where the stages' answers to its questions lie."""
    return Path(ladder_file).with_suffix(".collected")
