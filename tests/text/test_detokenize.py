"""Laws of incremental detokenization, against decoding all ids at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.text import IncrementalDecoder, Tokenizer
from stepwell.text.detokenize import _WindowStream, continuation

KINDS = [
    "character",
    "byte",
    "bpe",
    "llama",
    "metaspace",
    "wordpiece",
    "suffix",
    "no decoder",
    "rewriting",
]
HARD_TEXTS = [
    "hello world",
    "  two  spaces ",
    "日本語の文章",
    "😀😃 family 👨‍👩‍👧 flag 🇩🇪",
    "e\u0301 n\u0303 naïve",
    "the replacement character � itself ��",
    "\x00\x7f\u0080\u00a0\u2028\ufeff",
]


def pieces(tokenizer: Tokenizer, ids: Iterable[int], *, skip_special: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip_special=skip_special)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_pieces_of_any_ids_are_the_text_of_all_ids(
    kinds: dict[str, Tokenizer], kind: str, data: st.DataObject, skip_special: bool
) -> None:
    tokenizer = kinds[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=24))
    whole = tokenizer.decode(ids, skip_special=skip_special)
    assert "".join(pieces(tokenizer, ids, skip_special=skip_special)) == whole


@pytest.mark.parametrize("kind", ["llama", "metaspace"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_are_exact_where_spaces_and_bytes_are_dense(
    kinds: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = kinds[kind]
    tokens = ["▁", "▁▁", "▁hello", "a", "�", "</s>"]
    tokens += [f"<0x{byte:02X}>" for byte in (0x20, 0x41, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80, 0xFF)]
    few = st.sampled_from([tokenizer.id_of(token) for token in tokens])
    ids = data.draw(st.lists(few, max_size=14))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte", "bpe", "llama"])
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_text_split_over_bytes_comes_out_whole(
    kinds: dict[str, Tokenizer], kind: str, text: str
) -> None:
    shown = pieces(kinds[kind], kinds[kind].encode(text))
    assert "".join(shown) == text
    assert all(set(piece) <= set(text) for piece in shown)  # no half of a character among them


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_continuation_is_what_ids_add_to_the_text_before_them(
    kinds: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = kinds[kind]
    some_ids = st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=12)
    before, ids = data.draw(some_ids), data.draw(some_ids)
    if tokenizer.is_byte_level:  # a text, unlike its bytes, ends with a whole character
        before = tokenizer.encode(tokenizer.decode(before))
    added = continuation(tokenizer, before, ids)
    given_text, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
    if whole.startswith(given_text):
        assert given_text + added == whole
    else:  # bytes that broke the last character before them, or a decoder that rewrote it
        assert added in (tokenizer.decode(ids), whole[len(whole) - len(added) :])
    decoder = IncrementalDecoder(tokenizer, after=before)
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == added


@pytest.mark.parametrize("kind", ["llama", "metaspace"])
def test_a_space_at_the_beginning_of_a_continuation_stays(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = kinds[kind]
    hello = [tokenizer.id_of("▁hello")]
    assert tokenizer.decode(hello) == "hello"
    assert continuation(tokenizer, [], hello) == "hello"
    for before in (hello, [1, *hello, 2], tokenizer.encode("日本"), tokenizer.encode(" ☃")):
        assert continuation(tokenizer, before, hello) == " hello"


def test_bytes_go_on_after_bytes_unless_they_break_a_character(llama: Tokenizer) -> None:
    before = llama.encode("é")
    assert continuation(llama, before, llama.encode("ü")[1:]) == "ü"
    assert continuation(llama, before, [llama.id_of("<0xFF>"), llama.id_of("a")]) == "�a"


def test_decoding_each_token_alone_breaks_the_law(bpe: Tokenizer, llama: Tokenizer) -> None:
    for tokenizer, text in ((bpe, "☃ snow"), (llama, "hello world")):
        ids = tokenizer.encode(text)
        alone = "".join(tokenizer.decode([token_id]) for token_id in ids)
        assert alone != tokenizer.decode(ids) == "".join(pieces(tokenizer, ids))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=12))
def test_of_utf8_bytes_only_an_incomplete_character_is_held_back(
    kinds: dict[str, Tokenizer], text: str
) -> None:
    data, shown = text.encode(), ""
    decoder = IncrementalDecoder(kinds["byte"])
    for length, byte in enumerate(data, start=1):
        shown += decoder.push(byte)
        assert shown == data[:length].decode(errors="ignore")
    assert decoder.flush() == ""


def test_invalid_bytes_become_what_decode_makes_of_them(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte"]
    for data in (
        b"\xf0\x80a",
        b"\xed\xa0\x80",
        b"\xe2\x82",
        b"\xf4\x90\x80\x80",
        b"\xff" * 9,
        b"\x80",
    ):
        assert (
            "".join(pieces(tokenizer, data))
            == tokenizer.decode(data)
            == data.decode(errors="replace")
        )


def test_a_run_of_byte_tokens_waits_because_a_bad_byte_replaces_all_of_it(llama: Tokenizer) -> None:
    good, bad = (
        [llama.id_of(f"<0x{byte:02X}>") for byte in data] for data in (b"\xc3\xa9", b"\xff")
    )
    close = llama.id_of("a")
    assert pieces(llama, [*good, close]) == ["", "", "éa", ""]
    assert pieces(llama, [*good, *bad, close]) == ["", "", "", "���a", ""]


@pytest.mark.parametrize("kind", ["character", "llama", "metaspace", "wordpiece", "no decoder"])
def test_text_is_shown_at_once_where_tokens_are_no_bytes(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = kinds[kind]
    ids = [tokenizer.id_of("a")] * 4
    shown, decoder = "", IncrementalDecoder(tokenizer)
    for length, token_id in enumerate(ids, start=1):
        shown += decoder.push(token_id)
        assert shown == tokenizer.decode(ids[:length])


def test_decoders_that_change_what_stood_show_nothing_before_the_end(
    kinds: dict[str, Tokenizer],
) -> None:
    assert pieces(kinds["rewriting"], [0, 1, 2]) == ["", "", "", "a."]
    assert pieces(kinds["suffix"], [0, 4, 0]) == ["", "", "", "a a"]


def test_a_special_token_is_left_out_or_shown_as_decode_does(llama: Tokenizer) -> None:
    ids = [1, *llama.encode("hello"), 2, *llama.encode("world")]
    for skip_special in (True, False):
        shown = "".join(pieces(llama, ids, skip_special=skip_special))
        assert shown == llama.decode(ids, skip_special=skip_special)
        assert ("</s>" in shown) is not skip_special


@pytest.mark.parametrize("kind", ["byte", "llama"])
def test_after_a_flush_a_new_sequence_begins(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    decoder, shown = IncrementalDecoder(tokenizer), []
    ids = tokenizer.encode(" hello ☃")[:-1]
    for _ in range(2):
        shown.append("".join([*map(decoder.push, ids), decoder.flush()]))
    assert shown == [tokenizer.decode(ids)] * 2
    assert decoder.flush() == ""


def worst_cases(tokenizer: Tokenizer, length: int) -> list[list[int]]:
    units: list[Sequence[str]] = [["a"], ["▁"], ["<0xFF>"], ["<0xC3>", "a"], ["</s>"], ["▁", "<s>"]]
    return [[tokenizer.id_of(t) for t in unit] * (length // len(unit)) for unit in units]


def test_work_per_token_does_not_grow(llama: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0
    create = _WindowStream.__init__

    def counting(stream: _WindowStream, decode, **options: bool) -> None:  # type: ignore[no-untyped-def]
        def count(tokens: list[str]) -> str:
            nonlocal decoded
            decoded += len(tokens)
            return str(decode(tokens))

        create(stream, count, **options)

    monkeypatch.setattr(_WindowStream, "__init__", counting)
    for ids in worst_cases(llama, 600):
        for skip_special in (True, False):
            decoded = 0
            pieces(llama, ids, skip_special=skip_special)
            assert decoded <= 6 * len(ids)  # all ids at each token would be 300 * len(ids)
