"""Engines and requests for the tests of generation; the fixture `executors` sets what computes."""

from __future__ import annotations

from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent

strict = False


def engine_of(model, **options):
    """An engine of few rows; strict where the executors of this test are."""
    options = {"strict": strict, "max_rows": 4, "eos_ids": [], "newline_ids": [], **options}
    return InferenceEngine(model, **options)


def is_strict():
    """Whether engines of this test are strict."""
    return strict


def request(*prompt, interventions=(), **params):
    """A request for six tokens behind a short prompt."""
    params = {"max_new_tokens": 6, **params}
    return Request(prompt or (1, 2, 3), SamplingParams(**params), interventions)


def tokens(handle, choice=0):
    """The tokens of a choice, and why it ended."""
    events = [event for event in handle if event.choice == choice]
    ids = [event.token_id for event in events if isinstance(event, TokenEvent)]
    [end] = [event for event in events if isinstance(event, FinishedEvent)]
    assert end.usage.completion_tokens == len(ids)
    return ids, end.reason


def run_all(engine, requests):
    """What each of the requests, submitted together, is answered."""
    handles = [engine.submit(each) for each in requests]
    return [tokens(handle) for handle in handles]
