"""What a text generator refuses, and what is left behind by an error or an interrupt."""

from __future__ import annotations

import pytest

from stepwell.errors import ConfigError, LogitsError, PromptError, TokenizerError
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.text.tokenizer import Tokenizer

PROMPTS = ["ab", "c", "he d", "a>b>c\n", "ffff", "g h"]


def small(tokenizer, **changes):
    sizes = {"context_length": 64, "width": 16, "num_layers": 1, "num_heads": 2, **changes}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes))
    model.initialize(1)
    return model


def free(gen):
    return gen.engine.num_free_rows == gen.engine.max_rows


def test_an_empty_prompt_is_the_beginning_of_sequence_token_or_an_error(gen):
    assert gen.tokens("") == ["<bos>"]
    assert gen.generate("", seed=1) == gen.generate("<bos>", seed=1)
    tokenizer = Tokenizer.character("ab")
    plain = TextGenerator(small(tokenizer), tokenizer)
    verbs = (plain.generate, plain.generate_stream, plain.tokens, plain.record)
    for ask in (*verbs, lambda text: plain.generate_batch(["a", text])):
        with pytest.raises(PromptError, match="A prompt is empty"):
            ask("")


def test_a_prompt_that_does_not_fit_is_an_error_that_names_it(gen):
    with pytest.raises(PromptError, match=r"^The prompt has 70 tokens"):
        gen.generate("a" * 70)
    with pytest.raises(PromptError, match=r"^The prompt has 70 tokens"):
        gen.generate_stream("a" * 70)
    with pytest.raises(PromptError, match=r"^Prompt 1: The prompt has 64 tokens"):
        gen.generate_batch(["a", "b" * 64, "c"])
    assert free(gen)
    assert gen.engine.step() == []


def test_a_sliding_generator_keeps_the_end_of_a_prompt_that_does_not_fit(gen, model, tokenizer):
    sliding = TextGenerator(model, tokenizer, long_prompt="slide")
    long = "abcdefgh" * 10
    for new, kept in ((10, 54), (30, 34), (32, 32), (64, 32), (500, 32)):
        params = {"max_new_tokens": new, "seed": 2, "ignore_eos": True}
        done = sliding.generate(long, **params)
        assert done == gen.generate(long[-kept:], **params)
        assert len(done.token_ids) == min(new, 64 - kept)
    assert sliding.generate(long[:63], seed=2) == gen.generate(long[:63], seed=2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temprature": 1}, "Did you mean 'temperature'?"),
        ({"top_k": [1]}, "top_k is [1]"),
        ({"stop": [["a"]]}, "stop.0 is ['a']"),
        ({"banned_tokens": [99]}, "banned_tokens: 99 is no token"),
        ({"n": 2, "num_return_sequences": 3}, "n is 2 but num_return_sequences is 3"),
    ],
    ids=str,
)
def test_a_keyword_that_cannot_be_meant_is_refused(gen, asked, message):
    def batch(text, **rest):
        return gen.generate_batch([text], **rest)

    for verb in (gen.generate, gen.generate_stream, batch):
        with pytest.raises(ConfigError) as caught:
            verb("a", **asked)
        assert message in str(caught.value)
    assert free(gen)
    assert gen.engine.step() == []


def test_a_batch_is_a_list_of_prompts(gen):
    with pytest.raises(PromptError, match="not one text"):
        gen.generate_batch("abc")


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(model):
    with pytest.raises(ConfigError, match="The tokenizer has 256 tokens, the model 16"):
        TextGenerator(model, Tokenizer.byte())


def test_what_becomes_of_a_long_prompt_is_one_of_two_things(model, tokenizer):
    with pytest.raises(ConfigError, match=r"long_prompt is 'slid'. Did you mean 'slide'\?"):
        TextGenerator(model, tokenizer, long_prompt="slid")


def test_a_directory_without_tokenizer_is_refused(tmp_path, model):
    save_model(model, tmp_path)
    with pytest.raises(TokenizerError):
        TextGenerator.load(tmp_path)


def test_an_answer_that_no_token_can_continue_is_an_error_or_a_finish_reason(gen):
    params = {"no_repeat_ngram_size": 1, "max_new_tokens": 15, "ignore_eos": True}
    with pytest.raises(LogitsError, match="first 14 of the answer") as caught:
        gen.generate("ab", **params)  # 14 of 16 tokens are left
    assert caught.value.rows == (0,)
    [[failed], [whole]] = gen.generate_batch(["ab", "b"], **params)
    assert (failed.finish_reason, len(failed.token_ids)) == ("error", 14)
    assert (whole.finish_reason, len(whole.token_ids)) == ("length", 15)
    assert list(gen.generate_stream("ab", **params))[-1].completion == failed
    assert free(gen)


def test_leaving_a_stream_early_frees_its_row_and_harms_no_other(gen):
    expected = gen.generate("cd", seed=4, ignore_eos=True)
    stream, other = (gen.generate_stream(text, seed=4, ignore_eos=True) for text in ("ab", "cd"))
    next(stream), next(other)
    assert gen.engine.num_free_rows == 2
    stream.close()
    assert gen.engine.num_free_rows == 3
    assert list(other)[-1].completion == expected
    assert free(gen)


def test_a_stream_that_is_never_read_holds_nothing(gen):
    gen.generate_stream("ab")
    assert gen.engine.step() == []


def test_an_interrupt_frees_the_rows_of_a_batch(gen, monkeypatch):
    class Impatient:
        def update(self, finished, tokens):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gen.generate_batch(PROMPTS, progress=Impatient())
    assert free(gen)
    assert gen.engine.step() == []
    fresh = TextGenerator(gen.model, gen.tokenizer)
    assert gen.generate("ab", seed=1) == fresh.generate("ab", seed=1)
