"""Several processes give the answers of one, whoever dies on the way."""

from __future__ import annotations

import threading

import pytest

from stepwell.errors import ConfigError, DeviceError, PromptError, WeightsError
from stepwell.generate import workers
from stepwell.generate.text import TextGenerator
from stepwell.generate.workers import WorkerPool
from stepwell.model.weights import save_model

PROMPTS = [a + b for a in "abcdefgh" for b in "abc"]
SAMPLING = {"n": 2, "temperature": 0.9, "seed": 4, "max_new_tokens": 5, "logprobs": 1}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, model, tokenizer):
    path = tmp_path_factory.mktemp("model")
    save_model(model, path)
    tokenizer.save(path)
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(workers, "CHUNK", 5)


class Progress:
    def __init__(self):
        self.seen = []

    def update(self, finished, tokens):
        self.seen.append((finished, tokens))


def test_workers_give_the_answers_of_one_generator(directory, small_chunks):
    expected = TextGenerator.load(directory, strict=True).generate_batch(PROMPTS, **SAMPLING)
    progress = Progress()
    with WorkerPool(directory, ["cpu", "cpu"], threads=1, strict=True) as pool:
        assert pool.generate_batch(PROMPTS, progress=progress, **SAMPLING) == expected
        assert pool.generate_batch([]) == []
        assert pool.generate_batch(PROMPTS, **{**SAMPLING, "seed": 5}) != expected
    tokens = sum(len(choice.token_ids) for row in expected for choice in row)
    assert progress.seen[-1] == (2 * len(PROMPTS), tokens)
    assert progress.seen == sorted(progress.seen)


def test_the_prompts_of_a_worker_that_dies_go_to_the_others(directory, small_chunks):
    expected = TextGenerator.load(directory, strict=True).generate_batch(PROMPTS, **SAMPLING)
    with WorkerPool(directory, ["cpu", "cpu"], threads=1, strict=True) as pool:
        pool._workers[0]._process.kill()
        assert pool.generate_batch(PROMPTS, **SAMPLING) == expected
        pool._workers[1]._process.kill()
        pool._workers[1]._process.wait()
        with pytest.raises(DeviceError, match="Every worker process has ended"):
            pool.generate_batch(PROMPTS)


def test_what_a_worker_gives_back_last_is_still_answered(directory, small_chunks):
    expected = TextGenerator.load(directory, strict=True).generate_batch(PROMPTS, **SAMPLING)
    with WorkerPool(directory, ["cpu", "cpu"], threads=1, strict=True) as pool:
        first, second = pool._workers
        others_are_done = threading.Event()
        receive, receive_other = first.receive, second.receive

        def die_late():
            others_are_done.wait(60)
            first._process.kill()
            return receive()

        def answer():
            reply = receive_other()
            waiting.discard(reply["number"])
            if len(waiting) == 1:
                others_are_done.set()
            return reply

        waiting = set(range(0, len(PROMPTS), 5))
        first.receive, second.receive = die_late, answer
        assert pool.generate_batch(PROMPTS, **SAMPLING) == expected


def test_where_all_die_with_work_left_it_says_who(directory, small_chunks):
    with WorkerPool(directory, ["cpu"], threads=1) as pool:
        pool._workers[0].send = lambda message: pool._workers[0]._process.kill()
        with pytest.raises(DeviceError, match="worker on cpu has ended with code -9"):
            pool.generate_batch(PROMPTS)


@pytest.mark.slow
def test_errors_are_those_of_one_generator(directory, tmp_path):
    with WorkerPool(directory, ["cpu"], threads=1) as pool:
        with pytest.raises(PromptError, match="context"):
            pool.generate_batch(["a" * 100])
        with pytest.raises(ConfigError, match="temprature"):
            pool.generate_batch(["a"], temprature=1)
        assert len(pool.generate_batch(["a"], max_new_tokens=1)) == 1
    with pytest.raises(WeightsError):
        WorkerPool(tmp_path / "nowhere", ["cpu"])
    with pytest.raises(DeviceError, match="cuda:77"):
        WorkerPool(directory, ["cuda:77"])
    with pytest.raises(ConfigError, match="No devices"):
        WorkerPool(directory, [])
