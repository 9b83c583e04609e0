"""Laws of the tokenizer: what is lossless, what is refused, and what its parts agree on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from stepwell.errors import ConfigError, PromptError, TokenizerError
from stepwell.text import Tokenizer

from .conftest import CORPUS, LLAMA_ROLES, ROLES, sentencepiece_core

UNICODE = st.text(st.characters(codec="utf-8"), max_size=40)


def test_importing_text_loads_neither_torch_nor_transformers() -> None:
    check = (
        "import sys, stepwell.text; sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@settings(max_examples=200, deadline=None)
@given(text=UNICODE)
def test_bytes_and_byte_level_bpe_lose_nothing_of_any_text(
    kinds: dict[str, Tokenizer], text: str
) -> None:
    byte = Tokenizer.byte()
    assert byte.encode(text) == list(text.encode())
    assert byte.decode(byte.encode(text)) == text
    assert kinds["bpe"].decode(kinds["bpe"].encode(text), skip_special=False) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("abc de\n."), max_size=30))
def test_a_character_is_a_token_in_the_order_of_the_alphabet(
    kinds: dict[str, Tokenizer], text: str
) -> None:
    tokenizer = kinds["character"]
    assert tokenizer.encode(text) == ["abc de\n.".index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_character_is_refused_with_its_position_and_the_alphabet() -> None:
    tokenizer = Tokenizer.character("abc<s>", {"eos": "<s>x"})
    with pytest.raises(PromptError, match=r"'é' \(U\+00E9\) at position 6") as caught:
        tokenizer.encode("a<s>xcéx")
    assert "'<>abcs'" in caught.value.fix
    with pytest.raises(PromptError, match=r"^Text 1 of 2: .*'x'.* position 1"):
        tokenizer.encode_batch(["ab", "ax"])
    with pytest.raises(PromptError, match="position 2"):
        tokenizer.encode_with_offsets("ab\n")


def test_an_unknown_character_is_the_unk_token_where_one_is_declared() -> None:
    tokenizer = Tokenizer.character("ab", {"eos": "<eos>", "unk": "<unk>"})
    assert tokenizer.encode("axb\n<eos>") == [0, 2, 1, 2, tokenizer.eos_id]
    assert tokenizer.role("unk") == 2
    assert tokenizer.vocab_size == 4


def test_characters_that_the_library_would_drop_are_refused() -> None:
    core = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    assert core.encode("abxa").ids == [2, 0]
    for encode in (Tokenizer(core).encode, lambda text: Tokenizer(core).encode_batch([text])):
        with pytest.raises(PromptError, match=r"'x' \(U\+0078\) at position 2"):
            encode("abxa")
    assert Tokenizer(core).encode("aba") == [2, 0]


def test_a_lost_byte_of_a_character_is_refused() -> None:
    core = tokenizers.Tokenizer(models.BPE({"Ã": 0, "a": 1, "<e>": 2}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(["<e>"])
    assert core.encode("a<e>é").ids == [1, 2, 0]
    with pytest.raises(PromptError, match=r"'é'.* position 4"):
        Tokenizer(core).encode("a<e>é")


def test_an_unknown_word_is_refused() -> None:
    core = tokenizers.Tokenizer(models.WordLevel({"the": 0, "well": 1}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(PromptError, match="'steps' at position 4"):
        Tokenizer(core).encode("the steps")
    unigram = Tokenizer(tokenizers.Tokenizer(models.Unigram([("a", -1.0)])))
    with pytest.raises(PromptError, match="'ab'"):
        unigram.encode("ab")


@pytest.mark.parametrize("kind", ["character", "byte", "bpe", "llama"])
def test_half_a_surrogate_pair_is_refused(kinds: dict[str, Tokenizer], kind: str) -> None:
    with pytest.raises(PromptError, match="position 1"):
        kinds[kind].encode("a\ud83d")
    with pytest.raises(PromptError, match=r"Text 1 of 2: .* position 1"):
        kinds[kind].encode_batch(["a", "a\ud83d"])


def test_training_again_gives_the_same_tokenizer_in_any_process() -> None:
    train = (
        "from stepwell.text import Tokenizer; import sys;"
        "print(Tokenizer.train_bpe(eval(sys.argv[1]), 330, {'eos': '<eos>'}).fingerprint)"
    )
    command = [sys.executable, "-c", train, repr(CORPUS)]
    prints = {subprocess.check_output(command, text=True) for _ in range(3)}
    assert prints == {Tokenizer.train_bpe(CORPUS, 330, {"eos": "<eos>"}).fingerprint + "\n"}
    assert prints != {Tokenizer.train_bpe(CORPUS[:1], 330, {"eos": "<eos>"}).fingerprint + "\n"}


@pytest.mark.parametrize("vocab_size", [262, 300, 330])
def test_a_trained_vocabulary_has_the_size_asked_for_with_its_roles(vocab_size: int) -> None:
    tokenizer = Tokenizer.train_bpe(iter(CORPUS), vocab_size, ROLES)
    assert tokenizer.vocab_size == vocab_size == tokenizer.core.get_vocab_size()
    assert sorted(tokenizer.roles.values()) == list(range(vocab_size - len(ROLES), vocab_size))


def test_a_trained_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="258") as caught:
        Tokenizer.train_bpe(CORPUS, 258, ROLES)
    assert "261" in caught.value.fix


def test_merges_are_learned_from_the_texts() -> None:
    tokenizer = Tokenizer.train_bpe(["step step step step"], 259)
    assert len(tokenizer.encode("step")) == 1
    assert len(tokenizer.encode("pets")) == 4


def test_roles_name_the_ids_of_special_tokens(bpe: Tokenizer) -> None:
    assert set(bpe.roles) == set(ROLES)
    for role, token in ROLES.items():
        assert bpe.encode(token) == [bpe.role(role)] == [bpe.id_of(token)]
        assert bpe.decode([bpe.roles[role]]) == ""
    assert (bpe.bos_id, bpe.eos_id, bpe.pad_id) == tuple(map(bpe.role, ("bos", "eos", "pad")))
    assert bpe.role("unk") is None
    with pytest.raises(ConfigError, match="'eos'"):
        bpe.role("eoss")


def test_two_roles_can_share_a_token() -> None:
    tokenizer = Tokenizer.byte({"eos": "<end>", "pad": "<end>"})
    assert tokenizer.eos_id == tokenizer.pad_id == 256
    assert tokenizer.vocab_size == 257


@pytest.mark.parametrize(
    ("roles", "message"),
    [({"end": "<e>"}, "no role 'end'"), ({"eos": ""}, "empty"), ({"eos": "a"}, "of the alphabet")],
)
def test_roles_that_cannot_be_are_refused(roles: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tokenizer.character("abc", roles)


@pytest.mark.parametrize("alphabet", ["", ["a", "bc"]])
def test_an_alphabet_of_anything_but_characters_is_refused(alphabet: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="alphabet"):
        Tokenizer.character(alphabet)


def test_a_role_whose_token_the_vocabulary_lacks_is_refused() -> None:
    with pytest.raises(TokenizerError, match="'</s>'"):
        Tokenizer(tokenizers.Tokenizer(models.BPE({"a": 0}, [])), {"eos": "</s>"})


@pytest.mark.parametrize("kind", ["character", "byte", "bpe", "llama", "metaspace"])
def test_a_batch_is_each_text_alone(kinds: dict[str, Tokenizer], kind: str) -> None:
    texts = ["abc", "", "a b\nc.", "dead"] * 3
    assert kinds[kind].encode_batch(texts) == [kinds[kind].encode(text) for text in texts]
    assert kinds[kind].encode_batch([]) == []


@pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
def test_offsets_are_the_characters_of_each_token(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    text = "abc de." if kind == "character" else "The naïve step 😀 e\u0301nds"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    covered = [position for start, end in offsets for position in range(start, end)]
    assert sorted(set(covered)) == list(range(len(text)))
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        alone = tokenizer.decode([token_id])
        assert "�" in alone or alone == text[start:end]


def test_special_adds_what_the_file_puts_around_a_text(llama: Tokenizer, bpe: Tokenizer) -> None:
    assert llama.encode("hello", special=True) == [llama.bos_id, *llama.encode("hello")]
    assert bpe.encode("hello", special=True) == bpe.encode("hello")


def test_padding_truncation_and_dropout_of_a_file_are_ignored() -> None:
    plain = Tokenizer(sentencepiece_core(), LLAMA_ROLES)
    core = sentencepiece_core()
    core.enable_padding(length=9, pad_id=2, pad_token="</s>")
    core.enable_truncation(3)
    core.model.dropout = 0.9
    text = "hello hello world hello hello"
    assert {tuple(core.encode(text).ids) for _ in range(20)} != {tuple(plain.encode(text))}
    tokenizer = Tokenizer(core, LLAMA_ROLES)
    assert {tuple(tokenizer.encode(text)) for _ in range(20)} == {tuple(plain.encode(text))}
    assert tokenizer.fingerprint == plain.fingerprint


@pytest.mark.parametrize("kind", ["character", "byte", "bpe", "llama"])
def test_the_bytes_of_tokens_are_those_of_their_text(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = kinds[kind]
    text = "abc de." if kind == "character" else "hello naïve step 😀 hello"
    ids = tokenizer.encode(text)
    before = 1 if kind == "llama" else 0  # it puts a space before a text
    assert sum(tokenizer.byte_lengths[token] for token in ids) == len(text.encode()) + before
    assert all(tokenizer.byte_lengths[token] == 0 for token in tokenizer.special_ids)
    assert len(tokenizer.byte_lengths) == tokenizer.vocab_size


def test_a_token_reads_as_it_does_inside_a_text(kinds: dict[str, Tokenizer]) -> None:
    bpe, llama = kinds["bpe"], kinds["llama"]
    assert bpe.token(bpe.id_of("Ġstep")) == " step"
    assert bpe.token(bpe.id_of("Ċ")) == "\n"
    assert [bpe.token(byte) for byte in Tokenizer.byte().encode("é")] != ["é"]
    assert [Tokenizer.byte().token(byte) for byte in "é".encode()] == [r"\xc3", r"\xa9"]
    assert bpe.token(bpe.roles["eos"]) == "<eos>"
    assert [llama.token(llama.id_of(t)) for t in ("▁hello", "he", "▁", "<0xC3>", "</s>")] == [
        " hello",
        "he",
        " ",
        "<0xC3>",
        "</s>",
    ]
    assert kinds["wordpiece"].token(2) == "s"
    assert kinds["character"].token(6) == "\n"


def test_an_id_beyond_the_vocabulary_has_no_text_and_a_negative_one_is_refused(
    bpe: Tokenizer,
) -> None:
    assert bpe.token(bpe.vocab_size) == bpe.decode([bpe.vocab_size]) == ""
    for read in (bpe.token, lambda token_id: bpe.decode([0, token_id])):
        with pytest.raises(TokenizerError, match="-100"):
            read(-100)


def test_a_token_spelled_as_it_reads_gets_a_hint(bpe: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="' step'") as caught:
        bpe.id_of(" step")
    assert "'Ġstep'" in caught.value.fix


def test_the_fingerprint_tells_vocabularies_apart() -> None:
    prints = {Tokenizer.character(alphabet).fingerprint for alphabet in ("ab", "ba", "abc", "ab")}
    assert len(prints) == 3
