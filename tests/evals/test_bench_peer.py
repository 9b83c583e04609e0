"""The conversation with a peer, held with processes that speak it well, badly, or not for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from stepwell.errors import PeerError, UsageError
from stepwell.evals.bench import peer as peer_module
from stepwell.evals.bench.peer import KINDS, Peer, known_peers, python_of, surroundings
from stepwell.evals.bench.peers import conversation
from stepwell.evals.bench.peers.conversation import Setup, Timing, random_ids, random_prompts

SETUP = Setup(model="/models/a", weights="bf16", threads=2, vocab_size=64, length=128)

FAKE = f"""
import sys
sys.path.insert(0, {str(Path(conversation.__file__).parents[1])!r})
from peers.conversation import Player, Timing, converse

class Fake(Player):
    version = "9.1"
    def __init__(self, setup):
        print("a library says hello")  # not a line of the conversation
        self.setup = setup
    def measure(self, rows, prompt, new, seed):
        if seed == 13:
            raise RuntimeError("out of luck")
        return Timing(prompt / 1000, rows * new / 1000)
    def batch(self, requests, seed):
        return sum(new for _, new in requests) / self.setup.threads

converse(Fake)
"""

Start = Callable[..., Peer]


@pytest.fixture
def start(tmp_path: Path):
    """Starts a script as a peer; it is ended with the test."""
    peers = []

    def begin(script: str, limit_s: float = 30.0) -> Peer:
        path = tmp_path / "fake.py"
        path.write_text(script)
        peers.append(Peer("fake", [sys.executable, str(path)], SETUP, limit_s))
        return peers[-1]

    yield begin
    for peer in peers:
        peer.close()


def test_what_a_peer_measures_is_what_arrives(start: Start) -> None:
    peer = start(FAKE)
    assert peer.version == "9.1"
    assert peer.measure(rows=16, prompt=64, new=32, seed=1) == Timing(0.064, 0.512)
    assert peer.batch(((8, 4), (2, 6)), seed=1) == 5.0


def test_a_dying_peer_says_its_last_words_and_stays_dead(start: Start) -> None:
    peer = start(FAKE)
    for _ in range(2):
        with pytest.raises(PeerError, match="fake ended: RuntimeError: out of luck"):
            peer.measure(rows=1, prompt=1, new=1, seed=13)


def test_what_a_peer_cannot_do_is_its_end_and_says_so(start: Start) -> None:
    with pytest.raises(PeerError, match="NotImplementedError"):
        start(FAKE).load(seed=1)


def test_a_peer_that_hangs_is_ended(start: Start) -> None:
    begun = time.monotonic()
    with pytest.raises(PeerError, match=r"did not answer within 0\.5 s"):
        start("import time\ntime.sleep(60)", limit_s=0.5)
    assert time.monotonic() - begun < 20


def test_a_peer_may_take_its_time_to_end(start: Start) -> None:
    slow = "import os, sys, time\nos.close(1)\ntime.sleep(0.3)\nsys.exit('It is over')"
    with pytest.raises(PeerError, match="fake ended: It is over"):
        start(slow)


SPIN = """
import sys
with open(sys.argv[1], "ab", buffering=0) as file:
    while True:
        file.write(b".")
        sum(range(10_000))
"""
can_stop = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process stands still here")


def spinning(count: Path) -> str:
    """A peer whose child never rests, and lets `count` grow meanwhile; "load" waits for that."""
    begin = f"import os, subprocess, sys, time\nSPIN, COUNT = {SPIN!r}, {str(count)!r}\n"
    spin = """
class Spinning(Fake):
    def __init__(self, setup):
        open(COUNT, "w").close()
        subprocess.Popen([sys.executable, "-c", SPIN, COUNT])
        super().__init__(setup)
    def load(self, seed):
        enough = os.path.getsize(COUNT) + 20
        while os.path.getsize(COUNT) < enough:
            time.sleep(0.001)
        return 1.0

converse(Spinning)
"""
    return begin + FAKE.replace("converse(Fake)", spin)


def grows(count: Path) -> bool:
    """Whether something writes to the file."""
    time.sleep(0.05)  # signals take a moment
    before = count.stat().st_size
    time.sleep(0.15)
    return count.stat().st_size > before


def is_over(group: int, count: Path) -> bool:
    """Whether nothing writes to the file, though the group may: one that stood still goes on."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)
    return not grows(count)


@can_stop
def test_a_peer_stands_still_while_it_is_not_its_turn(start: Start, tmp_path: Path) -> None:
    count = tmp_path / "count"
    peer = start(spinning(count))
    for seed in range(3):
        before = count.stat().st_size
        peer.load(seed)
        assert count.stat().st_size >= before + 20
        assert not grows(count)


@can_stop
def test_a_peer_that_is_never_stopped_goes_on(start: Start, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(peer_module, "awake", nullcontext)
    count = tmp_path / "count"
    start(spinning(count)).load(1)
    assert grows(count)


@can_stop
def test_a_stopped_peer_and_what_it_has_started_end_when_closed(
    start: Start, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    peer = start(spinning(count))
    peer.load(1)
    group = peer._process.pid
    assert not is_over(group, count), "it only stood still"
    peer.close()
    assert is_over(group, count)
    with pytest.raises(ProcessLookupError):
        os.kill(group, 0)
    assert peer._guard is not None
    assert peer._guard.returncode is not None


OURS = f"""
import sys, time
from stepwell.evals.bench.peer import Peer
from stepwell.evals.bench.peers.conversation import Setup

peer = Peer("fake", [sys.executable, sys.argv[1]], Setup(*{tuple(SETUP)!r}))
peer.load(1)
print(peer._process.pid, flush=True)
time.sleep(60)
"""


@can_stop
def test_a_stopped_peer_does_not_outlive_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    count, script = tmp_path / "count", tmp_path / "fake.py"
    script.write_text(spinning(count))
    command = [sys.executable, "-c", OURS, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        group = int(benchmark.stdout.readline())
        assert not is_over(group, count), "it only stood still"
        benchmark.kill()
    assert any(is_over(group, count) for _ in range(20)), "it is killed in a moment"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
        ("import sys\nsys.exit(7)", "exit code 7"),
        ("print('Loading...', flush=True)\ninput()", "no JSON object"),
        ("print('[1]', flush=True)\ninput()", "no JSON object"),
    ],
)
def test_a_peer_that_does_not_start_says_why(start: Start, script: str, reason: str) -> None:
    with pytest.raises(PeerError, match=reason):
        start(script)


def test_an_answer_without_seconds_is_refused(start: Start) -> None:
    peer = start('while input():\n    print(\'{"version": "1"}\', flush=True)')
    with pytest.raises(PeerError, match="expected seconds as 'prefill_s'"):
        peer.measure(rows=1, prompt=1, new=1, seed=0)


def test_a_python_that_is_not_there_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="does not start"):
        Peer("fake", [str(tmp_path / "python")], SETUP)


def test_a_peer_sees_its_threads_and_none_of_our_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("KEPT", "1")
    seen = surroundings(3)
    assert (seen["OMP_NUM_THREADS"], seen["KEPT"]) == ("3", "1")
    assert "PYTHONPATH" not in seen


def test_peers_are_found_in_a_folder_and_named_ones_win(tmp_path: Path) -> None:
    for name in ("llama.cpp", "vllm"):
        python = python_of(tmp_path / name)
        python.parent.mkdir(parents=True)
        python.touch()
    found = known_peers(["vllm=/own/python", "transformers=/hf/python"], str(tmp_path))
    assert found == {
        "llama.cpp": python_of(tmp_path / "llama.cpp"),
        "vllm": Path("/own/python"),
        "transformers": Path("/hf/python"),
    }
    assert known_peers([], None) == {}


@pytest.mark.parametrize("word", ["llamacpp=/python", "llama.cpp", "vllm="])
def test_a_peer_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="NAME=PYTHON"):
        known_peers([word], None)


def test_every_kind_of_peer_has_its_script() -> None:
    folder = Path(conversation.__file__).parent
    assert all((folder / f"{kind.module}.py").is_file() for kind in KINDS.values())


def test_scripts_import_nothing_of_ours() -> None:
    folder = Path(conversation.__file__).parent
    assert [
        path.name for path in folder.glob("*.py") if "import stepwell" in path.read_text()
    ] == []
    assert [path.name for path in folder.glob("*.py") if "from stepwell" in path.read_text()] == []


def test_ids_are_random_never_zero_and_the_same_everywhere() -> None:
    ids = random_ids(3, 4000, 64)
    assert ids == random_ids(3, 4000, 64)
    assert ids != random_ids(4, 4000, 64)
    assert set(ids) == set(range(1, 64))
    first, second = random_prompts(3, [40, 40], 64)
    assert first != second
