"""Laws of tokenizer directories that are incomplete, malformed or put together from two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.errors import TokenizerError
from stepwell.text import Tokenizer
from stepwell.text.spelling import BYTE_CHARACTERS

from .conftest import write

GOOD_VOCABULARY = {token: index for index, token in enumerate([*BYTE_CHARACTERS, "##"])}
PANIC = {"model": {"type": "BPE", "vocab": {"#": 0, "é": 1}, "merges": ["# é"]}, "added_tokens": []}
GOOD = {"vocab__json": GOOD_VOCABULARY, "merges__txt": "# #\n"}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, "tokenizer.json"),
        ({"vocab__json": GOOD_VOCABULARY}, "merges.txt"),
        ({"tokenizer__json": "{"}, "tokenizer.json"),
        ({"tokenizer__json": {"model": {"type": "Evil"}}}, "tokenizer.json"),
        ({"tokenizer__json": PANIC}, "tokenizer.json"),
        ({**GOOD, "vocab__json": "[" * 100_000}, "vocab.json"),
        ({**GOOD, "vocab__json": ["a"]}, "vocab.json"),
        ({**GOOD, "vocab__json": {"a": "0"}}, "vocab.json"),
        ({**GOOD, "vocab__json": {"a": -1}}, "vocab.json"),
        ({**GOOD, "vocab__json": {"a": 1, "b": 1}}, "vocab.json"),
        ({**GOOD, "merges__txt": "# #\n# # #\n"}, "merges.txt.*line 2"),
        ({**GOOD, "merges__txt": "##\n"}, "merges.txt.*line 1"),
        ({**GOOD, "merges__txt": "# é\n"}, "merges.txt"),
        ({**GOOD, "tokenizer_config__json": "null"}, "tokenizer_config.json"),
        ({**GOOD, "tokenizer_config__json": {"eos_token": "</s>"}}, "tokenizer_config.json.*</s>"),
        ({**GOOD, "tokenizer_config__json": {"eos_token": 5}}, "tokenizer_config.json"),
        ({**GOOD, "tokenizer_config__json": {"stepwell_roles": []}}, "tokenizer_config.json"),
        ({**GOOD, "tokenizer_config__json": {"stepwell_roles": {"end": "a"}}}, "tokenizer_config"),
        ({**GOOD, "tokenizer_config__json": {"added_tokens_decoder": ["x"]}}, "tokenizer_config"),
        (
            {**GOOD, "tokenizer_config__json": {"added_tokens_decoder": {"x": 1.5}}},
            "tokenizer_conf",
        ),
        (
            {**GOOD, "tokenizer_config__json": {"added_tokens_decoder": {"7": {"content": "<e>"}}}},
            "tokenizer_config.json.* 7, .* 257",
        ),
        ({**GOOD, "tokenizer_config__json": {"eos_token": "\ud800"}}, "tokenizer_config.json"),
        ({**GOOD, "vocab__json": {"\ud800": 0}, "merges__txt": ""}, "vocab.json"),
        ({**GOOD, "added_tokens__json": {"\ud800": 257}}, "added_tokens.json"),
        ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {"\ud800": 0}}}}, "tokenizer.json"),
        ({**GOOD, "special_tokens_map__json": {"pad_token": "[PAD]"}}, "special_tokens_map.json"),
        ({**GOOD, "added_tokens__json": {"<x>": "y"}}, "added_tokens.json"),
    ],
)
def test_files_at_fault_are_named(files: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert Tokenizer.load(write(tmp_path / "good", **GOOD)).encode("##") == [256]
    with pytest.raises(TokenizerError, match=named) as caught:
        Tokenizer.load(write(tmp_path / "bad", **files))
    assert len(str(caught.value).splitlines()) <= 3


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "good", **GOOD)
    with pytest.raises(TokenizerError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    (directory / "vocab.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        Tokenizer.load(directory)
    (directory / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(directory)


KEYS = st.sampled_from(
    [
        "eos_token",
        "added_tokens_decoder",
        "stepwell_roles",
        "eos",
        "content",
        "257",
        "258",
        "special",
    ]
) | st.text(st.characters(), max_size=2)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("!"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=6,
)
TOKENS = st.sampled_from([*"!#éx", "##", "\ud800", "<|endoftext|>"])
VOCABULARIES = st.lists(TOKENS, unique=True).map(
    lambda tokens: {token: index for index, token in enumerate(tokens)}
) | st.dictionaries(TOKENS, st.integers(-1, 6) | JSON)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_the_files_hold_loading_works_or_says_which_file_is_at_fault(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = ["tokenizer_config__json", "special_tokens_map__json", "added_tokens__json"]
    files = {name: data.draw(st.dictionaries(KEYS, JSON) | JSON) for name in names}
    files["vocab__json"] = data.draw(st.just(GOOD_VOCABULARY) | VOCABULARIES)
    files["merges__txt"] = data.draw(st.just("# #\n") | st.text("#! \néx", max_size=6))
    directory = write(tmp_path_factory.mktemp("any"), **files)
    fault = ""
    try:
        Tokenizer.load(directory)
    except TokenizerError as error:
        fault = error.problem
    assert fault == "" or str(directory) in fault
