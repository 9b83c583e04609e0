"""Command lines and files that cannot be meant: the exit code, at most three lines, the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

MODEL = object()  # stands for the folder of a model
HERE = object()  # stands for the folder that holds the files below

FILES = {
    "list.yaml": "- 1\n- 2\n",
    "broken.yaml": "steps: [1, 2\n",
    "unknown.yaml": "task: facts\nstepz: 3\n",
    "badtask.yaml": "task: fatcs\n",
    "empty.txt": "",
    "latin.txt": b"caf\xe9",
    "malformed.jsonl": '{"prompt": "abcd>"}\n{"prompt": \n',
    "nokey.jsonl": '{"text": "abcd>"}\n',
    "notext.jsonl": '{"prompt": 5}\n',
    "badid.jsonl": '{"prompt": "abcd>", "id": [1]}\n',
    "foreign.jsonl": '{"prompt": "abcd>"}\n{"prompt": "ABCD"}\n',
    "long.jsonl": json.dumps({"prompt": "a" * 50}) + "\n",
    "blank.jsonl": "\n\n",
    "good.jsonl": '{"prompt": "abcd>"}\n',
    "garbage.pt": b"PK nothing of the kind",
}

T = ["train", "--task", "facts", "--dry-run"]
G = ["generate", MODEL]

WRONG = [
    # words, exit code, what the message must hold
    (["trian"], 2, "Did you mean 'train'?"),
    (["--frobnicate"], 2, "no flag --frobnicate"),
    (["train"], 2, "give --task with one of variable-renaming"),
    (["train", "--task"], 2, "--task requires an argument"),
    (["train", "--task", "fatcs"], 2, "Did you mean 'facts'?"),
    ([*T, "--chains", "3"], 2, "`stepwell train` has no flag --chains"),
    ([*T, "--stepz", "3"], 2, "Did you mean --steps?"),
    ([*T, "--steps", "many"], 2, "--steps"),
    ([*T, "--steps", "0"], 2, "steps is 0"),
    ([*T, "--steps"], 2, "--steps requires an argument"),
    ([*T, "--lr", "-1"], 2, "optimizer.lr is -1"),
    ([*T, "--lr", "nan"], 2, "lr"),
    ([*T, "--schedule", "cosin"], 2, "cosine"),
    ([*T, "--preset", "tny"], 2, "tiny"),
    ([*T, "--num-heads", "3"], 2, "head_dim"),
    ([*T, "--facts", "0"], 2, "facts"),
    ([*T, "--run-name", "../elsewhere"], 2, "run_name"),
    ([*T, "--gradient-accumulation", "100", "--batch-size", "2"], 2, "gradient_accumulation"),
    ([*T, "--device", "abacus"], 1, "no device"),
    ([*T, "--set", "steps"], 2, "expected key=value"),
    ([*T, "--set", "optimizer.lrr=1"], 2, "Did you mean 'lr'?"),
    ([*T, "--set", "steps=[1"], 2, "not valid YAML"),
    ([*T, "--rope-scaling", "{kind: [}"], 2, "--rope-scaling"),
    ([*T, "--config", HERE, "list.yaml"], 2, "expected keys and values"),
    (["train", "--dry-run", "--config", HERE, "missing.yaml"], 2, "No such file"),
    (["train", "--dry-run", "--config", HERE, "broken.yaml"], 2, "line 2: not valid YAML"),
    (["train", "--dry-run", "--config", HERE, "unknown.yaml"], 2, "Did you mean 'steps'?"),
    (["train", "--dry-run", "--config", HERE, "badtask.yaml"], 2, "Did you mean 'facts'?"),
    (["train", "--dry-run", "--task", "corpus"], 2, "path"),
    (["train", "--dry-run", "--task", "corpus", "--path", HERE, "none.txt"], 1, "No such file"),
    (["train", "--dry-run", "--task", "corpus", "--path", HERE, "empty.txt"], 1, "is empty"),
    (["train", "--dry-run", "--task", "corpus", "--path", HERE, "latin.txt"], 1, "not UTF-8"),
    (["train", "--task", "facts", "-q", "--runs", HERE, "good.jsonl"], 1, "good.jsonl"),
    (["generate"], 2, "MODEL"),
    (["generate", MODEL], 2, "either a prompt or --input"),
    ([*G, "abcd>", "efgh>"], 2, "does not know what to do with 'efgh>'"),
    ([*G, "abcd>", "--input", HERE, "good.jsonl"], 2, "either a prompt or --input"),
    ([*G, "--input", HERE, "good.jsonl"], 2, "belong together"),
    ([*G, "abcd>", "--fresh"], 2, "--fresh needs --input"),
    ([*G, "ABCD"], 2, "'A'"),
    ([*G, ""], 2, "empty"),
    ([*G, "ab\udcff"], 2, "fix:"),
    ([*G, "a" * 40], 2, "context"),
    ([*G, "abcd>", "--temperature", "200"], 2, "from 0 to 100"),
    ([*G, "abcd>", "--temperature", "nan"], 2, "temperature"),
    ([*G, "abcd>", "--top-p", "0"], 2, "top_p"),
    ([*G, "abcd>", "-n", "0"], 2, "n is 0"),
    ([*G, "abcd>", "--preset", "chatty"], 2, "chat"),
    ([*G, "abcd>", "--stream", "-n", "2"], 2, "--stream shows one answer"),
    ([*G, "abcd>", "--dtype", "int8"], 2, "bfloat16"),
    ([*G, "abcd>", "--threads", "-1"], 2, "threads is -1"),
    ([*G, "abcd>", "--strictly"], 2, "no flag --strictly"),
    (["generate", HERE, "nowhere", "abcd>"], 1, "There is no directory"),
    (["generate", HERE, "good.jsonl", "abcd>"], 1, "is a file"),
    (["inspect", MODEL, "abcd>", "--out", "a.pdf"], 2, ".html or .png"),
    (["inspect", MODEL, "abcd>", "--out", HERE, "a.html", "--layers", "7"], 2, "layer"),
    (["inspect", MODEL, "abcd>", "--layers", "first"], 2, "0,2 or 0-3"),
    (["inspect", MODEL, "abcd>", "--top", "0"], 2, "--top is 0"),
    (["models", "--runs", HERE, "nowhere"], 2, "stepwell demo"),
    (["models", "--device", "cpu"], 2, "no flag --device"),
    (["doctor", "--threads", "2"], 2, "no flag --threads"),
    (["preview"], 2, "Which task?"),
    (["preview", "--task", "facts", "--count", "0"], 2, "no examples"),
    (["preview", "--task", "facts", "--split", "tran"], 2, "train"),
    (["convert", HERE, "nowhere", "out"], 1, "There is no directory"),
    (["convert", HERE, "nowhere.pt", "out"], 1, "config.json does not exist"),
    (["convert", MODEL, MODEL], 2, "is the source"),
    (["convert", MODEL, HERE, "out", "--config", "config.json"], 2, "--config is for .pt files"),
    (["completion", "show", "tcsh"], 2, "fish"),
    (["completion", "instal"], 2, "Did you mean 'install'?"),
    (["cascade", "rnu"], 2, "Did you mean 'run'?"),
]

LINES = [
    ("malformed.jsonl", 1, "malformed.jsonl, line 2: not valid JSON"),
    ("nokey.jsonl", 1, 'line 1: expected a text under "prompt", found the keys text'),
    ("notext.jsonl", 1, "line 1: expected a text"),
    ("badid.jsonl", 1, "line 1:"),
    ("foreign.jsonl", 2, "foreign.jsonl, line 2:"),
    ("long.jsonl", 2, "line 1: the prompt has 50 tokens"),
    ("blank.jsonl", 1, "holds no prompt"),
    ("latin.txt", 1, "not UTF-8"),
    ("missing.jsonl", 1, "No such file"),
]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the files above."""
    for name, content in FILES.items():
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
    return tmp_path


def filled(words: list[object], model: Path, here: Path) -> list[str]:
    """The words with the stand-ins replaced; HERE joins the word that follows it."""
    line: list[str] = []
    for word in words:
        if line and line[-1] == "HERE":
            line[-1] = str(here / str(word))
        else:
            line.append(str(model) if word is MODEL else "HERE" if word is HERE else str(word))
    return line


def check(ended, code: int, says: str) -> None:
    """The error is what it should be, and looks as it should."""
    assert ended.code == code, ended
    lines = ended.err.splitlines()
    assert 1 <= len(lines) <= 3, ended.err
    assert lines[0].startswith("error: ")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert "a way it should not" not in ended.err


@pytest.mark.parametrize(("words", "code", "says"), WRONG, ids=lambda value: None)
def test_a_wrong_command_line_says_what_and_how(
    run, trained: Path, here: Path, monkeypatch, words, code: int, says: str
) -> None:
    monkeypatch.chdir(here)
    ended = run(*filled(words, trained, here))
    check(ended, code, says)
    if code == 2:
        assert ended.out == ""


@pytest.mark.parametrize(("name", "code", "says"), LINES)
def test_a_malformed_line_is_named(run, trained: Path, here: Path, name, code, says) -> None:
    ended = run("generate", trained, "--input", here / name, "--output", here / "answers.jsonl")
    check(ended, code, says)
    assert not (here / "answers.jsonl").exists()


def truncate(path: Path) -> None:
    """Cuts a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "weights cut off": lambda folder: truncate(folder / "model.safetensors"),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "config no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config of another shape": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 32')
    ),
    "tokenizer missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer no JSON": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "generation config no JSON": lambda folder: (folder / "generation_config.json").write_text(""),
    "generation config unknown": lambda folder: (folder / "generation_config.json").write_text(
        '{"num_beams": 4}'
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_an_error_that_names_the_file(run, own_run: Path, name: str) -> None:
    DAMAGE[name](own_run)
    ended = run("generate", own_run, "abcd>")
    assert ended.code in (1, 2)
    check(ended, ended.code, own_run.name)


def test_a_damaged_run_is_listed_with_its_problem(run, own_run: Path) -> None:
    (own_run / "run.yaml").write_text("steps: [")
    [row] = run("models", "--runs", own_run.parent, "--json").json
    assert "not valid YAML" in row["problem"]


def test_garbage_is_no_pt_file(run, trained: Path, here: Path) -> None:
    words = ("convert", here / "garbage.pt", here / "out", "--config", trained)
    check(run(*words), 1, "garbage.pt")


def test_what_the_disk_refuses_is_an_error(run, own_run: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    ended = run("inspect", own_run, "abcd>", "--out", blocked / "a.html")
    check(ended, 1, "file")
    ended = run("models", "--runs", own_run.parent, "--log-file", blocked / "a.log")
    check(ended, 1, "file")


def test_training_into_a_folder_that_is_no_run_is_refused(run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    words = ["train", "--task", "facts", "--runs", folder.parent, "--run-name", "mine", "--fresh"]
    check(run(*words, "--quiet", "--steps", 1), 2, "holds no run.yaml")
    assert (folder / "thesis.txt").exists()
    shutil.rmtree(folder)
