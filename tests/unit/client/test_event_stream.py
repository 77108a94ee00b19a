"""Server-sent events in whatever pieces they come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.client.event_stream import EventParser, ServerEvent, is_event_stream
from meshnode.errors import ProtocolError

TEXT = (
    "\ufeffevent: part\nid: s.1\ndata: {\"a\": 1}\n\n"
    ": still working\n\n"
    "data: one\ndata: two\r\n\r\n"
    "id: s.2\revent: done\rdata\r\r"
    "event: nothing\n\n"
    "data:x\nretry: 5\nunknown: y\n\n"
).encode()  # fmt: skip
EVENTS = [
    ServerEvent("part", '{"a": 1}', "s.1"),
    ServerEvent("message", "one\ntwo", "s.1"),
    ServerEvent("done", "", "s.2"),
    ServerEvent("message", "x", "s.2"),
]


def test_events_are_read_whole() -> None:
    assert EventParser().feed(TEXT) == EVENTS


@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    parser = EventParser()
    places = [0, *sorted(cuts), len(TEXT)]
    found = []
    for start, end in pairwise(places):
        found += parser.feed(TEXT[start:end])
    assert found == EVENTS


def test_events_are_read_byte_by_byte() -> None:
    parser = EventParser()
    assert [event for at in range(len(TEXT)) for event in parser.feed(TEXT[at : at + 1])] == EVENTS


def test_an_event_that_was_cut_short_is_none() -> None:
    parser = EventParser()
    assert parser.feed(b"data: half\n") == []
    assert parser.feed(b"data: more") == []
    assert parser.feed(b"\n\n") == [ServerEvent("message", "half\nmore")]


def test_an_id_with_a_nul_is_ignored_and_an_empty_one_takes_the_last_back() -> None:
    parser = EventParser()
    assert [event.id for event in parser.feed(b"id: a\n\nid: b\0\ndata: 1\n\nid\ndata: 2\n\n")] == [
        "a",
        "",
    ]


def test_data_that_is_no_object_is_told() -> None:
    assert ServerEvent("part", '{"x": 1}').document() == {"x": 1}
    for data in ("[1]", "{", ""):
        with pytest.raises(ProtocolError, match="part"):
            ServerEvent("part", data).document()


def test_only_a_successful_answer_of_its_media_type_is_a_stream() -> None:
    assert is_event_stream(200, {"content-type": "text/event-stream; charset=utf-8"})
    assert not is_event_stream(404, {"content-type": "text/event-stream"})
    assert not is_event_stream(200, {"content-type": "application/json"})
    assert not is_event_stream(200, {})
