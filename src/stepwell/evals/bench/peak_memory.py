"""How much memory loading a model takes at most: `python -m stepwell.evals.bench.peak_memory`.

Prints {"peak": bytes, "weights": bytes}. A process of its own, because a peak is of one as a whole.
Pages of a mapped file count where they have been read. Runs on Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import cast

from stepwell.device import set_threads
from stepwell.errors import DeviceError
from stepwell.evals.bench.ours import first_token, loaded
from stepwell.evals.bench.plan import Weights

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def peak_of_loading(directory: Path, weights: Weights) -> int:
    """Bytes that the process has at most more than before, until the first token is there.

    The model is loaded twice, so that what the libraries keep from the first time does not count.
    """
    first_token(loaded(directory, weights), PROMPT)
    give_back()
    before = now("VmRSS")
    RESET.write_text(RESET_PEAK)
    first_token(loaded(directory, weights), PROMPT)
    return now("VmHWM") - before


def give_back() -> None:
    """Returns freed memory to the system, which else would be taken again without a trace."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def now(field: str) -> int:
    """Bytes of memory as Linux tells: VmRSS is now, VmHWM the most since the last reset."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            name, _, amount = line.partition(":")
            if name == field:
                return int(amount.split()[0]) * 1024
    raise DeviceError(f"{STATUS} does not tell {field} on this system.")


def main() -> None:
    """Measures the directory, weights and threads that the command line names."""
    directory, weights, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    set_threads(threads)
    peak = peak_of_loading(directory, cast(Weights, weights))
    size = sum(file.stat().st_size for file in directory.glob("model*.safetensors"))
    sys.stdout.write(json.dumps({"peak": peak, "weights": size}) + "\n")


if __name__ == "__main__":
    main()
