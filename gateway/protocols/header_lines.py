"""Headers that come in several lines (RFC 9110, 5.3): what they say counts together, or the request is refused.

A list may come in any number of lines, and is what all of them make: who asks for a GPU in one line and for a region's
tier in the next relies on both. Of a header with one value two different ones are refused: whichever was believed,
somebody on the way may have believed the other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

_OF_ONE_VALUE: Final = frozenset({
    "authorization",
    "content-type",
    "host",
    "idempotency-key",
    "inference-header-content-length",
    "last-event-id",
    "mesh-priority",
    "mesh-region",
    "mesh-session",
    "mesh-webhook",
    "mesh-webhook-secret",
    "origin",
    "x-api-key",
})  # fmt: skip
"""All that the gateway reads as one value, and heeds. Of those that only name something (`X-Request-Id`, `traceparent`)
two joined by a comma are of no form that is taken over."""


@lru_cache(maxsize=256)  # clients send the same headers again and again
def has_repetitions(names: bytes) -> bool:
    """Whether one of these names, a line each, comes twice."""
    listed = names.lower().split(b"\n")
    return len(set(listed)) < len(listed)


def each_once(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers, each once and with its name in lower case.

    Args:
        lines: All of them, in the order in which they came.

    Raises:
        InvalidRequest: if one that has one value comes with two.
    """
    found: dict[str, list[str]] = {}
    for name, value in lines:
        values = found.setdefault(name.lower(), [])
        if (text := value.strip(" \t")) not in values:
            values.append(text)
    for name, values in found.items():
        if len(values) > 1 and name in _OF_ONE_VALUE:
            raise InvalidRequest(
                f"the header {name.title()} comes {len(values)} times, with different values; send it once"
            )
    return {name: ", ".join(values) for name, values in found.items()}
