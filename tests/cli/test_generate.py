"""Generating by command line: the same answers as the library gives, in the form asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import stepwell as sw
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import SAMPLING_PRESETS, SamplingParams
from stepwell.generate.text import TextGenerator

PROMPT = "abcd>"


@pytest.fixture(scope="module")
def generator(trained: Path) -> TextGenerator:
    return TextGenerator.load(trained, device="cpu")


def test_it_prints_the_librarys_answer_and_nothing_else(run, trained, generator) -> None:
    ended = run("generate", trained, PROMPT, "--temperature", 0)
    assert ended.code == 0
    assert ended.out == generator.generate(PROMPT, temperature=0).text + "\n"
    assert "3 tokens in" in ended.err


def test_every_flag_reaches_the_sampling_parameters(run, trained) -> None:
    sampling = run("generate", trained, PROMPT, "--json").json["sampling"]
    assert sampling == SamplingParams(max_new_tokens=3).plain()
    changed = run(
        *("generate", trained, PROMPT, "--json", "-n", 2, "--temperature", 0.8, "--top-p", 0.95),
        *("--seed", 7, "--stop", "a", "--stop", "b", "--banned_tokens", 3, "--no-ignore-eos"),
        *("--presence-penalty", "-0.5"),
    ).json["sampling"]
    expected = SamplingParams(
        max_new_tokens=3, n=2, temperature=0.8, top_p=0.95, seed=7, stop=("a", "b"),
        banned_tokens=(3,), presence_penalty=-0.5,
    )  # fmt: skip
    assert changed == expected.plain()


def test_a_preset_counts_before_the_model_and_after_flags(run, trained) -> None:
    words = ("generate", trained, PROMPT, "--json", "--preset", "chat")
    sampling = run(*words, "--top-p", 0.5).json["sampling"]
    assert sampling["temperature"] == SAMPLING_PRESETS["chat"].temperature
    assert sampling["top_p"] == 0.5
    assert sampling["max_new_tokens"] == 3  # the model's own: the preset does not say


def test_several_answers_are_numbered_and_the_same_as_in_json(run, trained) -> None:
    words = ("generate", trained, PROMPT, "-n", 3, "--seed", 5)
    answers = [answer["text"] for answer in run(*words, "--json").json["answers"]]
    shown = run(*words).out.splitlines()
    assert shown[::2] == ["answer 1", "answer 2", "answer 3"]
    assert shown[1::2] == answers
    assert len(set(answers)) > 1


def test_a_stream_is_the_answer_in_pieces(run, trained) -> None:
    words = ("generate", trained, PROMPT, "--seed", 3)
    assert run(*words, "--stream").out == run(*words).out
    assert run(*words, "--stream", "--echo").out == PROMPT + run(*words).out
    lines = [json.loads(line) for line in run(*words, "--stream", "--json").out.splitlines()]
    [answer] = run(*words, "--json").json["answers"]
    assert "".join(line["text"] for line in lines) == answer["text"]
    assert lines[-1]["answer"] == answer


@pytest.mark.parametrize("flags", [(), ("--stream",)], ids=str)
def test_a_draft_moves_no_token(run, trained, flags, monkeypatch) -> None:
    submit, drafts = InferenceEngine.submit, []

    def noting(self, request, *, draft=None, **how):  # type: ignore[no-untyped-def]
        drafts.append(draft)
        return submit(self, request, draft=draft, **how)

    monkeypatch.setattr(InferenceEngine, "submit", noting)
    words = ("generate", trained, PROMPT, "--seed", 3, *flags)
    plain = run(*words).out
    assert run(*words, "--draft", trained).out == plain
    assert run(*words, "--draft", "lookup").out == plain
    assert [type(draft).__name__ for draft in drafts] == ["NoneType", "Transformer", "str"]


def test_a_file_of_answers_is_the_same_with_drafts(run, trained, tmp_path) -> None:
    prompts, found = tmp_path / "prompts.jsonl", []
    prompts.write_text('{"prompt": "abcd>"}\n{"prompt": "efgh>"}\n')
    for draft in ((), ("--draft", trained), ("--draft", "lookup")):
        target = tmp_path / f"answers {len(found)}.jsonl"
        files = ("--input", prompts, "--output", target)
        assert run("generate", trained, *files, "--seed", 3, *draft).code == 0
        found.append(target.read_text())
    assert found[0] == found[1] == found[2]


def test_a_file_of_answers_is_the_same_from_several_processes(run, trained, tmp_path) -> None:
    prompts, found = tmp_path / "prompts.jsonl", []
    prompts.write_text("".join(f'{{"prompt": "{text}>"}}\n' for text in ("abcd", "efgh") * 40))
    for devices in ((), ("--devices", "cpu,cpu")):
        target = tmp_path / f"answers {len(found)}.jsonl"
        words = ("generate", trained, "--input", prompts, "--output", target, "--seed", 3)
        assert run(*words, *devices).code == 0
        found.append(target.read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((PROMPT, "--devices", "cpu,cpu"), "--devices needs --input"),
        (("--devices", "cpu,cpu", "--draft", "anything"), "cannot share a draft model"),
        (("--devices", "cpu,abacus"), "'abacus' is no device"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(run, trained, tmp_path, words, said) -> None:
    prompts, target = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "abcd>"}\n')
    files = () if PROMPT in words else ("--input", prompts, "--output", target)
    ended = run("generate", trained, *words, *files)
    assert ended.code in (1, 2)
    assert said in ended.err


def test_a_draft_model_that_is_not_there_is_an_error(run, trained, tmp_path) -> None:
    ended = run("generate", trained, PROMPT, "--draft", tmp_path / "nowhere")
    assert ended.code != 0
    assert "nowhere" in ended.err


def test_echo_puts_the_prompt_before_the_answer(run, trained) -> None:
    assert run("generate", trained, PROMPT, "--echo").out.startswith(PROMPT)


def test_a_prompt_may_begin_with_a_dash(run, trained) -> None:
    ended = run("generate", trained, "--", "-abc")
    assert ended.code == 2
    assert "'-'" in ended.err  # it got as far as the tokenizer, which has no dash


def test_threads_and_dtype_are_honoured(run, trained) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        words = ("generate", trained, PROMPT, "--temperature", 0, "--quiet")
        assert run(*words, "--threads", 1, "--dtype", "float64", "--device", "cpu").code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


SILENT = {"zero_heads": {"0": [0]}}
LEVEL = {"replace": {"point": "logits", "value": 0.0}}
ZEROED = json.dumps([SILENT, LEVEL])


def test_interventions_are_those_of_the_library(run, trained, generator, tmp_path) -> None:
    words = ("generate", trained, PROMPT, "--json", "--temperature", 0, "--ignore-eos")
    plain, changed = (run(*words, *more).json for more in ((), ("--interventions", ZEROED)))
    expected = generator.generate(
        PROMPT, temperature=0, ignore_eos=True, interventions=json.loads(ZEROED)
    )
    assert changed["answers"][0]["text"] == expected.text != plain["answers"][0]["text"]
    assert changed["answers"][0]["executors"] == list(expected.executors)
    file = tmp_path / "changes.json"
    file.write_text(ZEROED)
    assert run(*words, "--interventions", file).json["answers"] == changed["answers"]


def test_a_file_of_answers_under_interventions_is_another_file(run, trained, tmp_path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    words = ("generate", trained, "--input", prompts, "--output", answers, "--temperature", 0)
    assert run(*words).code == 0
    refused = run(*words, "--interventions", ZEROED)
    assert refused.code != 0
    assert run(*words, "--interventions", ZEROED, "--fresh").code == 0
    [line] = answers.read_text().splitlines()
    one = run("generate", trained, PROMPT, "--temperature", 0, "--interventions", ZEROED)
    assert json.loads(line)["answers"][0]["text"] + "\n" == one.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{", "--interventions is not valid JSON"),
        ("changes.json", "is neither a JSON list nor a file"),
        ('[{"zero_head": {}}]', "Did you mean 'zero_heads'?"),
        ('[{"zero_heads": {"9": [0]}}]', "not 9"),
        ('[{"steer": {"layer": 0}}]', "Steer needs a value for 'vector'"),
        ('[{"steer": {"layer": 0, "vector": [1, 2]}}]', "wide, the value for it 2"),
    ],
)
def test_wrong_interventions_are_explained(run, trained, text, said) -> None:
    ended = run("generate", trained, PROMPT, "--interventions", text)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_a_recording_of_the_answer_lies_where_it_was_asked_for(run, trained, tmp_path) -> None:
    file = tmp_path / "seen.safetensors"
    ended = run(
        *("generate", trained, PROMPT, "-n", 2, "--record", "attention.pattern,logits"),
        *("--record-layers", 0, "--record-to", file),
    )
    assert ended.code == 0
    assert str(file.name) in ended.err
    seen = sw.read_recording(file)
    assert list(seen) == [("attention.pattern", 0), ("logits", -1)]
    assert len(seen.rows) == 2
    assert torch.allclose(seen["attention.pattern", 0][0, :, -1].sum(-1), torch.ones(1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--record", "attention.patern"), "Did you mean 'attention.pattern'?"),
        (("--record", "logits", "--record-layers", "x"), "expected numbers such as 0,2 or 0-3"),
        (("--record", "logits", "--record-to", "seen.pt"), "expected .safetensors"),
    ],
)
def test_a_recording_that_cannot_be_made_is_refused(run, trained, words, said) -> None:
    ended = run("generate", trained, PROMPT, *words)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
