"""Tokenizer directories: which files they hold, how these are read and written.

Reads tokenizer.json, or vocab.json with merges.txt (GPT-2's), and the special tokens that
tokenizer_config.json, special_tokens_map.json and added_tokens.json declare. All of it is data:
nothing that a file names is imported or run.
"""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from stepwell.config import write_atomically, write_json
from stepwell.errors import TokenizerError, suggest
from stepwell.storage.sealed import resealed
from stepwell.storage.verified import check_files
from stepwell.text.build import byte_level
from stepwell.text.roles import ROLES

# The names that Hugging Face's files have for roles.
_FOREIGN_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "unk_token": "unk"}
_OWN_ROLES = "stepwell_roles"
# How an added token is looked for in a text, and whether decoding leaves it out.
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# What else tokenizer_config.json says and saving keeps.
_KEPT = ("chat_template", "model_max_length")
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_GPT2_END = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer directory holds; `roles` leads from a role to its token."""

    core: tokenizers.Tokenizer
    roles: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """The content of a tokenizer directory. Raises TokenizerError that names the file at fault.

    As in transformers, special_tokens_map.json and added_tokens.json count only where
    tokenizer_config.json has no added_tokens_decoder, and the former then goes before it.
    """
    check_files(directory, _FILES.__contains__, TokenizerError)
    settings_path, whole = directory / "tokenizer_config.json", directory / "tokenizer.json"
    settings = _read_optional(settings_path)
    core = _parse_core(whole) if whole.exists() else _read_gpt2(directory, settings)
    _declare(core, settings.get("added_tokens_decoder", {}), settings_path)
    roles = _read_roles(settings_path, core)
    if "added_tokens_decoder" not in settings:
        roles |= _read_roles(directory / "special_tokens_map.json", core)
    if not whole.exists():
        roles = _gpt2_roles(core) | roles
        _finish_gpt2(core, roles, settings)
    named = {role: token for role, token in roles.items() if token is not None}
    return TokenizerFiles(core, named, _kept_settings(directory, settings))


def write_tokenizer(directory: Path, files: TokenizerFiles) -> None:
    """Save tokenizer.json, tokenizer_config.json and a chat template as transformers reads them.

    The class named there is the one that takes tokenizer.json as it is: those of single model
    families rebuild half of it by their own rules. (Beside a config.json whose model_type is
    "qwen2", AutoTokenizer takes Qwen2's class whatever is named; PreTrainedTokenizerFast does not.)
    """
    added = files.core.get_added_tokens_decoder()
    own = {role: files.roles[role] for role in files.roles.keys() - _FOREIGN_ROLES.values()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(index): _properties(added[index]) for index in sorted(added)},
        **{key: files.roles.get(role) for key, role in _FOREIGN_ROLES.items()},
        _OWN_ROLES: dict(sorted(own.items())),
        **files.settings,
    }
    template_path = directory / "chat_template.jinja"
    with resealed(directory, _FILES):
        if isinstance(settings.get("chat_template"), str):
            write_atomically(template_path, settings.pop("chat_template"))
        else:
            template_path.unlink(missing_ok=True)
        write_atomically(directory / "tokenizer.json", files.core.to_str(pretty=True) + "\n")
        write_json(directory / "tokenizer_config.json", settings)


def _properties(token: AddedToken) -> dict[str, str | bool]:
    return {"content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}


def _read_gpt2(directory: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of vocab.json and merges.txt, with the tokens that added_tokens.json adds."""
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    if not (vocabulary.exists() and merges.exists()):
        raise TokenizerError(
            f"{directory} holds no tokenizer: no tokenizer.json, nor vocab.json and merges.txt.",
            fix="check the path; transformers' save_pretrained converts other formats.",
        )
    prefix_space = settings.get("add_prefix_space") is True
    core = byte_level(_parse_bpe(vocabulary, merges), prefix_space=prefix_space)
    added = directory / "added_tokens.json"
    if "added_tokens_decoder" not in settings:
        _declare(core, _read_optional(added), added)
    return core


def _gpt2_roles(core: tokenizers.Tokenizer) -> dict[str, str | None]:
    """What GPT-2's own files mean, which declare no special tokens: one that ends each text."""
    return {"bos": _GPT2_END, "eos": _GPT2_END} if core.token_to_id(_GPT2_END) is not None else {}


def _finish_gpt2(
    core: tokenizers.Tokenizer, roles: Mapping[str, str | None], settings: Mapping[str, Any]
) -> None:
    """Do what tokenizer.json would say: which tokens are special, and which go around a text."""
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    core.add_special_tokens([token for token in roles.values() if token and token not in special])
    around = {role: roles.get(role) for role in ("bos", "eos") if settings.get(f"add_{role}_token")}
    used = {role: token for role, token in around.items() if token is not None}
    if used:
        core.post_processor = processors.TemplateProcessing(
            single=[part for part in ("bos", "$A", "eos") if part in {"$A", *used}],
            special_tokens=[
                {"id": role, "ids": [core.token_to_id(token)], "tokens": [token]}
                for role, token in used.items()
            ],
        )


def _kept_settings(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: settings[key] for key in _KEPT if settings.get(key) is not None}
    template = directory / "chat_template.jinja"
    return {**kept, "chat_template": _read(template)} if template.exists() else kept


def _parse_core(path: Path) -> tokenizers.Tokenizer:
    content = _read(path)
    with _library_errors(path):
        return tokenizers.Tokenizer.from_str(content)


def _parse_bpe(vocabulary_path: Path, merges_path: Path) -> models.BPE:
    vocabulary = _read_object(vocabulary_path)
    odd = next((token for token, index in vocabulary.items() if not _is_id(index)), None)
    if odd is not None:
        raise _malformed(vocabulary_path, f"the id of {odd!r} is {vocabulary[odd]!r}")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise _malformed(vocabulary_path, "two tokens have the same id")
    merges = _parse_merges(merges_path, vocabulary)
    with _library_errors(merges_path):
        return models.BPE(vocabulary, merges)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _parse_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges in order. Only a first line can be a comment: `# #` further down is a merge."""
    lines = _read(path).split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], start=first + 1):
        if not line.strip(" "):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise _malformed(path, f"line {number}, {line!r}, is no merge of the vocabulary")
        merges.append((left, right))
    return merges


@contextlib.contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turns what the library raises at a malformed file into a TokenizerError that names it.

    That is a bare Exception, or a panic, which is no Exception at all.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise _malformed(path, str(error)) from None
        raise


def _declare(core: tokenizers.Tokenizer, tokens: Any, path: Path) -> None:
    """Add the tokens that a file declares with their ids, and check that they have these."""
    if not isinstance(tokens, Mapping):
        raise _malformed(path, "the added tokens are no object")
    entries = (_added_token(key, value, path) for key, value in tokens.items())
    declared = dict(sorted(entries, key=operator.itemgetter(0)))
    present = core.get_added_tokens_decoder()
    core.add_tokens([token for index, token in declared.items() if present.get(index) != token])
    for index, token in declared.items():
        actual = core.token_to_id(token.content)
        if actual != index:
            raise TokenizerError(
                f"{path} gives {token.content!r} the id {index}, the vocabulary {actual}.",
                fix="take all files of the tokenizer from one model.",
            )


def _added_token(key: str, value: Any, path: Path) -> tuple[int, AddedToken]:
    """One entry of added_tokens_decoder (id: properties) or of added_tokens.json (token: id)."""
    if _is_id(value):
        return value, AddedToken(key, normalized=False)
    if key.isdecimal() and isinstance(value, Mapping) and isinstance(value.get("content"), str):
        chosen = {flag: value[flag] for flag in _FLAGS if isinstance(value.get(flag), bool)}
        return int(key), AddedToken(value["content"], **chosen)
    raise _malformed(path, f"the added token {key!r} is {value!r}")


def _read_roles(path: Path, core: tokenizers.Tokenizer) -> dict[str, str | None]:
    """The token of each role that a file names; None where it says that there is none."""
    values = _read_optional(path)
    own = values.get(_OWN_ROLES, {})
    if not isinstance(own, Mapping):
        raise _malformed(path, f"{_OWN_ROLES} is no object")
    if unknown := own.keys() - set(ROLES):
        role = min(unknown)
        raise _malformed(path, f"there is no role {role!r}", fix=suggest(role, ROLES))
    foreign = {role: values[key] for key, role in _FOREIGN_ROLES.items() if key in values}
    roles = {role: _content(role, token, path) for role, token in {**foreign, **own}.items()}
    for role, token in roles.items():
        if token is not None and core.token_to_id(token) is None:
            raise TokenizerError(
                f"{path}: the {role} token is {token!r}, which the vocabulary lacks.",
                fix="correct the file, or take all files of the tokenizer from one model.",
            )
    return roles


def _content(role: str, token: Any, path: Path) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is not None and not isinstance(content, str):
        raise _malformed(path, f"the {role} token is {token!r}")
    return content


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.exists() else {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
        json.dumps(values, ensure_ascii=False).encode()  # JSON can hold half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise _malformed(path, str(error)) from None
    if not isinstance(values, dict):
        raise _malformed(path, f"expected an object, got {type(values).__name__}")
    return values


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}.") from None


def _malformed(path: Path, reason: str, *, fix: str = "") -> TokenizerError:
    return TokenizerError(f"{path} is malformed: {reason}.", fix=fix or "fetch or save it again.")
