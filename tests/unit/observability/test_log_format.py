"""Lines of the log: for programs and for people, bounded and harmless to a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshnode.daemon.log_format import format_json, format_text, timestamp
from meshnode.limits import (
    MAX_LOG_EXCEPTION_LENGTH,
    MAX_LOG_FIELD_LENGTH,
    MAX_LOG_FIELDS,
    MAX_LOG_MESSAGE_LENGTH,
)

RECORD = {
    "time": "2026-02-03T04:05:06.789Z",
    "level": "info",
    "logger": "meshnode.gateway.request_log",
    "message": "infer digits ok in 3.2 ms on node beta",
    "node": "alpha",
    "mesh": "abc",
    "request_id": "r1",
    "duration_ms": 3.2,
}


def test_times_are_iso_8601_in_utc_with_milliseconds() -> None:
    assert timestamp(1770091506.7899) == "2026-02-03T04:05:06.789Z"
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"


def test_a_json_line_holds_everything() -> None:
    assert json.loads(format_json(RECORD)) == RECORD


def test_a_text_line_reads_as_a_sentence_with_fields() -> None:
    assert format_text(RECORD) == (
        "2026-02-03T04:05:06.789Z info    infer digits ok in 3.2 ms on node beta "
        "request_id=r1 duration_ms=3.2"
    )
    assert format_text(RECORD, with_time=False).startswith("info    infer digits")


def test_a_library_s_line_names_its_logger() -> None:
    assert "info    zeroconf: hello" in format_text(
        {**RECORD, "logger": "zeroconf", "message": "hello"}
    )


def test_a_traceback_follows_on_lines_of_its_own() -> None:
    text = format_text({**RECORD, "exception": "Traceback:\n  here\nValueError: x\x1b[2J"})
    assert text.splitlines()[1:] == ["    Traceback:", "      here", "    ValueError: x\\x1b[2J"]


@pytest.mark.parametrize(
    "nasty", ["\x1b[2J", "a\nfake line", "\r", "\x9b31m", "\u202egnp", "\x00", "\u2028", "\x7f"]
)
def test_no_form_lets_control_characters_through(nasty: str) -> None:
    for field in ("message", "model", "level", "time", "logger"):
        record = {**RECORD, field: nasty}
        assert format_text(record).isprintable()
        line = format_json(record)
        assert line.isprintable()
        assert json.loads(line)[field] == nasty  # nothing is lost


def test_a_field_cannot_pass_for_another() -> None:
    assert format_text({**RECORD, "model": 'x" code=ok'}).endswith('model="x\\" code=ok"')
    assert format_text({**RECORD, "model": ""}).endswith('model=""')


@pytest.mark.parametrize(
    "forged", ["infer x outcome=ok failed", '"infer x" outcome=ok', "request_id=r2", '"quoted"']
)
def test_a_message_cannot_pass_for_fields(forged: str) -> None:
    text = format_text({**RECORD, "message": forged}, with_time=False).removeprefix("info    ")
    message, end = json.JSONDecoder().raw_decode(text)
    assert (message, text[end:]) == (forged, " request_id=r1 duration_ms=3.2")


def test_a_damaged_file_s_field_names_cannot_pass_for_fields() -> None:
    assert format_text({**RECORD, "a b=c": 1}).endswith('duration_ms=3.2 "a b=c"=1')


def test_what_is_no_json_becomes_text() -> None:
    line = json.loads(format_json({"message": "\udc80", "a": float("nan"), "b": [1], "c": None}))
    assert line == {"message": "\\udc80", "a": "nan", "b": "[1]", "c": None}


def test_lines_are_bounded() -> None:
    many: dict[str, Any] = {f"field{number}": "x" * 10_000 for number in range(1000)}
    record = {**RECORD, "message": "m" * 10**6, "exception": "e" * 10**6, **many}
    most = (
        MAX_LOG_MESSAGE_LENGTH
        + MAX_LOG_EXCEPTION_LENGTH
        + 2 * MAX_LOG_FIELDS * (MAX_LOG_FIELD_LENGTH + 100)
    )
    assert len(format_json(record)) < most
    assert len(format_text(record)) < most


def test_of_a_long_traceback_both_ends_are_kept() -> None:
    text = format_json({"exception": "begin" + "x" * 10**6 + "ValueError: the end"})
    assert "begin" in text
    assert "ValueError: the end" in text
    assert "characters left out" in text


@pytest.mark.parametrize(
    "damaged", [{}, {"message": None}, {"level": 7, "time": []}, {"logger": {}}, {"exception": 5}]
)
def test_a_damaged_record_is_still_a_line(damaged: dict[str, Any]) -> None:
    assert isinstance(format_text(damaged), str)
