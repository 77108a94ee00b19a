"""What a link tells its driver.

Plain slotted classes rather than frozen ones: a frozen dataclass takes three times as long to
make, and one is made for every small request. Treat them as frozen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StreamOpened:
    """The peer opened a stream with this first part.

    Attributes:
        stream: Its id.
        meta: The part's message.
        data: The part's data: a view of the received chunk, or of a buffer of its own.
        end: Whether the peer's half is done.
    """

    stream: int
    meta: bytes
    data: memoryview
    end: bool


@dataclass(slots=True)
class PartReceived:
    """A further part on a stream, or the first answer on one that we opened."""

    stream: int
    meta: bytes
    data: memoryview
    end: bool


@dataclass(slots=True)
class StreamReset:
    """The stream ended early, by the peer or because it broke a limit; it is gone."""

    stream: int
    code: str
    message: str


@dataclass(slots=True)
class StreamWritable:
    """All that had to wait on this stream was handed out; send more."""

    stream: int


@dataclass(slots=True)
class NoteReceived:
    """A one-way message outside of streams."""

    payload: bytes


@dataclass(slots=True)
class Stalled:
    """The peer owes answers and says nothing: send what is in flight there elsewhere."""


@dataclass(slots=True)
class Recovered:
    """A stalled peer spoke again."""


@dataclass(slots=True)
class Dead:
    """Nothing was received for so long that the driver should close the connection."""


@dataclass(slots=True)
class GoingAway:
    """The peer takes no new streams; running ones finish."""


@dataclass(slots=True)
class RttMeasured:
    """A ping was answered after this many seconds."""

    rtt_s: float


LinkEvent = (
    StreamOpened
    | PartReceived
    | StreamReset
    | StreamWritable
    | NoteReceived
    | Stalled
    | Recovered
    | Dead
    | GoingAway
    | RttMeasured
)
