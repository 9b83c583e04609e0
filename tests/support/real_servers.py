"""Command lines of vLLM and llama.cpp, where their environments are installed.

Found in the folder that STEPWELL_PEERS names, as the benchmarks find them. Both run in float32, on
a model of ours, whose name is `big`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from support import gguf_writer
from support.tiny_models import CONTEXT

from stepwell.evals.bench import peers
from stepwell.evals.bench.peer import VARIABLE, known_peers

SERVED = "big"


def python_of_peer(name: str) -> Path:
    """The Python that has it; the test is skipped where there is none."""
    found = known_peers([], os.environ.get(VARIABLE)).get(name)
    if found is None:
        pytest.skip(f"{name} is not installed in the folder that {VARIABLE} names")
    return found


def vllm_command(python: Path, model: Path, port: int) -> str:
    """Its API server, on two cores."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    return (
        f"PYTHONPATH= VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND={cpus} HF_HUB_OFFLINE=1"
        f" {shlex.quote(str(python))} -m vllm.entrypoints.openai.api_server"
        f" --model {shlex.quote(str(model))} --served-model-name {SERVED} --dtype float32"
        f" --max-model-len {CONTEXT} --host 127.0.0.1 --port {port}"
    )


def llama_command(python: Path, model: Path, port: int) -> str:
    """The server of its Python package, cache in float32, with the log-probability of every place.

    Writes the model as llama.cpp's file beside the directory.
    """
    path = model.with_suffix(".gguf")
    above_peers = Path(peers.__file__).parents[1]
    words = [str(python), gguf_writer.__file__, str(model), str(path), str(above_peers)]
    subprocess.run(words, check=True, capture_output=True)
    return (
        f"PYTHONPATH= {shlex.quote(str(python))} -m llama_cpp.server"
        f" --model {shlex.quote(str(path))} --model_alias {SERVED} --n_ctx {CONTEXT}"
        f" --logits_all true --type_k 0 --type_v 0 --n_threads 1 --verbose false"
        f" --host 127.0.0.1 --port {port}"
    )


COMMANDS = {"vllm": vllm_command, "llama.cpp": llama_command}
