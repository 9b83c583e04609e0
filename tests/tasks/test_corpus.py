"""Windows of running text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stepwell.errors import DataError, StepwellError
from stepwell.tasks import Corpus

TEXT = "".join(f"Der {i}. Schritt führt {i * 7919 % 1000} Stufen hinab.\n" for i in range(1000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "steps.txt").write_text(TEXT, encoding="utf-8", newline="")
    return tmp_path / "steps.txt"


TOKENS = pytest.mark.parametrize(
    "values", [{"tokens": "character"}, {"tokens": "byte"}, {"tokens": "bpe", "vocab_size": 400}]
)


@TOKENS
def test_every_next_token_is_trained(path: Path, values: dict[str, object]) -> None:
    task = Corpus(path=path, window=24, **values)
    batch = task.batch("train", range(50))
    assert batch.ids.shape == batch.labels.shape == (50, 24)
    assert batch.labels[:, :-1].equal(batch.ids[:, 1:])
    assert batch.depths.eq(0).all()


@TOKENS
def test_windows_are_stretches_of_the_tokenised_file(path: Path, values: dict[str, object]) -> None:
    task = Corpus(path=path, window=24, **values)
    stream = task.tokenizer.encode(TEXT)
    assert task.tokenizer.decode(stream) == TEXT
    windows = {tuple(stream[i : i + 25]) for i in range(len(stream) - 24)}
    batch = task.batch("train", range(50))
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        assert (*ids, labels[-1]) in windows
    assert tuple(stream[:24] + stream[:1]) not in windows  # the control
    example = task.example(3)
    assert example.ids in windows
    assert values["tokens"] == "byte" or example.text in TEXT


def test_each_split_is_its_own_part_of_the_file(path: Path) -> None:
    task = Corpus(path=path, window=80)
    borders = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
    for split, (begin, end) in borders.items():
        places = [TEXT.index(task.example_in(split, i).text) / len(TEXT) for i in range(200)]
        assert begin <= min(places)
        assert max(places) + 81 / len(TEXT) <= end + 1e-9
        assert max(places) - min(places) > 0.9 * (end - begin) - 0.01


def test_a_bpe_is_trained_on_the_train_split_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd " * 900 + "xyxy " * 100, encoding="utf-8")
    tokenizer = Corpus(path=tmp_path / "a.txt", tokens="bpe", vocab_size=300).tokenizer
    assert len(tokenizer.encode("abcd")) == 1
    assert len(tokenizer.encode("xyxy")) == 4


def test_the_content_makes_the_fingerprint_and_the_place_does_not(path: Path) -> None:
    moved = path.with_name("moved.txt")
    moved.write_bytes(path.read_bytes())
    first = Corpus(path=path).fingerprint
    assert Corpus(path=moved).fingerprint == first
    moved.write_text(TEXT + "!", encoding="utf-8", newline="")
    assert Corpus(path=moved).fingerprint != first


def test_a_byte_order_mark_is_no_text(path: Path) -> None:
    marked = path.with_name("marked.txt")
    marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Corpus(path=marked).text == TEXT


def test_every_character_of_the_file_has_a_token(path: Path) -> None:
    path.write_text(TEXT + "ß", encoding="utf-8")
    assert Corpus(path=path).tokenizer.encode("ß")
    with pytest.raises(StepwellError):
        Corpus(path=path).tokenizer.encode("ø")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "steps.txt: No such file"),
        (lambda path: path.write_bytes(b""), "steps.txt is empty"),
        (lambda path: path.write_bytes(b" \n"), "steps.txt is empty"),
        (lambda path: path.write_bytes(b"abc\xff"), "steps.txt, byte 3: not UTF-8"),
        (lambda path: path.write_bytes(b"abc"), "steps.txt: a part of [12] tokens"),
    ],
)
@TOKENS
def test_a_file_without_text_is_an_error_that_names_it(
    path: Path, spoil: Callable[[Path], object], message: str, values: dict[str, object]
) -> None:
    spoil(path)
    with pytest.raises(DataError, match=message):
        Corpus(path=path, window=4, **values).batch("train", [0])


def test_a_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        Corpus(path=tmp_path).example(0)


def test_a_part_too_short_for_a_window_is_an_error_where_it_is_used(path: Path) -> None:
    path.write_text("abcdefghij" * 10, encoding="utf-8")
    task = Corpus(path=path, window=16)
    assert task.batch("train", [0]).ids.shape == (1, 16)
    with pytest.raises(DataError, match="a part of 5 tokens holds no window of 16"):
        task.batch("validation", [0])
    shortest = Corpus(path=path, window=4)
    assert shortest.example_in("test", 7).text == "fghij"
