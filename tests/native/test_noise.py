"""The noise kernel draws the very bits that torch does, with every instruction set."""

from __future__ import annotations

import array
import os
import subprocess
import sys

import pytest
import torch

from stepwell.generate.noise import Address, random_words, uniform
from stepwell.native import library
from stepwell.native import noise as native

ADDRESSES = [Address(seed - 3, 7, seed % 2, 91 * seed, attempt=seed) for seed in range(6)]
SIZES = (1, 3, 4, 5, 31, 64, 1000, 8197)

pytestmark = pytest.mark.skipif(
    library.load() is None, reason=f"there are no kernels: {library.unavailable_reason()}"
)


def in_torch(addresses: list[Address], tokens: int) -> torch.Tensor:
    """Noise by its definition, from words that torch computes."""
    words = random_words(addresses, tokens)
    return (2 * words + 1).to(torch.float32).mul_(2.0**-33).clamp_(max=1 - 2.0**-24)


@pytest.mark.parametrize("tokens", SIZES)
def test_the_kernel_draws_the_bits_of_torch(tokens: int) -> None:
    drawn = uniform(ADDRESSES, tokens)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, in_torch(ADDRESSES, tokens))


def test_a_word_that_would_round_to_one_stays_below() -> None:
    address, token = Address(0, 0, 0, 124), 911_284
    word = random_words([address], torch.tensor([token])).item()
    assert float(torch.tensor((word + 0.5) * 2.0**-32)) == 1.0  # what the clamp is there for
    assert uniform([address], token + 1)[0, token].item() == 1 - 2.0**-24


def test_one_word_of_an_address_moves_the_noise() -> None:
    expected = in_torch(ADDRESSES, 64)
    for change in ({"seed": 9}, {"lane": 8}, {"choice": 5}, {"position": 1}, {"attempt": 77}):
        moved = [address._replace(**change) for address in ADDRESSES]
        assert not torch.equal(uniform(moved, 64), expected)


def test_without_kernels_torch_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uniform(ADDRESSES, 1000)
    monkeypatch.setattr(native, "_function", lambda: None)
    assert native.uniform(array.array("I", [1] * native.WORDS), 4) is None
    assert torch.equal(uniform(ADDRESSES, 1000), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_moves_no_bit(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(uniform(ADDRESSES, 50_257), in_torch(ADDRESSES, 50_257))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("choice", ["avx2", "baseline"])
def test_every_instruction_set_draws_the_same(choice: str) -> None:
    code = (
        "import torch; from stepwell.generate.noise import Address, uniform;"
        "print(uniform([Address(4, 7, 1, 3)], 777).view(torch.int32).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "STEPWELL_NATIVE": choice},
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot be had" in done.stderr:
        pytest.skip(f"this processor has no {choice}")
    drawn = uniform([Address(4, 7, 1, 3)], 777).view(torch.int32).tolist()
    assert done.stdout.strip() == str(drawn), done.stderr
