"""A Llama model directory as llama.cpp's model file, good for timing only.

The vocabulary is made up and rotary positions are left in Hugging Face's order of channels, which
costs the same and means something else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found,unused-ignore]
import numpy as np

FILE_TYPES = {"bf16": ("BF16", 32), "int8": ("Q8_0", 7)}
"""Our word for the weights; the name and the number of llama.cpp's."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

Array = np.ndarray[Any, np.dtype[np.float32]]


def gguf_of(model: Path, weights: str) -> Path:
    """The file beside the model directory, written where it is missing or older than the model."""
    path = model.with_name(f"{model.name}-{FILE_TYPES[weights][0].lower()}.gguf")
    newest = max(file.stat().st_mtime for file in model.glob("model*.safetensors"))
    if not path.exists() or path.stat().st_mtime < newest:
        unfinished = path.with_suffix(f".{os.getpid()}")
        write_gguf(model, weights, unfinished)
        unfinished.replace(path)
    return path


def write_gguf(model: Path, weights: str, path: Path) -> None:
    """Writes the file."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama", f"only Llama models, not {config['model_type']}"
    name, number = FILE_TYPES[weights]
    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(str(path), "llama")
    describe(writer, config)
    writer.add_file_type(number)
    for spelled, array in tensors_of(model):
        if array.ndim == 1:
            writer.add_tensor(gguf_name(spelled), array)
        else:
            packed = gguf.quants.quantize(array, kind)
            writer.add_tensor(gguf_name(spelled), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: Any, config: dict[str, Any]) -> None:
    """The model's shape, and a vocabulary of made-up words."""
    heads, size = config["num_attention_heads"], config["vocab_size"]
    rope = config.get("rope_parameters") or config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    words = [b"<unk>", b"<s>", b"</s>", *(f"<{index}>".encode() for index in range(3, size))]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *[1] * (size - 3)])


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of a Llama."""
    for theirs, short in NAMES.items():
        name = name.replace(theirs, short)
    return name


def tensors_of(model: Path) -> Iterator[tuple[str, Array]]:
    """Names and values, float32, of all safetensors files of a directory, one by one."""
    for path in sorted(model.glob("model*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
            for name, entry in entries.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    file.seek(8 + length + begin)
                    yield name, floats(file.read(end - begin), entry["dtype"], entry["shape"])


def floats(raw: bytes, dtype: str, shape: list[int]) -> Array:
    """The values of a stored tensor. Bfloat16, which numpy lacks, is the upper half of float32."""
    if dtype == "BF16":
        widened = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return widened.view("<f4").reshape(shape)
    kinds = {"F32": "<f4", "F16": "<f2"}
    assert dtype in kinds, f"weights in {dtype} are not converted"
    return np.frombuffer(raw, kinds[dtype]).astype(np.float32).reshape(shape)
