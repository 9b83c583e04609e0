"""The identity of a model's weights, by content."""

from __future__ import annotations

import hashlib

import torch

from stepwell.model.transformer import Transformer


def model_fingerprint(model: Transformer) -> str:
    """SHA-256 of configuration, number formats and every weight; about 1 s a gigabyte."""
    digest = hashlib.sha256(model.config.fingerprint.encode())
    for name, parameter in sorted(model.named_parameters()):
        data = parameter.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        digest.update(data.numpy().data)
    return digest.hexdigest()
