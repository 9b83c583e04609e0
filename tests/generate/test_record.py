"""Recordings: what transformers computes at the same places, and nothing that was not chosen."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepwell.errors import ConfigError, HookError, PromptError
from stepwell.generate.record import record as record_spec
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.tape import Record, Tape, TapeRecorder
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import POINTS, Hooks
from stepwell.model.interventions import ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model

CONFIG = ModelConfig(
    vocab_size=31,
    context_length=32,
    width=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    tie_embeddings=False,
)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]


def record(model, prompts, interventions=(), **chosen):
    return record_spec(model, prompts, Record(**chosen), interventions)


@pytest.fixture(scope="module")
def model():
    model = Transformer(CONFIG)
    model.initialize(0)
    return model.eval()


@pytest.fixture(scope="module")
def peer(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("peer")
    save_model(model, directory)
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def seen_by(peer, prompt):
    """What transformers has at each point for one prompt, without the axis of rows."""
    inputs, outputs = {}, {}

    def watch(module, args, output):
        inputs[module], outputs[module] = args, output

    blocks = peer.model.layers
    watched = [part for block in blocks for part in (block.self_attn.o_proj, block.mlp)]
    handles = [module.register_forward_hook(watch) for module in watched]
    with torch.no_grad():
        out = peer(torch.tensor([prompt]), output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    seen = {("logits", -1): out.logits}
    for layer, block in enumerate(blocks):
        before, attention = out.hidden_states[layer], outputs[block.self_attn.o_proj]
        seen["residual.before", layer] = before
        seen["attention.pattern", layer] = out.attentions[layer]
        seen["attention.heads", layer] = inputs[block.self_attn.o_proj][0].unflatten(-1, (4, -1))
        seen["attention.output", layer] = attention
        seen["mlp.output", layer] = outputs[block.mlp]
        seen["residual.after", layer] = before + attention + outputs[block.mlp]
    return {key: value[0] for key, value in seen.items()}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)  # float32


def test_every_point_is_what_transformers_computes_there_however_long_the_others_are(model, peer):
    seen = record(model, PROMPTS, points=POINTS)
    assert seen.lengths == (7, 2, 4)
    for row, prompt in enumerate(PROMPTS):
        expected, found = seen_by(peer, prompt), seen.row(row)
        assert found.keys() == expected.keys() == set(seen)
        for key, value in expected.items():
            close(found[key], value)


def test_what_a_layer_leaves_is_what_the_next_one_gets(model):
    seen = record(model, PROMPTS, points=["residual.before", "residual.after"])
    for layer in (1, 2):
        assert torch.equal(seen["residual.after", layer - 1], seen["residual.before", layer])


def test_the_pattern_and_the_output_of_attention_are_told_apart(model):
    seen = record(model, PROMPTS[:1], points=["attention.pattern", "attention.output"], layers=[1])
    pattern = seen["attention.pattern", 1]
    assert pattern.shape == (1, 4, 7, 7)
    close(pattern.sum(-1), torch.ones(1, 4, 7))
    assert torch.equal(pattern, pattern.tril())
    assert seen["attention.output", 1].shape == (1, 7, CONFIG.width)


def test_only_what_was_chosen_is_recorded(model):
    whole = record(model, PROMPTS, points=POINTS)
    points = ["attention.pattern", "attention.heads", "mlp.output", "logits"]
    seen = record(model, PROMPTS, points=points, layers=[2, 0], heads=[3, 1], positions=[1, 0])
    in_layers = [(point, layer) for layer in (0, 2) for point in points[:3]]
    assert list(seen) == [*in_layers, ("logits", -1)]
    for layer in (0, 2):
        pattern = whole["attention.pattern", layer][:, [3, 1]][:, :, [1, 0]]
        close(seen["attention.pattern", layer], pattern)
        heads = whole["attention.heads", layer][:, [1, 0]][:, :, [3, 1]]
        close(seen["attention.heads", layer], heads)
        close(seen["mlp.output", layer], whole["mlp.output", layer][:, [1, 0]])
    close(seen["logits", -1], whole["logits", -1][:, [1, 0]])


def test_last_is_the_last_position_of_each_prompt(model):
    whole, seen = (
        record(model, PROMPTS, points=POINTS, positions=positions) for positions in ("all", "last")
    )
    for row in range(3):
        for (point, layer), value in seen.row(row).items():
            axis = 1 if point == "attention.pattern" else 0
            assert torch.equal(value, whole.row(row)[point, layer].narrow(axis, -1, 1))


def test_padding_is_zero_and_a_row_is_recorded_without_it(model):
    seen = record(model, PROMPTS, points=POINTS)
    assert seen["mlp.output", 1][1, 2:].abs().max() == 0
    assert seen["attention.pattern", 1][1, :, 2:].abs().max() == 0
    assert seen["attention.pattern", 1][1, :, :, 2:].abs().max() == 0
    assert seen.row(1)["attention.pattern", 1].shape == (4, 2, 2)
    assert seen.row(1)["logits", -1].shape == (2, 31)


def test_interventions_are_seen_at_work(model):
    silenced = ZeroHeads({1: [0, 2]})
    plain, seen = (
        record(model, PROMPTS, points=["attention.heads", "logits"], interventions=interventions)
        for interventions in ((), (silenced,))
    )
    assert seen["attention.heads", 1][:, :, [0, 2]].abs().max() == 0
    assert torch.equal(seen["attention.heads", 0], plain["attention.heads", 0])
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = model(torch.tensor([prompt]), hooks=Hooks([silenced]))[0]
        close(seen.row(row)["logits", -1], logits)


def test_a_recording_is_a_copy_in_float32_and_changes_nothing(model):
    spec = Record(points=["mlp.output", "attention.pattern"])
    recorder = TapeRecorder([Tape(spec, model.config, 7)], [range(7)])
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        assert torch.equal(model(ids, hooks=Hooks([], [recorder])), model(ids))
    half = Transformer(CONFIG).to(torch.bfloat16)
    assert record(half, PROMPTS, points=["logits"])["logits", -1].dtype == torch.float32


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"points": ["attention.patern"]}, "Did you mean 'attention.pattern'?"),
        ({"points": ["mlp.output"], "layers": [3]}, "layers 0..2, not 3"),
        ({"points": ["attention.heads"], "heads": [4]}, "heads 0..3, not 4"),
        ({"points": ["logits"], "positions": [2]}, "positions 0..1, not 2"),
        ({"points": ["logits"], "positions": [-3]}, "positions 0..1, not -3"),
        ({"points": ["logits"], "interventions": [ZeroHeads({9: [0]})]}, "not 9"),
    ],
    ids=str,
)
def test_a_place_that_is_not_there_is_refused(model, chosen, message):
    with pytest.raises(HookError) as caught:
        record(model, PROMPTS, **chosen)
    assert message in str(caught.value)


@pytest.mark.parametrize("prompts", [[], [[1], []], [[1] * 33]], ids=["none", "empty", "too long"])
def test_prompts_that_cannot_be_recorded_are_refused(model, prompts):
    with pytest.raises(PromptError):
        record(model, prompts, points=["logits"])


def test_asking_for_what_was_not_recorded_says_what_was(model):
    seen = record(model, PROMPTS, points=["mlp.output"], layers=[1])
    with pytest.raises(HookError, match=r"was not recorded, only mlp.output of layer 1\."):
        seen["mlp.output", 0]


def test_text_is_recorded_as_its_tokens_are(gen):
    one = gen.record("ab")
    assert one["attention.pattern", 1].shape == (1, 4, 2, 2)
    two = gen.record(["ab", "abcd"], points=["logits"], positions="last")
    assert two.lengths == (2, 4)
    ids = torch.tensor([gen.tokenizer.encode("abcd")])
    with torch.no_grad():
        close(two.row(1)["logits", -1], gen.model(ids)[0, -1:])


ATTENTION = Record(points=["attention.pattern"], layers=[1])


def full(gen, text, done):
    """The pattern of layer 1 in one forward over a prompt and what was read of its answer."""
    ids = [*gen.tokenizer.encode(text), *done.token_ids[:-1]]
    return record(gen.model, [ids], points=["attention.pattern"])["attention.pattern", 1]


def test_one_answer_a_batch_and_a_stream_bring_the_same_recording(gen):
    params = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True, "record": ATTENTION}
    one = gen.generate("abcd", **params)
    [[first], [second]] = gen.generate_batch(["ab", "abcd"], **params)
    *_, last = gen.generate_stream("abcd", **params)
    for text, done in (("abcd", one), ("ab", first), ("abcd", second), ("abcd", last.completion)):
        close(done.recording["attention.pattern", 1], full(gen, text, done))
        assert done.executors
    assert gen.generate("abcd", max_new_tokens=2).recording is None


def test_json_of_interventions_is_taken_as_they_are(gen):
    changes = [{"zero_heads": {"0": [1]}}]
    params = {"max_new_tokens": 2, "temperature": 0, "record": Record(points=["logits"])}
    written, declared, plain = (
        gen.generate("abcd", interventions=each, **params).recording["logits", -1]
        for each in (changes, [ZeroHeads({0: [1]})], [])
    )
    assert torch.equal(written, declared)
    assert not torch.equal(written, plain)


def test_recordings_do_not_come_from_a_cache(gen, tmp_path):
    with ResponseCache(tmp_path / "answers.sqlite") as cache, pytest.raises(ConfigError):
        gen.generate_batch(["ab"], record=ATTENTION, cache=cache)
