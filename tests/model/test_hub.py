"""Where a model is: a directory, the Hub's cache, or an error that says what was looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepwell.errors import WeightsError
from stepwell.model.hub import locate

LOCATE = """
import sys
from stepwell.errors import WeightsError
from stepwell.model.hub import locate
try:
    print(locate(sys.argv[1]))
except WeightsError as error:
    print(error)
"""


def offline(name: str, home: Path) -> str:
    """What `locate` answers in a process whose Hub is only the cache under `home`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", LOCATE, name]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert locate("~/mine") == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert locate("mine") == Path("mine")


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "../model", "~/model", "a/b/c", "é"])
def test_what_cannot_be_an_id_is_a_missing_directory(name: str) -> None:
    with pytest.raises(WeightsError, match="There is no directory"):
        locate(name)


def test_a_missing_name_in_a_present_folder_is_a_missing_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="There is no directory runs/missing"):
        locate("runs/missing")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("")
    with pytest.raises(WeightsError, match="is a file, expected a model directory") as caught:
        locate(path)
    assert str(tmp_path) in caught.value.fix


def test_an_id_in_the_cache_is_found_offline(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--someone--small"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert offline("someone/small", tmp_path) == str(snapshot)


def test_an_id_that_is_not_in_the_cache_is_a_typed_error_offline(tmp_path: Path) -> None:
    answer = offline("someone/other", tmp_path)
    assert "'someone/other' is no directory here" in answer
    assert "HF_HUB_OFFLINE" in answer


def test_a_model_on_the_hub_that_is_closed_or_absent_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None)
    for kind, message in (
        (errors.GatedRepoError, "open only to those who accept its terms"),
        (errors.RepositoryNotFoundError, "neither a directory here nor a model"),
        (errors.RevisionNotFoundError, "could not be had from the Hugging Face Hub: gone."),
    ):
        error = kind("gone. Try again.", response=response)

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(WeightsError, match=message):
            locate("someone/model")
