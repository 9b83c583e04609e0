"""Requests whose prompts repeat themselves, and their answers with a draft or without."""

from __future__ import annotations

from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent


def request(*prompt, **params):
    """A request for twelve tokens."""
    params = {"max_new_tokens": 12, **params}
    return Request(prompt or (1, 2, 3, 1, 2, 3), SamplingParams(**params))


def some_requests(count=4, **params):
    """Requests with prompts of different lengths and seeds of their own."""
    prompts = [[1 + place % 9 for place in range(6 + 5 * row)] for row in range(count)]
    return [request(*prompt, seed=row, **params) for row, prompt in enumerate(prompts)]


def answer(handle):
    """The tokens of a request, why it ended, and how many tokens it is said to have."""
    events = list(handle)
    ids = [event.token_id for event in events if isinstance(event, TokenEvent)]
    [end] = [event for event in events if isinstance(event, FinishedEvent)]
    return ids, end.reason, end.usage.completion_tokens


def run_all(engine, requests, draft=None, **how):
    """What each of the requests, submitted together, is answered; the engine holds none after."""
    handles = [engine.submit(each, draft=draft, **how) for each in requests]
    found = [answer(handle) for handle in handles]
    assert engine.num_free_rows == engine.max_rows
    return found
