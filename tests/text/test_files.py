"""Laws of tokenizer directories, against transformers reading and writing the same files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from stepwell.text import Tokenizer
from stepwell.text.spelling import BYTE_CHARACTERS

from .conftest import KINDS, LLAMA_ROLES, sentencepiece_core, write

GPT2 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gpt2_tokenizer"
TEXTS = [
    "abc de\n.",
    "The naïve step:  two  spaces, tabs\t\tand\r\n\n line ends ",
    "日本語 😀😃 👨‍👩‍👧 e\u0301 ñ \u00a0\u2028 �",
    "## #### 12345 'tis it's 3.14 <|endoftext|> <eos>>> <t>",
    "x = [i**2 for i in range(10)]  # comment",
]


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


@pytest.mark.parametrize("tokens_declared", [True, False])
def test_settings_and_map_of_special_tokens_count_as_for_transformers(
    trained: Path, tokens_declared: bool
) -> None:
    settings = {"eos_token": "A", "pad_token": None, "tokenizer_class": "GPT2Tokenizer"}
    settings |= {"added_tokens_decoder": {}} if tokens_declared else {}
    special = {"eos_token": "B", "pad_token": "C", "bos_token": "D", "unk_token": "E"}
    write(trained, special_tokens_map__json=special, tokenizer_config__json=settings)
    ours, theirs = Tokenizer.load(trained), peer(trained)
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.eos_id == ours.id_of("A" if tokens_declared else "B")


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_gpt2s_settings_say_what_goes_around_a_text(trained: Path, bos: bool, eos: bool) -> None:
    settings = {"add_bos_token": bos, "add_eos_token": eos, "tokenizer_class": "GPT2Tokenizer"}
    tokens = {"bos_token": "A", "eos_token": "B", "unk_token": "C", "pad_token": "D"}
    write(trained, tokenizer_config__json={**settings, **tokens})
    ours = Tokenizer.load(trained)
    assert_same_as_peer(ours, peer(trained), TEXTS[1:3])
    assert len(ours.encode("step", special=True)) == len(ours.encode("step")) + bos + eos


@pytest.mark.parametrize("legacy", [True, False])
def test_added_tokens_have_the_ids_that_files_declare(trained: Path, legacy: bool) -> None:
    first = len(json.loads((trained / "vocab.json").read_text()))
    ids = {"<pad>": first + 1, "<tool>": first, "<|end|>": first + 2}
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    roles = {"eos_token": "<|end|>", "pad_token": {"content": "<pad>"}}
    if legacy:
        write(trained, added_tokens__json=ids, special_tokens_map__json=roles)
    else:
        decoder = {
            str(token_id): {"content": token, "special": token != "<tool>", **flags}
            for token, token_id in ids.items()
        }
        write(trained, tokenizer_config__json={"added_tokens_decoder": decoder, **roles})
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
    write(
        trained,
        special_tokens_map__json={"unk_token": "A", "eos_token": "B"},
        added_tokens__json={"<other>": 999},
        tokenizer_config__json={"model_max_length": 5},
        chat_template__jinja="{{ other }}",
    )
    bpe.save(trained)
    loaded = Tokenizer.load(trained)
    assert (loaded.roles, loaded.fingerprint) == (bpe.roles, bpe.fingerprint)
    assert loaded.settings == {}
    assert_same_as_peer(bpe, peer(trained), TEXTS)
    assert peer(trained).chat_template is None


def test_a_llama_directory_keeps_its_roles_and_its_leading_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer(sentencepiece_core(), LLAMA_ROLES)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(shutil.copytree(tmp_path, tmp_path / "copy"))
    assert loaded.roles == {"bos": 1, "eos": 2, "unk": 0}
    assert loaded.decode(loaded.encode("hello world", special=True)) == "hello world"
