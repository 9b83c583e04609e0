"""The conversation with a peer, held with processes that speak it well, badly, or not for long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stepwell.errors import UsageError
from stepwell.evals.bench.peer import KINDS, Peer, PeerError, known_peers, python_of, surroundings
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


def test_what_a_peer_has_started_ends_with_it(start: Start, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = (
        f"import time\nwhile True:\n    open({str(alive)!r}, 'a').write('.')\n    time.sleep(0.02)"
    )
    launch = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    peer = start(launch + FAKE)
    while not alive.exists():
        time.sleep(0.02)
    peer.close()
    time.sleep(0.1)
    size = alive.stat().st_size
    time.sleep(0.3)
    assert alive.stat().st_size == size


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
