"""Documents: every token once an epoch, no text in two splits, nothing tokenised twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stepwell as sw
from stepwell.errors import DataError, TokenizerError
from stepwell.storage.verified import LARGE
from stepwell.tasks import IGNORE, SPLITS, Documents
from stepwell.tasks import document_files as document_files_module
from stepwell.tasks.document_files import content_of, document_files, documents
from stepwell.tasks.example import split_of
from stepwell.text import Tokenizer

TEXTS = [f"{n} steps lead down, " + "and " * (n % 7) + f"{n * n}." for n in range(300)]


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", TEXTS)


def stream(task: Documents, split: str) -> list[int]:
    """All tokens of a split, as the texts say."""
    ids = []
    for text in TEXTS:
        if split_of(text) == split:
            ids += [*task.tokenizer.encode(text), task.tokenizer.eos_id]
    return ids


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("tokens", ["character", "byte", "bpe"])
def test_an_epoch_predicts_every_token_of_the_split_once(
    path: Path, split: str, tokens: str
) -> None:
    task = Documents(path=path, window=13, tokens=tokens, vocab_size=300, across=True)
    whole = stream(task, split)
    count = task.num_windows(split)
    assert count == (len(whole) - 1) // 13
    expected = [tuple(whole[13 * k : 13 * k + 14]) for k in range(count)]
    for epoch in (0, 1, 5):
        windows = [task.example_in(split, epoch * count + i).ids for i in range(count)]
        assert sorted(windows) == sorted(expected)
        assert windows != expected, "in the order of the text"
    assert [task.example_in(split, i).ids for i in range(count)] != windows


def test_a_batch_may_lie_in_two_epochs(path: Path) -> None:
    task = Documents(path=path, window=13)
    count = task.num_windows("test")
    batch = task.batch("test", range(count - 2, count + 2))
    alone = [task.example_in("test", i).ids for i in range(count - 2, count + 2)]
    assert [list(ids[:-1]) for ids in alone] == batch.ids.tolist()


def test_what_follows_an_end_is_a_document_of_its_own(path: Path) -> None:
    task = Documents(path=path, window=40)
    batch = task.batch("train", range(50))
    end, borders = task.tokenizer.eos_id, 0
    for i, (ids, labels, segments) in enumerate(
        zip(batch.ids.tolist(), batch.labels.tolist(), batch.segments.tolist(), strict=True)
    ):
        following = task.example_in("train", i).ids[1:]
        for t, (token, label) in enumerate(zip(ids, labels, strict=True)):
            assert label == (IGNORE if token == end else following[t])
            assert segments[t] == ids[:t].count(end)
        borders += ids.count(end)
    assert borders > 30
    across = task.changed(across=True).batch("train", range(50))
    assert across.segments is None
    assert int((across.labels == IGNORE).sum()) == 0
    assert across.ids.equal(batch.ids)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(max_size=5), max_size=30))
def test_a_text_that_comes_again_is_in_one_split_only(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = write(tmp_path_factory.mktemp("again") / "rows.jsonl", texts + TEXTS + texts)
    task = Documents(path=path, window=4, tokens="byte")
    homes: dict[str, set[str]] = {}
    end = task.tokenizer.eos_id
    for split in SPLITS:
        tokens = task._shards.index.streams[split].tokens
        ids = task._shards.read(split, 0, tokens).tolist()
        for text in task.tokenizer.decode(ids, skip_special=False).split("<eos>")[:-1]:
            homes.setdefault(text, set()).add(split)
        assert ids[-1] == end
    assert set(TEXTS) <= homes.keys()
    assert max(map(len, homes.values())) == 1


def test_tokenizers_are_made_of_the_train_split_only(tmp_path: Path) -> None:
    elsewhere = next(f"Ж{n}" for n in range(100) if split_of(f"Ж{n}") == "test")
    path = write(tmp_path / "rows.jsonl", [*TEXTS, elsewhere])
    task = Documents(path=path, window=4)
    assert task.tokenizer.piece(task.tokenizer.encode("Ж")[0]) == "<unk>"
    taught = [text for text in TEXTS if split_of(text) == "train"]
    bpe = Documents(path=path, window=4, tokens="bpe", vocab_size=300).tokenizer
    assert bpe.fingerprint == Tokenizer.train_bpe(taught, 300, {"eos": "<eos>"}).fingerprint
    of_all = Tokenizer.train_bpe([*TEXTS, elsewhere * 50], 300, {"eos": "<eos>"})
    assert bpe.fingerprint != of_all.fingerprint


def test_a_tokenizer_can_be_taken(path: Path, tmp_path: Path) -> None:
    Tokenizer.byte({"eos": "<end>"}).save(tmp_path / "model")
    task = Documents(path=path, window=13, tokenizer_from=tmp_path / "model", across=True)
    assert 256 in task.example_in("train", 0).ids + task.example_in("train", 1).ids
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = task.changed(tokenizer_from=tmp_path / "moved")
    assert moved.fingerprint == task.fingerprint
    Tokenizer.byte().save(tmp_path / "endless")
    with pytest.raises(TokenizerError, match="endless declares no end-of-sequence"):
        task.changed(tokenizer_from=tmp_path / "endless").batch("train", [0])


def test_documents_are_tokenised_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
    first = Documents(path=path, window=13).batch("train", range(9))
    moved = write(path.parent / "moved" / "other.jsonl", TEXTS)
    monkeypatch.setattr(Documents, "_tokenise", lambda *_: pytest.fail("tokenised again"))
    again = Documents(path=moved, window=13)
    assert again.batch("train", range(9)).ids.equal(first.ids)
    assert again.fingerprint == Documents(path=path, window=13).fingerprint
    assert Documents(path=moved, window=7, seed=3).num_windows("train") > 100
    for changed in (
        Documents(path=path, tokens="byte"),
        Documents(path=write(path.parent / "less.jsonl", TEXTS[1:])),
    ):
        with pytest.raises(pytest.fail.Exception, match="tokenised again"):
            changed.batch("train", [0])


def test_a_large_file_is_hashed_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, hashed = tmp_path / "a.txt", []
    path.write_bytes(b"deep " * (LARGE // 5 + 1))

    def sha256(file: Path) -> str:
        hashed.append(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(document_files_module, "sha256", sha256)
    first = content_of([path])
    assert content_of([path]) == first
    assert len(hashed) == 1
    path.write_bytes(b"dark " * (LARGE // 5 + 1))
    assert content_of([path]) != first
    assert len(hashed) == 2


def test_a_directory_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    write(texts / "b.jsonl", ["two", " ", "three"])
    write(texts / ".hidden" / "x.jsonl", ["never"])
    (texts / "a.txt").write_text("one\n")
    (texts / "c").mkdir()
    (texts / "c" / "d.md").write_text("four\r\n")
    (texts / "c" / "e.bin").write_bytes(b"\xff")
    found = [text for file in document_files(texts) for _, text in documents(file)]
    assert found == ["one\n", "two", "three", "four\r\n"]


def test_a_separator_parts_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(
        "\ufeffone\nand on\r\n<|end|>\r\n<|end|>\n two<|end|>\n<|end|>\nthree".encode()
    )
    found = [(where.rpartition(" ")[2], text) for where, text in documents(path, "<|end|>")]
    assert found == [("1", "one\nand on\r\n"), ("5", " two<|end|>\n"), ("7", "three")]
    assert len(list(documents(path))) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'{"txt": "a"}', r"expected \{.text.: .*found \['txt'\]"),
        (b'["a"]', "found list"),
        (b'{"text": 3}', "expected"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=f"rows.jsonl, line 3: .*{said}"):
        Documents(path=path).batch("train", [0])


def test_what_cannot_be_spelled_is_named(tmp_path: Path) -> None:
    Tokenizer.character("abc", {"eos": "<eos>"}).save(tmp_path / "model")
    path = write(tmp_path / "rows.jsonl", ["abc", "cab", "bad"])
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: .*'d'"):
        Documents(path=path, tokenizer_from=tmp_path / "model").batch("train", [0])


def test_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Documents(path=tmp_path / "gone").batch("train", [0])
    with pytest.raises(DataError, match="no file of documents"):
        Documents(path=tmp_path).batch("train", [0])
    path = write(tmp_path / "rows.jsonl", TEXTS[:20])
    homes = Counter(map(split_of, TEXTS[:20]))
    assert homes["test"] < 2
    with pytest.raises(DataError, match=rf"test split has {homes['test']} documents"):
        Documents(path=path, window=200).batch("test", [0])
    with pytest.raises(DataError, match="train split is empty"):
        Documents(path=write(tmp_path / "none.jsonl", ["  "])).batch("train", [0])


def test_documents_can_be_learnt(path: Path, tmp_path: Path) -> None:
    config = sw.TrainerConfig(
        model=sw.ModelConfig(width=16, num_layers=1, num_heads=2),
        task=Documents(path=path, window=32),
        steps=60,
        batch_size=16,
        optimizer={"lr": 1e-2},
        evaluation_batches=1,
        runs=tmp_path,
        threads=1,
        device="cpu",
    )
    trainer = sw.Trainer(config)
    before = trainer.evaluate()["loss"]
    assert trainer.train().metrics["loss"] < 0.6 * before
