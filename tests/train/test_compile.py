"""Compiled training is the same training, and a compiled run that is resumed has the same bits."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepwell.errors import TrainingError
from stepwell.model import attention
from stepwell.model.forward import ForwardPass
from stepwell.train.config import LoraConfig, TrainerConfig
from stepwell.train.trainer import Trainer
from tests.support.lengths import FAMILIES, Sums

TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns of itself
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++"),
]


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch.compiler.reset()


@pytest.fixture
def config(small) -> TrainerConfig:
    return small(task=Sums(), model=FAMILIES["rotary"], batch_size=12)


def computed(config: TrainerConfig) -> dict[str, Tensor]:
    """Loss and gradients of three batches, whose widths and labels are not as many."""
    trainer = Trainer(config)
    batches = [trainer.batch(step) for step in range(3)]
    assert len({batch.ids.shape[1] for batch in batches}) > 1
    found = {}
    for number, batch in enumerate(batches):
        found[f"{number} loss"] = trainer.gradients(batch)
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                found[f"{number} {name}"] = parameter.grad.clone()
    return found


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest number of its tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in expected.items()
    )


def cases():
    """Every family, packed and not, by kernel (0) and by pattern (1000); one of them in a hurry."""
    for case in itertools.product(FAMILIES, (False, True), (0, 1000)):
        yield pytest.param(*case, marks=() if case == ("rotary", False, 1000) else pytest.mark.slow)


@pytest.mark.parametrize(("family", "pack", "short"), list(cases()))
def test_compiled_losses_and_gradients_are_those_of_plain_steps(
    config: TrainerConfig, family: str, pack: bool, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SHORT", short)
    config = config.changed(model=FAMILIES[family], pack=pack)
    assert distance(computed(config.changed(compile=True)), computed(config)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("way", ["gradient_checkpointing", "gradient_accumulation", "lora"])
def test_what_else_a_step_does_goes_with_compiling(config: TrainerConfig, way: str) -> None:
    if way == "lora":
        base = Trainer(config.changed(run_name="base")).train()
        changed = TrainerConfig(
            task=config.task, init_from=base.directory, lora=LoraConfig(rank=2),
            batch_size=config.batch_size, runs=config.runs, device="cpu", threads=1,
        )  # fmt: skip
    else:
        changed = config.changed(**{way: 3 if way == "gradient_accumulation" else True})
    assert distance(computed(changed.changed(compile=True)), computed(changed)) < TOLERANCE


@pytest.mark.slow
def test_a_compiled_pattern_that_sees_what_comes_is_seen(
    config: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = computed(config)
    compared = ForwardPass._compared
    monkeypatch.setattr(
        ForwardPass, "_compared", lambda self, window: torch.ones_like(compared(self, window))
    )
    assert distance(computed(config.changed(compile=True)), plain) > 100 * TOLERANCE


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def stopped_after(step: int):
    """Asks a run to stop after so many steps."""
    asked = itertools.count()
    return lambda: next(asked) == step


def test_a_compiled_run_that_is_resumed_has_the_same_bits(config: TrainerConfig) -> None:
    config = config.changed(compile=True, precision="bfloat16", evaluate_every=0, samples=0)
    whole = Trainer(config)
    whole.train()
    torch.compiler.reset()
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).train(fresh=True, stop_requested=stopped_after(5))
    torch.compiler.reset()  # as in a new process
    resumed = Trainer(config)
    resumed.train()
    found, expected = weights(resumed), weights(whole)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_compiler_sees_step_0_first_in_a_run_that_is_resumed(
    config: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).train(stop_requested=stopped_after(5))
    config = config.changed(compile=True)
    trainer = Trainer(config)
    before, seen = weights(trainer), []
    gradients = trainer.gradients
    monkeypatch.setattr(
        trainer, "gradients", lambda batch: (seen.append(batch.ids), gradients(batch))[1]
    )
    drawn = torch.random.get_rng_state()
    trainer.compile()
    assert torch.equal(seen[0], trainer.batch(0).ids)
    assert all(torch.equal(weights(trainer)[name], value) for name, value in before.items())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_without_a_compiler_the_error_says_what_to_install(
    config: TrainerConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(inductor.cpp, "cxx", ("there-is-none",))
    with pytest.raises(TrainingError, match=r"No working C.. compiler") as caught:
        Trainer(config.changed(compile=True)).train()
    assert "g++" in str(caught.value.fix)
