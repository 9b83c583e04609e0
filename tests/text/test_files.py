"""Laws of tokenizer directories, against transformers reading and writing the same files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from stepwell.errors import TokenizerError
from stepwell.text import Tokenizer
from stepwell.text.spelling import BYTE_CHARACTERS

from .conftest import KINDS, LLAMA_ROLES, sentencepiece_core

GPT2 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gpt2_tokenizer"
TEXTS = [
    "abc de\n.",
    "The naïve step:  two  spaces, tabs\t\tand\r\n\n line ends ",
    "日本語 😀😃 👨‍👩‍👧 e\u0301 ñ \u00a0\u2028 �",
    "## #### 12345 'tis it's 3.14 <|endoftext|> <eos>>> <t>",
    "x = [i**2 for i in range(10)]  # comment",
]


def write(directory: Path, **files: Any) -> Path:
    """A directory with files of the given names (dots as __) and contents."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return directory


def gpt2_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """A byte-level BPE as GPT-2's pair of files."""
    model = json.loads(tokenizer.core.to_str())["model"]
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    return {"vocab__json": model["vocab"], "merges__txt": f"#version: 0.2\n{merges}\n"}


@pytest.fixture
def trained(bpe: Tokenizer, tmp_path: Path) -> Path:
    return write(tmp_path / "gpt2", **gpt2_files(bpe))


def peer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def assert_same_as_peer(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True) == theirs.encode(text)
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == expected
    for role, key in (("bos", "bos_token"), ("eos", "eos_token"), ("pad", "pad_token")):
        assert ours.role(role) == getattr(theirs, f"{key}_id")


@pytest.mark.parametrize("model_type", [None, "llama", "mistral", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", ["character", "byte", "bpe", "llama", "metaspace"])
def test_what_we_save_transformers_loads_with_the_same_ids(
    kinds: dict[str, Tokenizer], kind: str, model_type: str | None, tmp_path: Path
) -> None:
    if model_type is not None:
        write(tmp_path, config__json={"model_type": model_type})
    kinds[kind].save(tmp_path)
    texts = TEXTS[:1] if kind == "character" else TEXTS
    assert_same_as_peer(kinds[kind], peer(tmp_path), texts)


@pytest.mark.parametrize("kind", ["character", "bpe", "llama"])
def test_beside_a_qwen2_model_the_class_we_name_loads_the_same_ids(
    kinds: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    write(tmp_path, config__json={"model_type": "qwen2"})
    kinds[kind].save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert_same_as_peer(kinds[kind], theirs, TEXTS[:1])


def test_qwen2s_own_tokenizer_keeps_its_ids(trained: Path, tmp_path: Path) -> None:
    write(trained, config__json={"model_type": "qwen2"})
    theirs = transformers.Qwen2Tokenizer.from_pretrained(trained)
    theirs.save_pretrained(trained)
    ours = Tokenizer.load(trained)
    ours.save(trained)
    assert_same_as_peer(ours, theirs, TEXTS)
    assert_same_as_peer(ours, peer(trained), TEXTS)


def test_a_class_of_one_family_would_rebuild_the_tokenizer(tmp_path: Path) -> None:
    character = KINDS["character"]()
    character.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace("PreTrainedTokenizerFast", "GPT2Tokenizer"))
    theirs = peer(tmp_path).encode("abc de", add_special_tokens=False)
    assert theirs != character.encode("abc de")


@pytest.mark.parametrize("kind", ["character", "byte", "bpe", "llama", "metaspace", "wordpiece"])
def test_what_we_save_we_load(kinds: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = kinds[kind]
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.roles == tokenizer.roles
    assert loaded.special_ids == tokenizer.special_ids
    assert loaded.vocab_size == tokenizer.vocab_size
    loaded.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "new" / "folder" / name).read_bytes()


def test_own_roles_are_kept_beside_those_of_transformers(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["stepwell_roles"] == {"question_end": ">>", "think_start": "<t>"}
    assert (settings["eos_token"], settings["unk_token"]) == ("<eos>", None)


def test_what_transformers_saves_we_load(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_as_peer(Tokenizer.load(tmp_path / "theirs"), theirs, TEXTS)


@pytest.mark.parametrize("version_line", [True, False])
def test_vocabulary_and_merges_give_the_ids_of_gpt2s_tokenizer(
    trained: Path, version_line: bool
) -> None:
    merges = trained / "merges.txt"
    if not version_line:
        merges.write_text(merges.read_text().partition("\n")[2])
    theirs = transformers.GPT2Tokenizer(str(trained / "vocab.json"), str(merges))
    ours = Tokenizer.load(trained)
    assert "#" in merges.read_text().partition("\n")[2]
    for text in TEXTS:
        plain = text.replace("<|endoftext|>", "")
        assert ours.encode(plain) == theirs.encode(plain)
        assert ours.decode(ours.encode(plain)) == plain == theirs.decode(theirs.encode(plain))


def test_a_merge_that_begins_with_a_hash_is_no_comment(tmp_path: Path) -> None:
    vocabulary = [*BYTE_CHARACTERS, "##", "####"]
    files = {
        "vocab__json": {token: index for index, token in enumerate(vocabulary)},
        "merges__txt": "#version: 0.2\n# #\n## ##\n",
    }
    assert Tokenizer.load(write(tmp_path, **files)).encode("####") == [257]
    files["merges__txt"] = "# #\r\n## ##\r\n"
    assert Tokenizer.load(write(tmp_path, **files)).encode("####") == [257]


@pytest.mark.skipif(not GPT2.exists(), reason="GPT-2's vocabulary is not here")
def test_gpt2s_own_files_give_its_ids() -> None:
    theirs = transformers.GPT2Tokenizer(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt"))
    ours = Tokenizer.load(GPT2)
    assert ours.vocab_size == 50257
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (50256, 50256, None)
    assert_same_as_peer(ours, theirs, TEXTS)
    assert ours.encode("Hello world") == [15496, 995]


def test_gpt2s_own_files_mean_their_end_to_be_bos_and_eos(trained: Path) -> None:
    vocabulary = json.loads((trained / "vocab.json").read_text())
    end = len(vocabulary)
    write(trained, vocab__json={**vocabulary, "<|endoftext|>": end})
    assert dict(Tokenizer.load(trained).roles) == {"bos": end, "eos": end}
    assert Tokenizer.load(trained).encode("<|endoftext|>") == [end]
    write(trained, tokenizer_config__json={"bos_token": None, "eos_token": "!"})
    assert dict(Tokenizer.load(trained).roles) == {"eos": vocabulary["!"]}


def test_a_prefix_space_is_put_where_the_settings_ask_for_it(trained: Path) -> None:
    write(trained, tokenizer_config__json={"add_prefix_space": True})
    theirs = transformers.GPT2Tokenizer.from_pretrained(trained)
    ours = Tokenizer.load(trained)
    assert ours.encode("step") == theirs.encode("step") == ours.encode(" step")


@pytest.mark.parametrize("file", ["tokenizer_config__json", "special_tokens_map__json"])
@pytest.mark.parametrize("form", [lambda token: token, lambda token: {"content": token}])
def test_special_tokens_become_roles(trained: Path, file: str, form: Callable[[str], Any]) -> None:
    tokens = {"bos_token": "A", "eos_token": "B", "pad_token": "C", "unk_token": "D"}
    write(
        trained, **{file: {key: form(token) for key, token in tokens.items()} | {"sep_token": "E"}}
    )
    tokenizer = Tokenizer.load(trained)
    expected = {key.removesuffix("_token"): tokenizer.id_of(token) for key, token in tokens.items()}
    assert tokenizer.roles == expected
    assert tokenizer.special_ids == set(expected.values())
    assert tokenizer.decode(tokenizer.encode("A step B")) == " step "


def test_the_settings_win_over_the_map_of_special_tokens(trained: Path) -> None:
    write(trained, special_tokens_map__json={"eos_token": "A", "pad_token": "P", "bos_token": "Q"})
    write(trained, tokenizer_config__json={"eos_token": "B", "pad_token": None})
    tokenizer = Tokenizer.load(trained)
    assert tokenizer.roles == {"eos": tokenizer.id_of("B"), "bos": tokenizer.id_of("Q")}


def test_added_tokens_have_the_ids_that_files_declare(trained: Path, bpe: Tokenizer) -> None:
    first = len(json.loads((trained / "vocab.json").read_text()))
    entry = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    write(
        trained,
        added_tokens__json={"<pad>": first + 1, "<tool>": first},
        tokenizer_config__json={
            "added_tokens_decoder": {
                str(first + 2): {"content": "<|end|>", "special": True, **entry},
                str(first): {"content": "<tool>", "special": False, **entry},
            },
            "eos_token": "<|end|>",
            "pad_token": {"content": "<pad>"},
        },
    )
    tokenizer = Tokenizer.load(trained)
    assert tokenizer.encode("a<tool><|end|><pad>")[1:] == [first, first + 2, first + 1]
    assert (tokenizer.eos_id, tokenizer.pad_id) == (first + 2, first + 1)
    assert tokenizer.special_ids == {first + 1, first + 2}
    tokenizer.save(trained)
    assert_same_as_peer(tokenizer, peer(trained), [*TEXTS, "a<tool><|end|><pad>"])


def test_a_chat_template_and_the_longest_length_are_kept(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"chat_template": "{{ 1 }}", "model_max_length": 64}
    path.write_text(json.dumps(settings))
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    assert peer(tmp_path / "again").chat_template == "{{ 1 }}"
    assert peer(tmp_path / "again").model_max_length == 64
    write(tmp_path, chat_template__jinja="{{ 2 }}")
    assert Tokenizer.load(tmp_path).settings["chat_template"] == "{{ 2 }}"


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
        ({**GOOD, "special_tokens_map__json": {"pad_token": "[PAD]"}}, "special_tokens_map.json"),
        ({**GOOD, "added_tokens__json": {"<x>": "y"}}, "added_tokens.json"),
    ],
)
def test_files_at_fault_are_named(files: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert Tokenizer.load(write(tmp_path / "good", **GOOD)).encode("##") == [256]
    with pytest.raises(TokenizerError, match=named) as caught:
        Tokenizer.load(write(tmp_path / "bad", **files))
    assert len(str(caught.value).splitlines()) <= 3


def test_files_that_cannot_be_read_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    (trained / "vocab.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        Tokenizer.load(trained)
    (trained / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(trained)


def test_nothing_in_a_tokenizer_directory_runs(bpe: Tokenizer, tmp_path: Path) -> None:
    directory, trace = tmp_path / "evil", tmp_path / "it-ran"
    bpe.save(directory)
    code = f"open({str(trace)!r}, 'w'); class Evil: pass"
    for name in ("tokenization_evil.py", "__init__.py", "sitecustomize.py", "tokenizers.py"):
        (directory / name).write_text(code)
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {
        "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]},
        "tokenizer_class": "Evil",
        "chat_template": f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}} {code}",
    }
    path.write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.encode(TEXTS[1]) == bpe.encode(TEXTS[1])
    tokenizer.save(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    assert not trace.exists()


def test_saving_over_another_tokenizer_leaves_nothing_of_it(bpe: Tokenizer, trained: Path) -> None:
    write(trained, special_tokens_map__json={"unk_token": "A", "eos_token": "B"})
    bpe.save(trained)
    assert Tokenizer.load(trained).roles == bpe.roles
    assert Tokenizer.load(trained).fingerprint == bpe.fingerprint


def test_a_llama_directory_keeps_its_roles_and_its_leading_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer(sentencepiece_core(), LLAMA_ROLES)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(shutil.copytree(tmp_path, tmp_path / "copy"))
    assert loaded.roles == {"bos": 1, "eos": 2, "unk": 0}
    assert loaded.decode(loaded.encode("hello world", special=True)) == "hello world"
