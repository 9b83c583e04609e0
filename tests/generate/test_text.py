"""Text in, text out: what a caller of TextGenerator can rely on."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, processors

from stepwell.errors import ConfigError, DeviceError
from stepwell.generate.request import SamplingParams
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import Replace
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.text.tokenizer import Tokenizer

PROMPTS = ["ab", "c", "he d", "a>b>c\n", "ffff", "g h"]


def small(tokenizer, **changes):
    sizes = {"context_length": 64, "width": 16, "num_layers": 1, "num_heads": 2, **changes}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes))
    model.initialize(1)
    return model


def sentencepiece():
    """A tokenizer like Llama's: a space is put before a text, and dropped in decoding."""
    tokens = ["<unk>", "<s>", "</s>", "▁Once", "▁upon", "▁a", "▁", *"Oncepuatim"]
    scores = [(token, -float(index)) for index, token in enumerate(tokens)]
    core = tokenizers.Tokenizer(models.Unigram(scores, 0))
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return Tokenizer(core, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


@pytest.fixture(scope="module")
def llama():
    tokenizer = sentencepiece()
    return TextGenerator(small(tokenizer), tokenizer)


@pytest.fixture
def directory(tmp_path, model, tokenizer):
    save_model(model, tmp_path)
    (tmp_path / "manifest.json").unlink()  # tests change files by hand
    tokenizer.save(tmp_path)
    return tmp_path


def declare(directory, **values):
    (directory / "generation_config.json").write_text(json.dumps(values))


def free(gen):
    return gen.engine.num_free_rows == gen.engine.max_rows


# One, many, and in pieces


def test_answers_come_in_the_order_of_the_prompts(gen):
    answers = gen.generate_batch(PROMPTS, n=2, seed=5, max_new_tokens=7)
    for prompt, choices in zip(PROMPTS, answers, strict=True):
        assert gen.generate_batch([prompt], n=2, seed=5, max_new_tokens=7) == [choices]
        assert gen.generate(prompt, seed=5, max_new_tokens=7) == choices[0]
        assert choices[0].usage.prompt_tokens == len(gen.tokens(prompt))
    assert len({done.text for choices in answers for done in choices}) > len(PROMPTS)
    assert gen.generate_batch([]) == []
    assert free(gen)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0}, {"stop": [">", " a"]}, {"n": 3}], ids=str
)
def test_streamed_pieces_make_up_the_text_of_the_batch(gen, params):
    params = {"seed": 3, "max_new_tokens": 20, "logprobs": 0, **params}
    [expected] = gen.generate_batch(["ab "], **params)
    texts, ends = dict.fromkeys(range(len(expected)), ""), {}
    for piece in gen.generate_stream("ab ", **params):
        texts[piece.choice] += piece.text
        if piece.completion is not None:
            ends[piece.choice] = piece.completion
    assert [ends[choice] for choice in range(len(expected))] == expected
    assert list(texts.values()) == [done.text for done in expected]


def test_generate_gives_one_answer_whatever_the_defaults_say(model, tokenizer):
    gen = TextGenerator(model, tokenizer, defaults=SamplingParams(n=3, max_new_tokens=4))
    assert gen.generate("a") == gen.generate_batch(["a"])[0][0]
    assert len(gen.generate_batch(["a"])[0]) == 3
    assert {piece.choice for piece in gen.generate_stream("a")} == {0}
    for several in ({"n": 2}, {"num_return_sequences": 2}):
        assert len(gen.generate_batch(["a"], **several)[0]) == 2
        assert {piece.choice for piece in gen.generate_stream("a", **several)} == {0, 1}
        with pytest.raises(ConfigError, match="generate gives one answer, n is 2"):
            gen.generate("a", **several)


def test_the_prompt_is_left_out_unless_it_is_asked_for(gen):
    done, echoed = (gen.generate("a b", echo=echo, seed=1) for echo in (False, True))
    assert echoed.text == "a b" + done.text
    assert echoed.token_ids == done.token_ids
    pieces = list(gen.generate_stream("a b", echo=True, seed=1))
    assert "".join(piece.text for piece in pieces) == echoed.text
    assert pieces[-1].completion == echoed


def test_progress_is_told_of_every_token_and_answer(gen):
    class Seen:
        def __init__(self):
            self.calls = []

        def update(self, finished, tokens):
            self.calls.append((finished, tokens))

    seen = Seen()
    answers = gen.generate_batch(PROMPTS, progress=seen, seed=2, max_new_tokens=5)
    total = sum(len(done.token_ids) for [done] in answers)
    assert seen.calls[-1] == (len(PROMPTS), total)
    assert seen.calls == sorted(seen.calls)


# The text of an answer


def test_an_answer_goes_on_from_the_prompts_text(llama):
    tokenizer = llama.tokenizer
    upon, end = tokenizer.id_of("▁upon"), tokenizer.eos_id
    for forced, text in (([upon, end], " upon"), ([tokenizer.id_of("▁a"), upon, end], " a upon")):
        params = {"forced_tokens": forced, "max_new_tokens": 4}
        done = llama.generate("Once", **params)
        assert done.text == text
        assert llama.generate("Once", echo=True, **params).text == "Once" + text
        assert "".join(piece.text for piece in llama.generate_stream("Once", **params)) == text
        assert llama.generate("Once", stop=["zzz"], **params).text == text
    assert tokenizer.decode([upon]) == "upon"  # what decoding the answer alone would give


def test_an_answer_to_nothing_begins_a_text(llama):
    upon = llama.tokenizer.id_of("▁upon")
    assert llama.generate("", forced_tokens=[upon], max_new_tokens=1).text == "upon"


def test_special_tokens_are_not_part_of_the_text(gen):
    forced = [gen.tokenizer.id_of(token) for token in ("a", "<think>", "</think>", "b", "<bos>")]
    done = gen.generate("a", forced_tokens=forced, max_new_tokens=5)
    assert (done.text, done.token_ids) == ("ab", tuple(forced))


@pytest.mark.parametrize("stop", ["b", "a b", " b c", "ab", ["c d", "b"], [".", "zz"]], ids=str)
def test_a_stop_string_is_never_shown_not_even_for_a_moment(gen, stop):
    forced = gen.tokenizer.encode("a b c d e f")
    params = {"forced_tokens": forced, "max_new_tokens": len(forced), "stop": stop}
    done = gen.generate("a", **params)
    stops = [stop] if isinstance(stop, str) else stop
    starts = [at for at in map("a b c d e f".find, stops) if at >= 0]
    assert done.text == "a b c d e f"[: min(starts, default=None)]
    assert done.finish_reason == ("stop" if starts else "length")
    shown = ""
    for piece in gen.generate_stream("a", **params):
        shown += piece.text
        assert done.text.startswith(shown)
    assert shown == done.text
    assert free(gen)


def test_the_engine_running_ahead_changes_no_answer(gen):
    params = {"forced_tokens": gen.tokenizer.encode("abcdefgh"), "max_new_tokens": 8, "stop": "c"}
    alone = list(gen.generate_stream("a", **params))
    stream = gen.generate_stream("a", **params)
    pieces = [next(stream)]
    gen.generate("b", max_new_tokens=12, ignore_eos=True)  # drives both
    pieces += stream
    assert pieces[-1].completion == alone[-1].completion
    assert [piece.text for piece in pieces] == [piece.text for piece in alone]


# Defaults and stopping, as declared by files


def test_a_directorys_generation_config_gives_the_defaults(directory, tokenizer):
    eos = tokenizer.id_of("<eos>")
    declare(directory, do_sample=False, max_new_tokens=9, eos_token_id=[3, 4])
    gen = TextGenerator.load(directory, max_rows=2)
    assert gen.defaults.greedy
    assert gen.engine.eos_ids == {3, 4, eos}
    assert gen.generate("ab") == gen.generate("ab", temperature=0, seed=9)
    answers = {gen.generate("ab", temperature=1.0, seed=seed).text for seed in range(5)}
    assert len(answers) > 1
    assert {gen.generate("ab", do_sample=True, seed=seed).text for seed in range(5)} == answers
    assert len(gen.generate("ab", ignore_eos=True).token_ids) == 9
    assert TextGenerator.load(directory, eos_ids=[5]).engine.eos_ids == {5, eos}


def test_without_declarations_the_tokenizers_end_of_sequence_ends_an_answer(gen, directory):
    (directory / "generation_config.json").unlink()
    assert TextGenerator.load(directory).engine.eos_ids == {gen.tokenizer.eos_id}
    assert gen.engine.eos_ids == {gen.tokenizer.eos_id}
    ends = gen.generate("a", forced_tokens=[gen.tokenizer.eos_id])
    assert (ends.text, ends.finish_reason, len(ends.token_ids)) == ("", "stop", 1)


@pytest.mark.parametrize("eos", ["x", [1, "x"], 1.5], ids=str)
def test_an_end_of_sequence_that_is_no_token_names_the_file(directory, eos):
    declare(directory, eos_token_id=eos)
    with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_id is"):
        TextGenerator.load(directory)


def test_do_sample_false_is_greedy_whatever_the_temperature(gen):
    greedy = gen.generate("ab", temperature=0)
    assert gen.generate("ab", do_sample=False, temperature=2.0, seed=4) == greedy


def test_newlines_are_found_however_they_are_spelled(gen):
    assert gen.engine.newline_ids == (gen.tokenizer.id_of("\n"),)
    byte = Tokenizer.byte()
    assert TextGenerator(small(byte), byte).engine.newline_ids == (10,)
    bpe = Tokenizer.train_bpe(["a\n\n"] * 5, 257)
    single, pair = bpe.id_of("Ċ"), bpe.id_of("ĊĊ")
    assert set(TextGenerator(small(bpe), bpe).engine.newline_ids) == {single, pair}


def test_a_run_of_newlines_is_cut(gen):
    newline = gen.tokenizer.id_of("\n")
    loud = Replace(point="logits", value=tuple(10.0 * (token == newline) for token in range(16)))
    params = {"interventions": [loud], "temperature": 0, "max_new_tokens": 9, "ignore_eos": True}
    assert gen.generate("a", **params).text == "\n" * 9
    text = gen.generate("a", newline_run_limit=2, **params).token_ids
    runs = "".join("n" if token == newline else "." for token in text)
    assert "nn" in runs
    assert "nnn" not in runs


def test_a_think_section_is_ended_when_its_budget_is_spent(gen):
    end = gen.tokenizer.id_of("</think>")
    params = {"max_new_tokens": 12, "banned_tokens": [end], "ignore_eos": True}
    done = gen.generate("a<think>", think_budget=4, **params)
    assert done.token_ids.index(end) == 4
    assert done.token_ids[:4] == gen.generate("a<think>", **params).token_ids[:4]
    assert end not in gen.generate("a", think_budget=4, **params).token_ids[:4]


def test_a_think_budget_needs_a_tokenizer_with_think_tokens():
    tokenizer = Tokenizer.character("ab", {"think_start": "<t>"})
    with pytest.raises(ConfigError, match="roles think_start and think_end"):
        TextGenerator(small(tokenizer), tokenizer).generate("a", think_budget=4)


# How attention is computed


def test_eager_attention_gives_the_logits_of_the_fused_kernel(model):
    ids = torch.arange(40).reshape(2, 20) % 16
    logits = {}
    for name in ("auto", "sdpa", "eager", "flash"):
        twin = Transformer(model.config)
        twin.load_state_dict(model.state_dict())
        twin.attention_implementation = name
        cache = twin.new_cache(2)
        rows = [cache.allocate(), cache.allocate()]
        with torch.no_grad():
            parts = [twin(ids[:, :7], view=cache.append(rows, [7, 7]))]
            cache.truncate(rows[1], 5)
            parts.append(twin(ids[:, 7:11], view=cache.append(rows, [4, 2])))
            logits[name] = torch.cat([twin(ids), parts[0], parts[1][:, :2]], dim=1)
    assert torch.equal(logits["auto"], logits["sdpa"])
    for name in ("eager", "flash"):
        torch.testing.assert_close(logits[name], logits["auto"], atol=1e-5, rtol=0)  # float32


@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa", "flash"])
def test_a_generator_is_loaded_with_the_attention_asked_for(directory, attention, gen):
    loaded = TextGenerator.load(directory, attention=attention)
    assert loaded.model.attention_implementation == attention
    assert loaded.generate("ab", seed=6).token_ids == gen.generate("ab", seed=6).token_ids


def test_attention_that_there_is_not_is_refused(directory):
    with pytest.raises(ConfigError, match=r"no attention 'sdpaa'. Did you mean 'sdpa'\?"):
        TextGenerator.load(directory, attention="sdpaa")


def test_flash_attention_that_cannot_run_says_so(model, tokenizer, monkeypatch):
    def no_kernel(*args, **options):
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", no_kernel)
    twin = small(tokenizer)
    twin.attention_implementation = "flash"
    with pytest.raises(DeviceError, match=r"Flash attention does not run on cpu in torch.float32"):
        twin(torch.tensor([[1, 2]]))


def test_pieces_follow_the_tokens(gen):
    texts = [piece.text for piece in gen.generate_stream("a", seed=8, max_new_tokens=5)]
    assert all(len(text) <= 1 for text in texts)
    assert any(first and second for first, second in pairwise(texts))
