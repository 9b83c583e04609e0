"""What was fitted for a ladder: the folder that holds it, and for which stages it is good."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.cascade import fitted as module
from stepwell.cascade import fitted_files
from stepwell.cascade.costs import Costs, UnitCosts
from stepwell.cascade.fitted import MOST_POLICIES, QUALITY_MARGIN, Fitted
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.rule.exchange import Exchange
from stepwell.cascade.rule.stopping import fit
from stepwell.cascade.rule.tuning import LAMBDAS
from stepwell.errors import CascadeError, ConfigError, FormatError

FILES = {
    *("predictor.json", "predictor.safetensors", "costs.json", "calibration.safetensors"),
    "fit.json",
}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_what_comes_back_decides_the_same(world: Any, tmp_path: Path) -> None:
    world.fitted.save(tmp_path / "ladder.fitted")
    assert names_in(tmp_path / "ladder.fitted") == FILES
    again = Fitted.load(tmp_path / "ladder.fitted")
    assert (again.fingerprints, again.lam) == (world.fitted.fingerprints, world.fitted.lam)
    config, data = world.config(), world.data("test")
    for lam in (0.3, 1.0, 8.0):
        known, loaded = (each.rule(config, lam).dearer for each in (world.fitted, again))
        assert known == loaded
        before = known.run(data.paths(world.fitted.predictor))
        after = loaded.run(data.paths(again.predictor))
        np.testing.assert_array_equal(before.stages_run, after.stages_run)
        np.testing.assert_array_equal(before.stage_returned, after.stage_returned)
        assert len(set(before.stages_run.sum(axis=1))) > 1 or lam < 1


def test_auto_is_the_cheapest_lambda_that_keeps_the_largest_stages_quality(world: Any) -> None:
    config = world.config(**{"lambda": "auto"})
    data = world.data("predictor"), world.data("calibration")
    fitted = Fitted.fit(config, world.stages(), *data, world.costs())
    paths, prices = fitted.calibration, UnitCosts.of(world.costs(), config).anew
    floor = paths.mean(paths.good[:, -1]) - QUALITY_MARGIN

    def of(lam: float) -> tuple[float, float]:
        outcome = fit(paths, prices, lam).run(paths)
        return paths.mean(outcome.cost), paths.mean(outcome.good)

    chosen, cost = fitted.lambda_for(config), of(fitted.lambda_for(config))[0]
    assert of(chosen)[1] >= floor
    assert all(of(lam)[0] >= cost for lam in LAMBDAS if of(lam)[1] >= floor)
    assert any(of(lam)[0] < cost for lam in LAMBDAS)
    assert fitted.lambda_for(world.config(**{"lambda": 7.0})) == 7.0
    assert world.fitted.lambda_for(world.config(**{"lambda": 7.0})) == 7.0


def test_where_no_lambda_keeps_the_quality_the_largest_is_taken_and_said(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained where middle and large were always right, nothing tells them apart."""
    known, calibration = world.data("predictor"), world.data("calibration")
    misleading = replace(known, good=known.good * 0 + [0.0, 1.0, 1.0])
    truth = replace(calibration, good=calibration.good * 0 + [0.0, 0.0, 1.0])
    config = world.config(**{"lambda": "auto"})
    fitted = Fitted.fit(config, world.stages(), misleading, truth, world.costs())
    assert fitted.lam == LAMBDAS[-1]
    assert "no lambda up to 4096 keeps the quality above 0.99" in caplog.text
    caplog.clear()
    Fitted.fit(config, world.stages(), known, calibration, world.costs())
    assert not caplog.text


def test_where_no_stage_is_seen_to_be_better_lambda_is_one(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers that are right by lot: which lambda keeps the largest stage's quality is chance."""
    known, calibration = world.data("predictor"), world.data("calibration")
    config = world.config(**{"lambda": "auto"})

    def fitted(seed: int) -> Fitted:
        random = np.random.default_rng(seed)
        lots = [
            replace(data, good=(random.random(data.good.shape) < 0.3).astype(np.float64))
            for data in (known, calibration)
        ]
        return Fitted.fit(config, world.stages(), *lots, world.costs())

    found = [fitted(seed) for seed in range(4)]
    doubtful = [
        not Exchange.measure(each.calibration, each.steps(config)).measured for each in found
    ]
    assert any(doubtful)
    assert all(each.lam == 1.0 for each, doubt in zip(found, doubtful, strict=True) if doubt)
    assert caplog.text.count("the ladder is fitted for lambda 1.") == sum(doubtful)


def test_auto_is_always_the_largest_where_that_costs_less_and_is_as_good(world: Any) -> None:
    """At a lambda that runs one stage after the other, though the last alone is always right."""
    config, lam = world.config(**{"lambda": "auto"}), 4096.0
    calibration = world.fitted.calibration

    def auto(*labels: float) -> Fitted:
        paths = replace(calibration, good=calibration.good * 0 + labels)
        return replace(world.fitted, calibration=paths, lam=lam, certificate=None)

    largest = auto(0.0, 0.0, 1.0)
    found = largest.rule(config, lam).dearer.run(
        largest.calibration, largest.steps(config), largest.mean_steps(config)
    )
    assert found.cost.mean() > 1.0
    assert largest.lambda_for(config) == np.inf
    assert auto(1.0, 1.0, 0.0).lambda_for(config) == lam, "the largest is not as good"


def test_the_policy_follows_the_ladder_file(world: Any) -> None:
    """A file edited after the fit counts: its kappa, and the measure of its costs."""
    fitted, config = world.fitted, world.config()
    plain = fitted.rule(config, 1.0).dearer
    assert fitted.rule(config, 1.0).dearer is plain
    assert plain.costs[0] == pytest.approx((0.1, 0.3, 1.0))
    careful = world.config(risk={"kappa": 1.0})
    assert fitted.rule(careful, 1.0).dearer.kappa == 1.0
    counted = config.changed(costs="flops")
    assert fitted.rule(counted, 1.0).dearer.costs[0] == pytest.approx((0.05, 0.2, 1.0))
    elsewhere = config.changed(serving={"max_rows": 7})
    with pytest.raises(CascadeError, match="not 7"):
        fitted.rule(elsewhere, 1.0)
    dearer = replace(fitted, costs=world.costs(0.5, 0.7, 1.0))
    assert dearer.rule(config, 1.0).dearer.costs[0] == pytest.approx((0.5, 0.7, 1.0))


def test_any_number_of_lambdas_takes_bounded_memory(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", lambda *_, **__: object())
    fitted = replace(world.fitted)
    for lam in range(2 * MOST_POLICIES + 5):
        fitted.rule(world.config(), float(lam))
    assert len(fitted._rules) <= MOST_POLICIES


@pytest.mark.parametrize("part", ["predictor.json", "costs.json", "calibration.safetensors"])
def test_nothing_is_half_written(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A disk that fails at any file leaves nothing, or what was there before."""
    directory = tmp_path / "ladder.fitted"

    def failing(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    broken = {
        "predictor.json": (type(world.fitted.predictor), "save"),
        "costs.json": (Costs, "save"),
        "calibration.safetensors": (fitted_files, "write_atomically"),
    }[part]

    def save(fitted: Fitted) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(*broken, failing)
            with pytest.raises(OSError, match="No space"):
                fitted.save(directory)

    save(world.fitted)
    assert not directory.exists()
    world.fitted.save(directory)
    save(replace(world.fitted, lam=9.0, costs=world.costs(0.2, 0.3, 1.0)))
    assert names_in(directory) == FILES
    kept = Fitted.load(directory)
    assert (kept.lam, kept.costs) == (world.fitted.lam, world.fitted.costs)


def test_fit_json_comes_last(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which a kill came before it, and no cleaning up ran, counts as not fitted."""
    directory = tmp_path / "ladder.fitted"
    world.fitted.save(directory)
    order: list[str] = []
    real = Path.replace

    def noting(path: Path, target: Any) -> Any:
        if Path(target).parent == directory:
            order.append(Path(target).name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", noting)
    replace(world.fitted, lam=9.0, costs=world.costs(0.2, 0.3, 1.0)).save(directory)
    assert set(order) == FILES
    assert order[-1] == "fit.json"
    (directory / "fit.json").unlink()
    with pytest.raises(CascadeError, match="holds no fitted stopping rule"):
        Fitted.load(directory)


def flipped(data: bytes) -> bytes:
    """The same bytes but for one in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"[]"]
)
def test_a_damaged_file_is_a_typed_error_that_names_it(
    world: Any, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    world.fitted.save(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CascadeError) as caught:
        Fitted.load(tmp_path)
    assert str(path) in caught.value.problem
    assert "fit the ladder again" in caught.value.fix


def test_every_flip_in_fit_json_is_seen(world: Any, tmp_path: Path) -> None:
    """Lambda and the fingerprints of the stages are in it, which no other file could contradict."""
    replace(world.fitted, lam=1.5).save(tmp_path)
    path = tmp_path / "fit.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((CascadeError, FormatError), match=r"fit\.json"):
            Fitted.load(tmp_path)
    path.write_bytes(whole)
    assert Fitted.load(tmp_path).lam == 1.5


def test_a_file_that_is_missing_is_named(world: Any, tmp_path: Path) -> None:
    for name in FILES - {"fit.json"}:
        world.fitted.save(tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(CascadeError, match="is missing or damaged") as caught:
            Fitted.load(tmp_path / name)
        assert str(tmp_path / name / name) in caught.value.problem


def test_a_newer_format_is_refused(world: Any, tmp_path: Path) -> None:
    world.fitted.save(tmp_path)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    with pytest.raises(FormatError, match=r"fit\.json: .*format_version 3"):
        Fitted.load(tmp_path)


GOLDEN = {  # of version 1, which kept a predictor of one regression a stage
    "kind": "fitted ladder",
    "format_version": 1,
    "stages": ["weights of small", "weights of large"],
    "lam": 2.0,
    "files": {"predictor.json": "0", "costs.json": "1", "calibration.safetensors": "2"},
    "seal": "3",
}


def test_what_an_earlier_version_fitted_is_to_be_fitted_again(tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(json.dumps(GOLDEN))
    with pytest.raises(CascadeError, match="fitted by an earlier version") as caught:
        Fitted.load(tmp_path)
    assert "stepwell cascade fit" in caught.value.fix


def test_a_budget_is_met_by_two_rules_and_the_prompt_draws_which(world: Any) -> None:
    """In the mean over the prompts that nothing was fitted on, and always the same for a prompt."""
    for budget in (0.35, 0.5, 0.7):
        cascade = world.cascade(**{"lambda": {"budget": budget}})
        rule = cascade.rule()
        assert 0 < rule.share < 1
        data = world.data("calibration")
        policies = cascade.policies([f"question {number}" for number in range(4000)])
        dearer = np.mean([policy is rule.dearer for policy in policies])
        assert dearer == pytest.approx(rule.share, abs=0.03)
        costs = [
            data.paths(world.fitted.predictor).mean(policy.run(world.fitted.calibration).cost)
            for policy in (rule.cheaper, rule.dearer)
        ]
        assert costs[0] + rule.share * (costs[1] - costs[0]) == pytest.approx(budget, abs=1e-6)
        prompts = world.prompts()
        assert cascade.policies(prompts) == cascade.policies(prompts[::-1])[::-1]
        assert cascade.policies(prompts) != cascade.policies(prompts, seed=1)
    with pytest.raises(CascadeError, match=r"the cheapest policy costs 0\.1"):
        world.cascade(**{"lambda": {"budget": 0.05}}).rule()


def test_other_weights_are_refused(world: Any, scripted: Callable[..., Any]) -> None:
    stages = world.stages()
    config = world.config()
    Cascade(config, stages, world.fitted)
    renamed = [*stages[:2], scripted("another", world.scripts[2])]
    with pytest.raises(CascadeError, match="fitted for other weights"):
        Cascade(config, renamed, world.fitted)
    with pytest.raises(CascadeError, match="fitted for other weights"):
        Cascade(config, [stages[1], stages[0], stages[2]], world.fitted)


def test_two_stages_with_the_same_weights_are_refused(world: Any) -> None:
    stages = world.stages()
    with pytest.raises(CascadeError, match="the same weights"):
        Cascade(world.config(), [stages[0], stages[0], stages[2]], world.fitted)


def test_parts_of_different_ladders_do_not_go_together(world: Any) -> None:
    with pytest.raises(CascadeError, match="3, 3, 2, 3 stages"):
        replace(world.fitted, costs=Costs(world.costs().stages[:2]))


def test_loading_a_cascade_says_what_is_missing(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "ladder.yaml"
    with pytest.raises(ConfigError, match=r"ladder\.yaml"):
        Cascade.load(file)
    world.config().write(file)
    with pytest.raises(CascadeError, match=r"ladder\.fitted holds no fitted stopping rule"):
        Cascade.load(file)
    world.fitted.save(tmp_path / "ladder.fitted")
    with pytest.raises(CascadeError, match=r"Stage 'small' has no model in .*models/small"):
        Cascade.load(file)
