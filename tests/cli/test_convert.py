"""Converting: another number format, and .pt files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepwell.generate.text import TextGenerator
from stepwell.model.weights import load_model


def test_another_format_keeps_the_model_and_its_tokenizer(run, trained: Path, tmp_path) -> None:
    out = tmp_path / "half"
    ended = run("convert", trained, out, "--dtype", "bfloat16", "--json")
    assert ended.json["dtype"] == "bfloat16"
    assert ended.json["parameters"] == 3424
    assert ended.json["bytes"] == (out / "model.safetensors").stat().st_size
    expected = load_model(trained).to(torch.bfloat16).state_dict()
    for name, value in load_model(out).state_dict().items():
        assert torch.equal(value, expected[name]), name
    words = {"temperature": 0.0, "max_new_tokens": 3}
    assert TextGenerator.load(out, device="cpu").generate("abcd>", **words).text
    kept = (out / "generation_config.json").read_text()
    assert kept == (trained / "generation_config.json").read_text()
    assert not (out / "run.yaml").exists()


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_pt_file_becomes_a_model_directory(run, trained: Path, tmp_path: Path, dtype) -> None:
    from safetensors.torch import load_file

    tensors = load_file(trained / "model.safetensors")
    torch.save({"model": tensors}, tmp_path / "weights.pt")
    flags = ["--dtype", dtype] if dtype else []
    out = tmp_path / "out"
    ended = run("convert", tmp_path / "weights.pt", out, "--config", trained, *flags)
    assert ended.code == 0
    assert "3.4k parameters" in ended.out
    model = load_model(out)
    assert model.dtype == getattr(torch, dtype or "float32")
    for name, value in load_model(trained).state_dict().items():
        assert torch.equal(model.state_dict()[name].float(), value)
