"""The ids of events in streams that can be taken up again: `STREAM.NUMBER.NODE`.

A stream's name is what nobody guesses, and a digest of the request, so that every gateway sees whether who comes back
for the rest asks for the same.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Mapping

LAST_EVENT_ID: Final = "last-event-id"
_PREFIX: Final = "/mesh/v1/models/"
_SUFFIX: Final = "/stream"
_ID: Final = re.compile(r"([0-9a-f]{1,64})\.([0-9]{1,17})(?:\.([a-z2-7]{32}))?", re.ASCII)
MIN_NAME_LENGTH: Final = 16
"""Of the name of a stream that another gateway may take up: a short one could be guessed."""

DRAWN_BYTES: Final = 12
"""Of a name: 96 random bits, so that nobody guesses the stream of another."""

_ASKED_BYTES: Final = 4  # of a digest of the request: enough to find a mistake out


def goes_on(method: str, target: str, headers: Mapping[str, str]) -> bool:
    """Whether a request asks for the rest of a stream: it begins nothing, and its stream counts already."""
    return (
        LAST_EVENT_ID in headers
        and method == "POST"
        and target.startswith(_PREFIX)
        and target.partition("?")[0].endswith(_SUFFIX)
    )


class EventId(NamedTuple):
    """What the id of an event says.

    Attributes:
        stream: Its stream's name.
        number: Its number in there, from 1.
        executor: The node that made it; None where that is not said.
    """

    stream: str
    number: int
    executor: NodeId | None = None

    @classmethod
    def parse(cls, text: str) -> EventId | None:
        """Return what an id says; None if it is none."""
        found = _ID.fullmatch(text)
        if found is None:
            return None
        stream, number, executor = found.groups()
        return cls(stream, int(number), NodeId(executor) if executor else None)

    def may_be_of(self, asked: bytes) -> bool:
        """Whether its stream may have begun with a request; names that older versions made do not tell."""
        drawn = self.stream[: 2 * DRAWN_BYTES]
        return len(self.stream) != 2 * (DRAWN_BYTES + _ASKED_BYTES) or self.stream == made_for(
            drawn, asked
        )


def made_for(drawn: str, asked: bytes) -> str:
    """Return the name of a stream.

    Args:
        drawn: What nobody guesses.
        asked: All of the request that decides about its answer.
    """
    return drawn + blake2b(asked, digest_size=_ASKED_BYTES, key=drawn.encode()).hexdigest()
