"""Stop strings and transcripts: what is shown is final, however the text arrives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.generate.request import FinishedEvent, TokenEvent, Usage
from stepwell.generate.transcript import StopMatcher, Transcript
from stepwell.text.tokenizer import Tokenizer

short = st.text("ab", max_size=10)
stop_strings = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def before_first_stop(text, stops):
    """The text before the stop that is complete first; of those complete together, the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def split(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


class Hasty(StopMatcher):
    """A matcher that holds nothing back."""

    def push(self, piece):
        self._held = ""
        return super().push(piece) + self.flush()


def shown(matcher, pieces):
    return [*(matcher.push(piece) for piece in pieces), matcher.flush()]


@settings(max_examples=500, deadline=None)
@given(text=short, stops=stop_strings, cuts=st.lists(st.integers(0, 10), max_size=5))
def test_a_stop_string_is_found_at_the_same_place_however_the_text_is_split(text, stops, cuts):
    matcher = StopMatcher(stops)
    expected = before_first_stop(text, stops)
    assert "".join(shown(matcher, split(text, cuts))) == expected
    assert matcher.matched is any(stop in text for stop in stops)


def test_a_matcher_that_holds_nothing_back_breaks_the_law():
    pieces = ["so E", "ND and on"]
    assert "".join(shown(StopMatcher(["END"]), pieces)) == "so "
    assert "".join(shown(Hasty(["END"]), pieces)) == "so END and on"


def test_only_what_may_become_a_stop_string_is_held_back():
    assert shown(StopMatcher(["END"]), ["aE", "b", "cEN", "d"]) == ["a", "Eb", "c", "ENd", ""]
    assert shown(StopMatcher([]), ["aE", "b"]) == ["aE", "b", ""]


# Transcripts


def transcript(tokenizer, *, prompt="a", stops=(), stream=False, stop_ids=(), prefix=""):
    return Transcript(
        tokenizer,
        tokenizer.encode(prompt),
        stop_ids=frozenset(stop_ids),
        stops=stops,
        stream=stream,
        prefix=prefix,
    )


def feed(made, ids, reason="length"):
    """The pieces that were shown, and the completion."""
    pieces = [made.push(TokenEvent(0, token, -0.5)) for token in ids]
    pieces.append(made.finish(FinishedEvent(0, reason, Usage(1, len(ids)))))
    return pieces, made.finished


@pytest.mark.parametrize("stops", [(), ("cd",), ("zz", ".")])
def test_streamed_pieces_make_up_the_text_that_is_given_at_once(tokenizer, stops):
    ids = tokenizer.encode("ab cd. ef")
    pieces, streamed = feed(transcript(tokenizer, stops=stops, stream=True), ids)
    _, whole = feed(transcript(tokenizer, stops=stops), ids)
    assert "".join(pieces) == streamed.text == before_first_stop("ab cd. ef", stops)
    assert whole == streamed


def test_a_stop_string_ends_the_tokens_too_even_where_the_engine_ran_ahead(tokenizer):
    ids = tokenizer.encode("abcdef")
    _, done = feed(transcript(tokenizer, stops=["bc"]), ids, reason="cancelled")
    assert (done.text, done.finish_reason) == ("a", "stop")
    assert done.token_ids == tuple(ids[:3])
    assert (done.usage.completion_tokens, len(done.logprobs)) == (3, 3)


def test_a_stop_string_counts_where_the_length_ends_with_it(tokenizer):
    _, done = feed(transcript(tokenizer, stops=["c"]), tokenizer.encode("abc"), reason="length")
    assert (done.text, done.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_sequence_token_is_counted_and_not_shown(tokenizer, stream):
    end = tokenizer.id_of("b")  # an ordinary token, which decoding would show
    made = transcript(tokenizer, stop_ids=[end], stream=stream)
    _, done = feed(made, [tokenizer.id_of("a"), end], reason="stop")
    assert (done.text, done.token_ids[-1]) == ("a", end)


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_are_left_out_of_the_text(tokenizer, stream):
    ids = [tokenizer.id_of(token) for token in ("a", "<think>", "b", "<eos>")]
    _, done = feed(transcript(tokenizer, stream=stream), ids)
    assert (done.text, done.token_ids) == ("ab", tuple(ids))


def test_a_character_of_several_tokens_is_shown_when_it_is_whole():
    tokenizer = Tokenizer.byte()
    pieces, done = feed(transcript(tokenizer, stream=True), tokenizer.encode("a☃b"))
    assert pieces == ["a", "", "", "☃", "b", ""]
    assert done.text == "a☃b"


def test_a_stop_string_in_what_the_decoder_held_back_is_found():
    tokenizer = Tokenizer.byte()
    _, done = feed(transcript(tokenizer, stops=["\ufffd"]), [0x61, 0xE2], reason="length")
    assert (done.text, done.finish_reason) == ("a", "stop")


def test_the_prefix_comes_first(tokenizer):
    pieces, done = feed(transcript(tokenizer, prefix="> ", stream=True), tokenizer.encode("ab"))
    assert (done.text, "".join(pieces)) == ("> ab", "ab")
