"""Media types: which are accepted, and which ones files have."""

from __future__ import annotations

import pytest

from meshnode.models.media_types import (
    EVENTS,
    LINES,
    accepted,
    answered_as,
    asks_for_stream,
    by_ending,
    framing,
    sniffed,
    wants_json,
)


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", True), ("*/*", True), ("application/json", True), ("application/json; q=1", True),
        ("text/html, */*;q=0.8", True), ("image/png", False), ("video/mp4, image/gif", False),
        ("text/event-stream", False), ("image/png;q=0", True), ("application/json;q=0, image/png", False),
    ],
)  # fmt: skip
def test_only_an_explicit_other_type_asks_for_something_else_than_json(
    accept: str, json: bool
) -> None:
    assert wants_json(accept) is json


def test_what_is_accepted_is_read_without_case_and_by_its_weight() -> None:
    assert accepted("IMAGE/PNG;q=0.5, image/jpg , text/csv;q=0, audio/x-wav;level=1;q=0.7") == (
        "image/jpeg",
        "audio/wav",
        "image/png",
    )
    assert accepted("") == ()
    assert accepted("image/png;q=much") == ("image/png",)


@pytest.mark.parametrize(
    ("accept", "form", "streams"),
    [
        (EVENTS, EVENTS, True), (LINES, LINES, True), (f"{LINES};q=0.2, {EVENTS}", EVENTS, True),
        (f"application/json, {EVENTS}", EVENTS, False), ("image/png", "", False), ("", "", False),
        (f"{EVENTS}, */*;q=0.1", EVENTS, True), (f"{EVENTS};q=0", "", False),
    ],
)  # fmt: skip
def test_a_stream_is_asked_for_by_its_form_unless_json_is_liked_better(
    accept: str, form: str, streams: bool
) -> None:
    assert (framing(accept), asks_for_stream(accept)) == (form, streams)


def test_a_file_is_called_what_it_is_and_only_else_what_was_asked_for() -> None:
    assert answered_as(("image/gif",), "image/png") == "image/png"
    assert answered_as(("image/*", "image/gif"), "") == "image/gif"
    assert answered_as(("*/*",), "") == "application/octet-stream"
    assert by_ending("a.JPG") == "image/jpeg"
    assert by_ending("png") == by_ending("") == ""
    assert sniffed(b"BM" + bytes(10)) == "image/bmp"
    assert sniffed(b"BMs are letters") == ""
