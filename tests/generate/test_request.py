"""Sampling parameters: bounds that name themselves, other spellings, what model files declare."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from transformers import GenerationConfig

from stepwell.errors import ConfigError, PromptError
from stepwell.generate.request import (
    SAMPLING_PRESETS,
    Completion,
    FinishedEvent,
    Request,
    SamplingParams,
    TokenEvent,
    Usage,
)

BOUNDS = {
    "temperature": (0, 100, "from 0 to 100"),
    "top_k": (0, 50_000, "from 0 to 2147483647"),
    "top_p": (1e-9, 1, "above 0 and at most 1"),
    "min_p": (0, 1, "from 0 to 1"),
    "repetition_penalty": (1e-3, 100, "above 0 and at most 100"),
    "repetition_window": (0, 4096, "from 0 to 2147483647"),
    "presence_penalty": (-2, 2, "from -2 to 2"),
    "frequency_penalty": (-2, 2, "from -2 to 2"),
    "no_repeat_ngram_size": (0, 9, "from 0 to 2147483647"),
    "max_new_tokens": (1, 2048, "from 1 to 2147483647"),
    "min_new_tokens": (0, 64, "from 0 to 2147483647"),
    "n": (1, 1024, "from 1 to 1024"),
    "seed": (-(2**63), 2**63 - 1, "from -9223372036854775808 to 9223372036854775807"),
    "newline_run_limit": (0, 3, "from 0 to 2147483647"),
    "think_budget": (0, 2048, "from 0 to 2147483647"),
}
OUTSIDE = [
    ("temperature", -0.1),
    ("temperature", 100.5),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("top_k", -1),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", 101),
    ("repetition_window", -1),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("no_repeat_ngram_size", -1),
    ("max_new_tokens", 0),
    ("min_new_tokens", -1),
    ("n", 0),
    ("n", 1025),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("newline_run_limit", -1),
    ("think_budget", -1),
]


@pytest.mark.parametrize("field", BOUNDS)
def test_both_ends_of_a_range_are_taken(field):
    for value in BOUNDS[field][:2]:
        assert getattr(SamplingParams(**{field: value}), field) == value


@pytest.mark.parametrize(("field", "value"), OUTSIDE)
def test_a_value_outside_its_range_is_refused_with_value_and_range(field, value):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{field: value})
    expected = "Input should be a finite number."
    if math.isfinite(value):
        expected = f"expected a number {BOUNDS[field][2]}."
    assert str(caught.value) == f"SamplingParams.{field} is {value}: {expected}"


def test_every_number_has_a_tested_range():
    numbers = {
        name
        for name, value in SamplingParams().plain().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert numbers == set(BOUNDS) == {field for field, _ in OUTSIDE}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": ["a", ""]}, "stop.1 is ''"),
        ({"stop": ["a"] * 17}, "at most 16 items"),
        ({"banned_tokens": [3, -1]}, "banned_tokens.1 is -1: expected a number from 0"),
        ({"forced_tokens": ["the"]}, "forced_tokens.0 is 'the'"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"temprature": 1}, "Did you mean 'temperature'?"),
        ({"min_new_tokens": 65}, "min_new_tokens is 65, expected at most max_new_tokens, 64"),
        ({"forced_tokens": [1, 2], "max_new_tokens": 1}, "the number of forced_tokens is 2"),
        ({"n": 2, "num_return_sequences": 3}, "n is 2 but num_return_sequences is 3"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**settings)
    assert message in str(caught.value)


def test_other_spellings_are_taken():
    assert SamplingParams(num_return_sequences=4) == SamplingParams(n=4)
    assert SamplingParams(num_return_sequences=4, n=4).n == 4
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a"] * 16).stop == ("a",) * 16


def test_parameters_survive_json_and_change():
    params = SamplingParams(stop=["a", "b"], banned_tokens=[1], temperature=0.5, n=3)
    assert SamplingParams.parse(json.loads(json.dumps(params.plain()))) == params
    assert params.changed(n=4).n == 4
    assert len({params, params.changed(n=4), params.changed(n=3)}) == 2
    with pytest.raises(ConfigError, match="expected a number from 1 to 1024"):
        params.changed(n=0)


def test_a_change_takes_other_spellings_too():
    params = SamplingParams(n=3, temperature=0.5)
    assert params.changed(num_return_sequences=2) == params.changed(n=2)
    assert params.changed(stop="END").stop == ("END",)
    with pytest.raises(ConfigError, match="n is 2 but num_return_sequences is 4"):
        params.changed(n=2, num_return_sequences=4)


def test_greedy_parameters_that_are_asked_to_sample_do_so():
    greedy = SamplingParams(temperature=0, top_k=5)
    assert greedy.changed(do_sample=True).temperature == 1
    assert greedy.changed(do_sample=True, temperature=0.3).temperature == 0.3
    assert SamplingParams(temperature=0.7).changed(do_sample=True).temperature == 0.7


def test_parameters_process_logits_alike_unless_a_field_says_otherwise():
    plain = SamplingParams()
    assert plain.changed(seed=4, n=2, max_new_tokens=9, stop="a").processing == plain.processing
    for field, (low, high, _) in BOUNDS.items():
        other = low if getattr(plain, field) == high else high
        if field not in ("seed", "n", "max_new_tokens"):
            assert plain.changed(**{field: other}).processing != plain.processing


@pytest.mark.parametrize(
    ("settings", "greedy"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 1e-6}, True),
        ({"temperature": 1e-5}, False),
        ({"temperature": 2.0, "do_sample": False}, True),
        ({"temperature": 0, "do_sample": True}, True),
        ({"temperature": 0.5, "do_sample": True}, False),
    ],
    ids=str,
)
def test_greedy_is_temperature_zero_or_do_sample_false(settings, greedy):
    assert SamplingParams(**settings).greedy is greedy


def test_presets_are_the_named_ones():
    study, chat = SAMPLING_PRESETS["study"], SAMPLING_PRESETS["chat"]
    assert (study.temperature, study.top_k, study.top_p) == (0.6, 50, 0.95)
    assert (study.repetition_penalty, study.max_new_tokens) == (1.0, 2048)
    assert (chat.temperature, chat.top_p, chat.repetition_penalty) == (0.7, 0.9, 1.1)


def test_every_field_is_documented():
    fields = SamplingParams.model_fields
    assert all(field.description for field in fields.values())


# generation_config.json


def test_a_generation_config_gives_the_defaults():
    declared = {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": None,
        "max_length": 4096,
        "max_new_tokens": 100,
        "num_return_sequences": 2,
        "stop_strings": "END",
        "suppress_tokens": [4],
        "bad_words_ids": [[5], [6]],
        "transformers_version": "5.0.0",
    }
    expected = SamplingParams(
        temperature=0.6, top_k=20, top_p=0.9, max_new_tokens=100, n=2, stop=("END",)
    ).changed(banned_tokens=(4, 5, 6))
    assert SamplingParams.from_generation_config(declared) == expected


def test_do_sample_false_in_a_file_yields_to_a_temperature_asked_for():
    declared = SamplingParams.from_generation_config({"do_sample": False, "temperature": 0.6})
    assert declared.greedy
    assert not declared.changed(temperature=0.8).greedy
    assert SamplingParams.from_generation_config({}) == SamplingParams()


SPOILING = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "top_h": 0.5,
    "guidance_scale": 1.5,
    "penalty_alpha": 0.6,
    "diversity_penalty": 1.0,
    "encoder_repetition_penalty": 2.0,
    "encoder_no_repeat_ngram_size": 2,
    "min_length": 5,
    "max_time": 1.0,
    "sequence_bias": [[[1], 2.0]],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 1,
    "begin_suppress_tokens": [1],
    "exponential_decay_length_penalty": [1, 2.0],
    "watermarking_config": {},
    "constraints": ["a"],
    "force_words_ids": [[1]],
    "dola_layers": "low",
    "token_healing": True,
    "remove_invalid_values": True,
    "a_key_of_the_future": 1,
}


@pytest.mark.parametrize("key", SPOILING)
def test_a_key_that_changes_the_answer_and_is_not_supported_is_refused(key):
    with pytest.raises(ConfigError) as caught:
        SamplingParams.from_generation_config({key: SPOILING[key]}, where="model/gen.json")
    assert f"model/gen.json: {key} is {SPOILING[key]!r}" in str(caught.value)


def test_words_of_several_tokens_cannot_be_banned():
    with pytest.raises(ConfigError, match=r"bad_words_ids holds \[5, 6\]"):
        SamplingParams.from_generation_config({"bad_words_ids": [[4], [5, 6]]})


def test_a_value_out_of_range_in_a_file_names_the_file():
    with pytest.raises(ConfigError, match=r"^gen.json: SamplingParams.top_p is 7"):
        SamplingParams.from_generation_config({"top_p": 7}, where="gen.json")


SPELLED_OUT = {  # What transformers 4 wrote into a file that sets nothing.
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": None,
    "min_length": 0,
    "max_length": 20,
    "use_cache": True,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "bad_words_ids": None,
    "constraints": None,
    "generation_kwargs": {},
    "low_memory": None,
    "output_attentions": False,
    "output_scores": False,
    "return_dict_in_generate": False,
    "num_return_sequences": 1,
    "pad_token_id": None,
    "_from_model_config": True,
}


def test_what_transformers_writes_by_default_is_taken(tmp_path):
    GenerationConfig(do_sample=True, temperature=0.6).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    for declared in (written, {**SPELLED_OUT, **written}):
        params = SamplingParams.from_generation_config(declared)
        assert params.temperature == 0.6
        assert not params.greedy


# Requests, events and results


def test_a_request_takes_lists_and_keeps_tuples():
    request = Request(prompt_ids=[1, 2], interventions=["anything"], request_id="one")
    assert (request.prompt_ids, request.interventions) == ((1, 2), ("anything",))
    assert request.sampling == SamplingParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.prompt_ids = (3,)


def test_requests_have_their_own_names():
    assert Request((1,)).request_id != Request((1,)).request_id


def test_an_empty_prompt_is_refused():
    with pytest.raises(PromptError, match="request one: the prompt holds no token"):
        Request((), request_id="one")


def test_results_hold_what_the_engine_reports():
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    assert (usage.cached_tokens, usage.total_tokens) == (0, 5)
    assert TokenEvent(0, 5).logprob is None
    assert FinishedEvent(0, "stop", usage).usage is usage
    assert Completion("ab", (1, 2), "length", usage, (-0.1, -0.2)).token_ids == (1, 2)


def test_parameters_are_read_without_torch():
    code = "import sys, stepwell.generate.request; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
