"""What a request's headers say of where it may run, and how urgent it is: the same for every dialect.

| header | meaning |
|---|---|
| `Mesh-Region: eu` | only in the region `eu` and those below it (`eu-west`, `eu-west-1`); `eu;prefer`: there if possible |
| `Mesh-Labels: gpu=a100, tier=2` | only on nodes that have all of these labels |
| `Mesh-Session: WORD` | with others of the same word on the same replica, while that is not much worse |
| `Mesh-Priority: low` | `low`, `normal` or `high`: what is shed first when there is too much |

gRPC sends the same as metadata. Labels of several lines count together (`header_lines`). A header that cannot be understood is refused, never ignored: who asks for a region
relies on it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from meshnode.errors import ConfigError, InvalidRequest
from meshnode.limits import MAX_HINT_HEADER_LENGTH, MAX_SESSION_LENGTH
from meshnode.options import is_name, parse_labels
from meshnode.types import NO_HINTS, Priority, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Mapping

REGION: Final = "mesh-region"
LABELS: Final = "mesh-labels"
SESSION: Final = "mesh-session"
PRIORITY: Final = "mesh-priority"

HEADERS: Final = (
    ("Mesh-Region", "Run only in this region and those below it; `REGION;prefer`: there if that is possible."),
    ("Mesh-Labels", "Run only on nodes with all of these labels: `KEY=VALUE`, separated by commas."),
    ("Mesh-Session", "Requests with the same word go to the same replica while that is not much slower."),
    ("Mesh-Priority", "`low`, `normal` or `high`: under overload the lowest are refused first."),
)  # fmt: skip
"""Each with what it means, for the description of the API."""

_PREFER: Final = "prefer"
_SESSION: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_SESSION_LENGTH}}}")
_SESSION_DIGEST_BYTES: Final = 8
_PRIORITIES: Final = {each.name.lower(): each for each in Priority}


def hints_of(headers: Mapping[str, str]) -> RoutingHints:
    """Return what headers (or a gRPC call's metadata) ask for.

    Args:
        headers: Lookups ignore case, or all keys are lower case.

    Raises:
        InvalidRequest: if one of them is not of its form; the message says which.
    """
    region, labels = headers.get(REGION), headers.get(LABELS)
    session, priority = headers.get(SESSION), headers.get(PRIORITY)
    if region is None and labels is None and session is None and priority is None:
        return NO_HINTS
    return _read(region, labels, session, priority)


@lru_cache(maxsize=256)
def _read(
    region: str | None, labels: str | None, session: str | None, priority: str | None
) -> RoutingHints:
    name, required = ("", True) if region is None else _region(region)
    return RoutingHints(
        region=name,
        region_required=required,
        labels=() if labels is None else _labels(labels),
        session="" if session is None else _session(session),
        priority=Priority.NORMAL if priority is None else _priority(priority),
    )


def _region(text: str) -> tuple[str, bool]:
    name, semicolon, how = (part.strip() for part in text.partition(";"))
    # A region that ends in a hyphen would be a beginning, and what it is below is not said.
    is_region = is_name(name) and not name.endswith("-")
    if not is_region or (semicolon and how.lower() != _PREFER):
        raise InvalidRequest(
            f"Mesh-Region: {text[:MAX_HINT_HEADER_LENGTH]!r} is no region; write its name for a rule (Mesh-Region: eu), "
            "or with `;prefer` for a preference (Mesh-Region: eu;prefer)"
        )
    return name, not semicolon


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    if len(text) > MAX_HINT_HEADER_LENGTH:
        raise InvalidRequest(
            f"Mesh-Labels has {len(text)} characters; it may have {MAX_HINT_HEADER_LENGTH}"
        )
    words = [word for part in text.split(",") if (word := part.strip())]
    if not words:
        raise InvalidRequest(
            "Mesh-Labels is empty; write KEY=VALUE, separated by commas (Mesh-Labels: gpu=a100), or leave it out"
        )
    try:
        labels = parse_labels("Mesh-Labels:", words)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None
    return tuple(sorted(labels))


def _session(text: str) -> str:
    """Return what stands for the word from here on: it may be a name, which is nobody's business in a log."""
    if not _SESSION.fullmatch(text):
        raise InvalidRequest(
            f"Mesh-Session: {text[:MAX_SESSION_LENGTH]!r} is no word; use 1 to {MAX_SESSION_LENGTH} printable ASCII "
            "characters without spaces"
        )
    return blake2b(text.encode(), digest_size=_SESSION_DIGEST_BYTES).hexdigest()


def _priority(text: str) -> Priority:
    found = _PRIORITIES.get(text.strip().lower())
    if found is None:
        raise InvalidRequest(
            f"Mesh-Priority: {text[:MAX_SESSION_LENGTH]!r} is no priority; it is {', '.join(_PRIORITIES)}"
        )
    return found
