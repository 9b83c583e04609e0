"""Where a model's files are: a directory, or a Hub id whose files are downloaded or in the cache.

HF_HOME, HF_TOKEN and HF_HUB_OFFLINE (the cache only) are honoured, as huggingface_hub reads them.
"""

from __future__ import annotations

import re
from pathlib import Path

from stepwell.errors import WeightsError

_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


def locate(path_or_id: str | Path) -> Path:
    """The directory of a model: the path itself, or where the files of a Hub id have been put.

    Raises WeightsError where it is neither.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(
            f"{path} is a file, expected a model directory.", fix=f"use {path.parent}."
        )
    name = str(path_or_id)
    if not _HUB_ID.fullmatch(name) or (path.parent.is_dir() and path.parent != Path()):
        raise WeightsError(f"There is no directory {path}.", fix="check the path.")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    failures = (OSError, ValueError, getattr(errors, "HTTPError", OSError))
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except errors.GatedRepoError:
        raise WeightsError(
            f"{name} on the Hugging Face Hub is open only to those who accept its terms.",
            fix="accept them on its page and set HF_TOKEN.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{name!r} is neither a directory here nor a model on the Hugging Face Hub.",
            fix="check the spelling; for a private model set HF_TOKEN.",
        ) from None
    except failures as error:
        raise WeightsError(
            f"{name!r} is no directory here, and it could not be had from the Hugging Face Hub: "
            f"{_first_sentence(error)}.",
            fix="check the path, the network, and HF_HUB_OFFLINE (1: only what is in the cache).",
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
