"""Log records as lines: JSON for files and programs, text for people.

A record is a mapping with `time` (ISO 8601, UTC, milliseconds), `level`, `logger` and `message`, the
fields of `meshnode.log_fields` that its writer attached, and `exception`, a traceback's text. What is in a record
may come from strangers, and a reader may be handed a damaged file, so both forms are bounded and
neither lets a control character, a line end or a change of writing direction through to a terminal.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meshnode.limits import (
    MAX_LOG_EXCEPTION_LENGTH,
    MAX_LOG_FIELD_LENGTH,
    MAX_LOG_FIELDS,
    MAX_LOG_MESSAGE_LENGTH,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD = ("time", "level", "logger", "message")
_SAID_ELSEWHERE = frozenset((*_HEAD, "exception", "node", "mesh"))  # a file is one node's own
_OWN_LOGGER = "meshnode"


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC with milliseconds: `2026-02-03T04:05:06.789Z`."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def format_json(record: Mapping[str, object]) -> str:
    """Return a record as one line of JSON, in ASCII, without its line end."""
    line: dict[str, object] = {}
    for name, value in record.items():
        if len(line) == MAX_LOG_FIELDS:
            break
        line[_cut(str(name), MAX_LOG_FIELD_LENGTH)] = _bounded(name, value)
    return json.dumps(line, allow_nan=False)


def format_text(record: Mapping[str, object], *, with_time: bool = True) -> str:
    """Return a record as text: time, level, message and fields; a traceback on lines of its own.

    The node and its mesh are left out, since all lines of a log have the same. The first word with an
    equals sign begins the fields: a message that has one, perhaps because a stranger chose a name in it,
    is quoted, and cannot pass for a field.

    Args:
        record: As `format_json` writes it, or anything that a damaged file holds.
        with_time: False where each line is stamped by whoever takes it, as systemd's journal does.
    """
    words = [_word(record.get("time", "-"))] if with_time else []
    words.append(f"{_word(record.get('level', '-')):<7}")
    logger = _word(record.get("logger", ""))
    if logger and logger.partition(".")[0] != _OWN_LOGGER:
        words.append(f"{logger}:")
    words.append(_message(record.get("message", "")))
    fields = [name for name in record if name not in _SAID_ELSEWHERE]
    words += [f"{_value(name)}={_value(record[name])}" for name in fields[:MAX_LOG_FIELDS]]
    text = " ".join(words).rstrip()
    exception = record.get("exception")
    if exception:
        lines = _middle_cut(str(exception), MAX_LOG_EXCEPTION_LENGTH).splitlines()
        text = "\n".join([text, *(f"    {_printable(line)}" for line in lines)])
    return text


def _bounded(name: str, value: object) -> object:
    """Return a field's value as JSON may hold it, no longer than its limit."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0.0 else str(value)  # JSON has no infinity and no NaN
    text = str(value).encode(errors="backslashreplace").decode()  # lone surrogates are no JSON
    if name == "exception":
        return _middle_cut(text, MAX_LOG_EXCEPTION_LENGTH)
    return _cut(text, MAX_LOG_MESSAGE_LENGTH if name == "message" else MAX_LOG_FIELD_LENGTH)


def _word(value: object) -> str:
    return _printable(_cut(str(value), MAX_LOG_FIELD_LENGTH))


def _message(value: object) -> str:
    """Return a message, quoted where part of it would read as a field."""
    text = _printable(_cut(str(value), MAX_LOG_MESSAGE_LENGTH))
    looks_different = "=" in text or text.startswith('"')
    return json.dumps(text, ensure_ascii=False) if looks_different else text


def _value(value: object) -> str:
    """Return a field's value, quoted where it would not read as one word."""
    text = _word(value)
    return text if text and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


def _printable(text: str) -> str:
    """Return text with all that is not printable escaped, as Python writes it in a literal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def _middle_cut(text: str, length: int) -> str:
    """Return a traceback with its middle left out: it begins with where, and ends with what."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters left out)\n{text[-half:]}"
