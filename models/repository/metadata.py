"""`metadata.json`: what a version's author wrote down beside it.

It is a JSON object. What is taken over, all of it optional:

| field | becomes |
|---|---|
| `version` | the label, if it is no plain integer; the number of a bare file |
| `timestamp`, `created`, `created_at`, `date` | when it was made: seconds since 1970, ISO 8601, or `%Y%m%d_%H%M%S` |
| `note`, `description` | the note |
| `metrics`, an object of numbers | metrics |
| any other number at the top, such as `accuracy` | a metric; the first 16 are kept |

Everything else is left alone. Nobody signed it: a signature comes from the node that publishes the version.
"""

from __future__ import annotations

import itertools
import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.errors import ModelError
from meshnode.limits import MAX_NOTE_LENGTH, MAX_PROVENANCE_METRICS, MAX_SHOWN_LENGTH
from meshnode.models.provenance import Provenance
from meshnode.models.repository.version_names import VersionName, read_moment, read_version

if TYPE_CHECKING:
    from collections.abc import Iterator

METADATA_FILE: Final = "metadata.json"

_TIMES: Final = ("timestamp", "created", "created_at", "date")
_NOTES: Final = ("note", "description")
_LAST_MOMENT_S: Final = 253_402_300_799.0  # the end of the year 9999


class Metadata(NamedTuple):
    """What a `metadata.json` says: the version, if any, and the rest as an unsigned provenance."""

    version: VersionName | None
    provenance: Provenance


def read_metadata(text: str) -> Metadata:
    """Read the text of a `metadata.json`.

    Raises:
        ModelError: if it is no JSON object, or one of the fields above is of another kind.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{METADATA_FILE} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{METADATA_FILE} is no JSON object, such as {{'accuracy': 0.97}}")
    version = _version(document.get("version"))
    return Metadata(
        version,
        Provenance(
            created_s=_created(document),
            label=version.label if version else "",
            metrics=_metrics(document),
            note=_note(document),
        ),
    )


def _version(value: Any) -> VersionName | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ModelError(f"version in {METADATA_FILE} is {value!r}; it must be an integer or text")
    read = read_version(str(value))
    if read is not None or isinstance(value, int):
        return read
    # Such as "1.4.2": nothing to count by, but worth showing.
    label = value if value.isprintable() and len(value) <= MAX_SHOWN_LENGTH else ""
    return VersionName(0, label)


def _created(document: dict[str, Any]) -> float:
    for name in _TIMES:
        value = document.get(name)
        if value is not None:
            seconds = _seconds(value)
            if not 0 <= seconds <= _LAST_MOMENT_S:
                raise ModelError(
                    f"{name} in {METADATA_FILE} is {value!r}; it must be seconds since 1970, ISO 8601, or "
                    "like 20260131_120000"
                )
            return seconds
    return 0.0


def _seconds(value: Any) -> float:
    """Return seconds since 1970; something negative for what is no time."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return -1.0
    if isinstance(value, str):
        moment = read_moment(value)
        try:
            moment = moment or datetime.fromisoformat(value)
        except ValueError:
            return -1.0
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return float(value) if math.isfinite(value) else -1.0


def _metrics(document: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    nested = document.get("metrics", {})
    if not isinstance(nested, dict):
        raise ModelError(f"metrics in {METADATA_FILE} is no object, such as {{'accuracy': 0.97}}")
    top = {name: value for name, value in document.items() if name not in ("version", *_TIMES)}
    found = dict(_numbers(nested)) | dict(_numbers(top))
    return tuple(sorted(itertools.islice(found.items(), MAX_PROVENANCE_METRICS)))


def _numbers(document: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in document.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not name.isprintable() or not 0 < len(name) <= MAX_SHOWN_LENGTH:
            continue
        try:
            number = float(value)
        except OverflowError:
            continue
        if math.isfinite(number):
            yield name, number


def _note(document: dict[str, Any]) -> str:
    for name in _NOTES:
        value = document.get(name)
        if isinstance(value, str):
            return value[:MAX_NOTE_LENGTH]
    return ""
