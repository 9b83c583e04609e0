"""Small tokenizers of each kind, made with the `tokenizers` library or by us, and directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from stepwell.text import Tokenizer

CORPUS = [
    "The well has steps, and each step goes a little deeper than the step before it.\n",
    "def steps(depth):\n    return [step + 1 for step in range(depth)]  ## 12345 #### end\n",
    "Wasser, naïve café, 日本語の文章, 😀😃 and e\u0301 combine.\n",
] * 3
ROLES = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "question_end": ">>", "think_start": "<t>"}


def sentencepiece_core(*, metaspace: bool = False) -> tokenizers.Tokenizer:
    """What Llama 2 has: ▁ for spaces, one put before the text, and bytes for rare characters.

    With `metaspace` the space is put before by the pre-tokenizer, and nothing is in front of bytes.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdehlorw", "�", "he", "ll", "hell", "hello", "▁hello", "▁w", "or", "▁▁"]
    merges = ["h e", "l l", "he ll", "hell o", "▁ hello", "▁ w", "o r", "▁ ▁"]
    core = tokenizers.Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    if metaspace:
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        return core
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def wordpiece_core() -> tokenizers.Tokenizer:
    tokens = ["[UNK]", "step", "##s", "##well", "a", ".", "'", "s"]
    core = tokenizers.Tokenizer(
        models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    core.decoder = decoders.WordPiece(cleanup=True)
    return core


def suffix_core() -> tokenizers.Tokenizer:
    tokens = ["a", "b", "a</w>", "b</w>", "</w>"]
    core = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    core.decoder = decoders.BPEDecoder("</w>")
    return core


def rewriting_core() -> tokenizers.Tokenizer:
    """A decoder that can change what stands: it rewrites the whole text once it is put together."""
    core = tokenizers.Tokenizer(models.WordLevel({"a": 0, " ": 1, ".": 2, "b": 3}))
    core.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(" .", ".")])
    return core


LLAMA_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
KINDS = {
    "character": lambda: Tokenizer.character("abc de\n.", ROLES),
    "byte": lambda: Tokenizer.byte(ROLES),
    "bpe": lambda: Tokenizer.train_bpe(CORPUS, 330, ROLES),
    "llama": lambda: Tokenizer(sentencepiece_core(), LLAMA_ROLES),
    "metaspace": lambda: Tokenizer(sentencepiece_core(metaspace=True), LLAMA_ROLES),
    "wordpiece": lambda: Tokenizer(wordpiece_core()),
    "suffix": lambda: Tokenizer(suffix_core()),
    "no decoder": lambda: Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}))),
    "rewriting": lambda: Tokenizer(rewriting_core()),
}


@pytest.fixture(scope="session")
def kinds() -> dict[str, Tokenizer]:
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture(scope="session")
def bpe(kinds: dict[str, Tokenizer]) -> Tokenizer:
    return kinds["bpe"]


@pytest.fixture(scope="session")
def llama(kinds: dict[str, Tokenizer]) -> Tokenizer:
    return kinds["llama"]


def write(directory: Path, **files: Any) -> Path:
    """A directory with files of the given names (dots as __) and contents."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return directory
