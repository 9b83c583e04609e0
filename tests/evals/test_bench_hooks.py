"""Hooks that are timed: the same work everywhere, told as data, and figures only where it is."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from stepwell.errors import PeerError
from stepwell.evals.bench.bars import BARS
from stepwell.evals.bench.contest import Bench
from stepwell.evals.bench.figures import Bar, Figures, Row
from stepwell.evals.bench.hook import Hook, interventions_of
from stepwell.evals.bench.hooks import RECORDING, ROWS, TOLERANCE, Recorded, hook_works
from stepwell.evals.bench.install import RECIPES
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.peer import KINDS
from stepwell.evals.bench.peers.changes import HEADS, Change, change_of
from stepwell.evals.bench.peers.conversation import Answer, Setup, random_prompts
from stepwell.evals.bench.peers.hooking import HookingPlayer, one_word_tokenizer
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.sizes import llama_shape, make_model
from stepwell.evals.bench.turns import Contestant

SHAPE = llama_shape(32, 64, 3, (2, 1), 96).resized(context_length=64)
PLAN = BenchPlan(repetitions=2, prompt_tokens=12, new_tokens=8, pause_s=0.0)
KINDS_OF_HOOK = ("head zeroed", "head scaled", "steered", "prompt patched")
ANSWERS = """#!{python}
import json, sys
say = lambda plain: print(json.dumps(plain), flush=True)
setup, known = json.loads(input()), json.load(open({logits!r}))
assert setup["weights"] == "fp32", setup
say({{"version": "0.1"}})
for line in sys.stdin:
    asked = json.loads(line)
    kind = next(iter(asked["hook"] or ["none"]))
    if kind == {fails_at!r}:
        sys.exit("no such hook")
    if asked["do"] == "logits":
        say({{"logits": known[kind]}})
    else:
        ids = [[7] * asked["new"]] * asked["rows"]
        say({{"prefill_s": 1.0, "decode_s": 2.0 if kind == "record" else 1.0, "ids": ids}})
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(SHAPE, directory)
    return Subject("tiny", directory)


@pytest.fixture(scope="module")
def ours(tiny: Subject) -> Ours:
    return Ours(tiny.directory, "fp32")


@pytest.fixture
def answering(tmp_path: Path, ours: Ours) -> Callable[..., Path]:
    """Makes a "Python" whose logits are ours but for `away`, and that dies at one kind of hook."""

    def make(away: float = 0.0, fails_at: str = "") -> Path:
        hooks = [Hook(each) for each in interventions_of(ours.model, PLAN).values()]
        logits = {
            next(iter(hook.plain or ())): [
                value + away for value in ours.logits(PLAN.prompt_tokens, 0, hook)
            ]
            for hook in hooks
        }
        file, path = tmp_path / "logits.json", tmp_path / "python"
        file.write_text(json.dumps(logits))
        path.write_text(ANSWERS.format(python=sys.executable, logits=str(file), fails_at=fails_at))
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return path

    return make


def found(tiny: Subject, python: Path) -> dict[tuple[str, str], Row]:
    """The rows of `hooks` beside such a peer, by case and opponent."""
    bench = Bench(PLAN, ("hooks",), {"nnsight": python})
    return {(row.case, row.against): row for row in bench.rows(tiny)}


@contextmanager
def changed(model: transformers.LlamaForCausalLM, change: Change) -> Iterator[None]:
    """While this lasts transformers' model runs under the change, by torch's own hooks."""
    layer = model.model.layers[change.layer]
    first = iter([True])

    def before(_module: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        heads = given[0].clone()
        if next(first, False) or not change.prompt_only:
            change.apply(heads.view(*heads.shape[:2], SHAPE.num_heads, -1))
        return (heads,)

    def after(_module: torch.nn.Module, _given: object, left: torch.Tensor) -> torch.Tensor:
        residual = left.clone()
        change.apply(residual)
        return residual

    handle = (
        layer.self_attn.o_proj.register_forward_pre_hook(before)
        if change.point == HEADS
        else layer.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS_OF_HOOK)
def test_what_a_peer_is_told_is_what_we_do(tiny: Subject, ours: Ours, kind: str) -> None:
    hook = Hook(interventions_of(ours.model, PLAN)[kind])
    told = json.loads(json.dumps(hook.plain))
    model = transformers.LlamaForCausalLM.from_pretrained(tiny.directory, dtype=torch.float32)
    ids_BT = torch.tensor(random_prompts(3, [PLAN.prompt_tokens], SHAPE.vocab_size))
    with torch.no_grad():
        plain_V = model(ids_BT).logits[0, -1]
        with changed(model, change_of(told)):
            changed_V = model(ids_BT).logits[0, -1]
        with changed(model, change_of(told)):
            options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
            mask = torch.ones_like(ids_BT)
            answer = model.generate(ids_BT, attention_mask=mask, pad_token_id=0, **options)
    ours_V = torch.tensor(ours.logits(PLAN.prompt_tokens, 3, hook))
    torch.testing.assert_close(ours_V, changed_V, rtol=0, atol=1e-5)  # float32
    assert (ours_V - plain_V).abs().max() > 2 * TOLERANCE, "no hook at all would be noticed"
    told_ids = ours.hooked(1, PLAN.prompt_tokens, 8, 3, hook).ids
    assert told_ids == answer[:, PLAN.prompt_tokens :].tolist()


def test_a_patch_holds_for_the_prompt_and_nothing_else_does() -> None:
    value = torch.ones(1, 4, 2, 3)
    put = {"point": HEADS, "layer": 1, "positions": [1, 2], "heads": [1]}
    change = change_of({"patch": {**put, "values": [[[5.0] * 3], [[6.0] * 3]]}})
    change.apply(value)
    assert change.prompt_only
    assert value[0, :, 1, 0].tolist() == [1, 5, 6, 1]
    assert bool((value[:, :, 0] == 1).all())
    assert not change_of({"zero_heads": {"heads": {"1": [0]}}}).prompt_only


def test_figures_are_of_whole_answers_that_are_checked(tiny, answering) -> None:
    rows = found(tiny, answering())
    cases = [case for case, against in rows if against == "nnsight"]
    assert cases == [*KINDS_OF_HOOK, RECORDING]
    for kind in KINDS_OF_HOOK:
        row = rows[kind, "nnsight"]
        assert row.other == Figures((8 / 2.0,) * 2)
        assert row.ratio is not None
        assert row.note.startswith("logits within 0e+00, ")
        assert row.note.endswith(" of 24 tokens equal")
    recorded = rows[RECORDING, "nnsight"]
    assert recorded.other == Figures((ROWS * 7 / 2.0,) * 2)
    assert recorded.note == "0.50 of its speed without"
    assert rows["idle", "no hooks"].ratio is not None
    assert rows[RECORDING, "no recording"].ratio is not None


def test_a_peer_that_does_other_work_has_no_figures(tiny, answering) -> None:
    rows = found(tiny, answering(away=3 * TOLERANCE))
    for kind in KINDS_OF_HOOK:
        row = rows[kind, "nnsight"]
        assert "nnsight does other work" in row.problem
        assert "0.003 away, expected at most 0.001" in row.problem
        assert (row.other, row.ratio, row.note) == (None, None, "")
        assert row.ours is not None
    assert rows[RECORDING, "nnsight"].ratio is not None, "nothing is changed there"


def test_rounding_is_no_other_work(tiny, answering) -> None:
    rows = found(tiny, answering(away=TOLERANCE / 2))
    assert rows["steered", "nnsight"].note.startswith("logits within 5e-04")


def test_a_peer_that_fails_is_a_row_that_says_why(tiny, answering) -> None:
    rows = found(tiny, answering(fails_at="steer"))
    assert rows["head scaled", "nnsight"].ratio is not None
    assert rows["steered", "nnsight"].problem == "nnsight ended: no such hook."
    assert rows["steered", "nnsight"].ours is not None
    assert rows["idle", "no hooks"].ratio is not None, "we go on"


def test_tokens_that_differ_are_counted(ours: Ours) -> None:
    [zeroed, *_] = hook_works(ours, PLAN)
    peer = Parrot(ours)
    zeroed.figure(ours, 0)
    zeroed.figure(peer, 0)
    assert zeroed.note("parrot").endswith("8 of 8 tokens equal")
    peer.wrong_from = 5
    zeroed.figure(ours, 1)
    zeroed.figure(peer, 1)
    assert zeroed.note("parrot").endswith("13 of 16 tokens equal")
    assert zeroed.note("stepwell") == "", "nobody is held against himself"


def test_logits_of_another_vocabulary_are_refused(ours: Ours) -> None:
    [zeroed, *_] = hook_works(ours, PLAN)
    peer = Parrot(ours)
    peer.logits = lambda *_: [0.0]  # type: ignore[method-assign, assignment]
    with pytest.raises(PeerError, match="1 logits, expected 96"):
        zeroed.figure(peer, 0)
    peer.logits = lambda *_: [float("nan")] * 96  # type: ignore[method-assign, assignment]
    with pytest.raises(PeerError, match="nan away"):
        zeroed.figure(peer, 0)


class Parrot(Contestant):
    """Says what we say, but for the tokens from one on; half as fast while it records."""

    name = "parrot"

    def __init__(self, ours: Ours) -> None:
        self.ours, self.wrong_from = ours, 8

    def hooked(self, rows: int, prompt: int, new: int, seed: int, hook: Hook) -> Answer:
        ids = self.ours.hooked(rows, prompt, new, seed, hook).ids
        seconds = 1.0 if hook.layer is None else 2.0 + seed
        kept = [[*row[: self.wrong_from], *[0] * (new - self.wrong_from)] for row in ids]
        return Answer(0.0, seconds, kept)

    def logits(self, prompt: int, seed: int, hook: Hook) -> list[float]:
        return self.ours.logits(prompt, seed, hook)


def test_what_recording_leaves_of_a_speed_is_a_median_without_the_first_round(ours: Ours) -> None:
    recorded, peer = Recorded(Hook(layer=1), PLAN), Parrot(ours)
    assert recorded.note("parrot") == ""
    rates = [recorded.figure(peer, seed) for seed in range(4)]
    assert rates == [ROWS * 7 / seconds for seconds in (2.0, 3.0, 4.0, 5.0)]
    assert recorded.note("parrot") == "0.25 of its speed without"


class Stub(HookingPlayer):
    """Answers at once; leaves out the last step of what it has to do where it is told to."""

    forgets = 0

    def generate(self, ids_BT: torch.Tensor, new: int, change: Change | None) -> torch.Tensor:
        if change is not None:
            for _ in range((1 if change.prompt_only else new) - self.forgets):
                change.apply(torch.zeros(len(ids_BT), 3, 2, 4))
        return torch.cat([ids_BT, torch.full((len(ids_BT), new), 5)], dim=1)

    def record(self, ids_BT: torch.Tensor, new: int, layer: int) -> list[torch.Tensor]:
        del layer
        rows, length = ids_BT.shape
        lengths = range(length, length + new - self.forgets)
        return [torch.zeros(rows, 2, 1, keys) for keys in lengths]


@pytest.mark.parametrize("kind", [None, *KINDS_OF_HOOK[:2]])
def test_a_peer_has_to_change_and_record_every_step(ours: Ours, kind: str | None) -> None:
    hook = {"record": 1}
    if kind is not None:
        hook = dict(Hook(interventions_of(ours.model, PLAN)[kind]).plain or {})
    stub = Stub(Setup("model", "fp32", torch.get_num_threads(), 96, 20))
    assert stub.hooked(2, 6, 3, 0, None).ids == [[5, 5, 5]] * 2
    assert stub.hooked(2, 6, 3, 0, hook).ids == ([] if kind is None else [[5, 5, 5]] * 2)
    stub.forgets = 1
    with pytest.raises(AssertionError, match=r"recorded|changed 2 steps, expected 3"):
        stub.hooked(2, 6, 3, 0, hook)


def test_a_tokenizer_of_one_word_can_be_loaded_again() -> None:
    with one_word_tokenizer() as tokenizer:
        again = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    assert not Path(tokenizer.name_or_path).exists()
    assert (again.bos_token_id, again.pad_token_id, len(again)) == (0, 0, 1)


def test_bars_name_cases_that_there_are(tiny, ours: Ours) -> None:
    rows = list(Bench(PLAN, ("hooks",), {}).rows(tiny))
    alone = {(row.case, row.against) for row in rows}
    assert {("head zeroed", ""), ("idle", "no hooks"), (RECORDING, "no recording")} <= alone
    cases = {case for case, _ in alone}
    bars = {place: bar for place, bar in BARS.items() if place[0] == "hooks"}
    assert {case for _, case, _, _ in bars} <= cases
    for peer in ("nnsight", "transformer-lens"):
        assert bars["hooks", "head zeroed", "14m", peer] == Bar(3)
        assert "hooks" in KINDS[peer].questions
    assert bars["hooks", RECORDING, "14m", "no recording"] == Bar(0.7)
    assert bars["hooks", "idle", "14m", "no hooks"] == Bar(0.98)


@pytest.mark.parametrize("name", ["nnsight", "transformer-lens", "transformers"])
def test_a_peer_that_stands_on_torch_gets_ours(name: str) -> None:
    asked: list[tuple[str, ...]] = []
    RECIPES[name](lambda *words: asked.append(words))
    [(install, pinned, requirement)] = asked
    assert (install, pinned) == ("install", f"torch=={torch.__version__.partition('+')[0]}")
    assert requirement.startswith((f"{name}==", f"{name}>="))
    assert set(RECIPES) == set(KINDS)
