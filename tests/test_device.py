"""Devices, number formats and threads by the names that people type."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from stepwell.device import describe_device, parse_dtype, pick_device, set_threads
from stepwell.errors import ConfigError, DeviceError

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


def test_auto_is_a_device_that_computes() -> None:
    device = pick_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@NO_CUDA
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused_with_a_fix(name: str) -> None:
    with pytest.raises(DeviceError, match=f"{name}.* number of cuda devices here is 0") as caught:
        pick_device(name)
    assert "cpu" in caught.value.fix


def test_the_second_of_one_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda") == torch.device("cuda")
    assert pick_device("auto") == torch.device("cuda")
    with pytest.raises(DeviceError, match="cuda:1"):
        pick_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "", "cpu:1", "xpu"])
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="is no device"):
        pick_device(name)


def test_dtypes_by_name() -> None:
    assert parse_dtype(None) is None
    assert parse_dtype("bfloat16") == parse_dtype("torch.bfloat16") == torch.bfloat16
    assert parse_dtype(torch.float16) == torch.float16


@pytest.mark.parametrize("name", ["bflot16", "int8", torch.int8, "", "auto", "__doc__"])
def test_formats_that_no_model_is_kept_in_are_refused(name: str | torch.dtype) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        parse_dtype(name)


def test_a_misspelt_dtype_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        parse_dtype("bflot16")


def test_threads_are_set_and_described() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert describe_device(torch.device("cpu")) == "cpu, 1 thread"
        set_threads(2)
        assert describe_device(torch.device("cpu")) == "cpu, 2 threads"
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads is 0"):
        set_threads(0)


def test_importing_this_module_does_not_import_torch() -> None:
    code = "import sys, stepwell.device; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
