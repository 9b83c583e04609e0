"""A model directory as llama.cpp's model file, with its real vocabulary; run by llama.cpp's Python.

    python gguf_writer.py MODEL FILE PEERS

PEERS is the folder above `peers`, whose gguf_file does the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(model: Path, path: Path, peers: str) -> None:
    """Writes the file, in float32."""
    sys.path.insert(0, peers)
    import gguf
    from peers.gguf_file import describe, gguf_name, tensors_of

    config = json.loads((model / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(str(path), "llama")
    made_up = {"add_tokenizer_model", "add_token_list", "add_token_scores", "add_token_types"}
    describe(Without(writer, made_up), config)
    add_vocabulary(writer, model)
    for name, array in tensors_of(model):
        count = next((count for part, count in heads.items() if f"{part}.weight" in name), None)
        writer.add_tensor(gguf_name(name), array if count is None else interleaved(array, count))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Without:
    """A writer whose methods of these names do nothing."""

    def __init__(self, writer: Any, names: set[str]) -> None:
        self._writer, self._names = writer, names

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name in self._names else getattr(self._writer, name)


def add_vocabulary(writer: Any, model: Path) -> None:
    """The byte-level BPE of the model's directory; a text begins with bos where one has a token."""
    told = json.loads((model / "tokenizer.json").read_text())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    by_id = {index: token for token, index in told["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in told["added_tokens"]}
    tokens = [{**by_id, **special}[index] for index in range(len(by_id | special))]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index in special else 1 for index in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(settings["eos_token"]))
    begins = settings.get("bos_token") is not None
    writer.add_add_bos_token(begins)
    if begins:
        writer.add_bos_token_id(tokens.index(settings["bos_token"]))


def interleaved(array: Any, heads: int) -> Any:
    """Query or key weights with the two halves that rotate together side by side."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
