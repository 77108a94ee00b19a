"""The newest pieces of a stream, numbered: for its reader, and for one who comes after it and has some already.

    filled ── append ──> kept ── after ──> the reader of the moment
                          └─ what was sent stays, as far as there is room, so that another reader goes on after it

Whoever fills it waits while what was not sent yet takes all the room; what was sent never holds anybody up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, NamedTuple, TypeVar

_Piece = TypeVar("_Piece")


class SharedRoom:
    """What all buffers of one place hold together.

    Attributes:
        kept_bytes: So much now.
    """

    __slots__ = ("kept_bytes",)

    def __init__(self) -> None:
        """Begin with nothing."""
        self.kept_bytes = 0

    def __repr__(self) -> str:
        return f"<SharedRoom: {self.kept_bytes} bytes>"


class Numbered(NamedTuple, Generic[_Piece]):
    """A piece that is kept.

    Attributes:
        number: Its number in the stream, from 1.
        piece: It.
        size_bytes: What it takes.
    """

    number: int
    piece: _Piece
    size_bytes: int


class ReplayBuffer(Generic[_Piece]):
    """What is kept of one stream.

    Attributes:
        last: Number of the newest piece.
        sent: Number of the newest piece that was given to a reader.
        kept_bytes: What all that is here takes.
    """

    def __init__(
        self, shared: SharedRoom, after: int, *, max_bytes: int, max_shared_bytes: int
    ) -> None:
        """Begin empty.

        Args:
            shared: What it holds is counted there too.
            after: The number of the piece before its first one.
            max_bytes: What it may take; one piece more is let in.
            max_shared_bytes: Above this, nothing is kept that was sent.
        """
        self._shared = shared
        self._max_bytes = max_bytes
        self._max_shared_bytes = max_shared_bytes
        self._pieces: deque[Numbered[_Piece]] = deque()
        self._room = asyncio.Event()
        self.last = after
        self.sent = after
        self.kept_bytes = 0

    def __repr__(self) -> str:
        return f"<ReplayBuffer: {self.sent} of {self.last} sent, {self.kept_bytes} bytes>"

    @property
    def first(self) -> int:
        """Number of the oldest piece that is here; of the next one to come if none is."""
        return self._pieces[0].number if self._pieces else self.last + 1

    def all(self) -> list[_Piece]:
        """Return all that is here."""
        return [each.piece for each in self._pieces]

    def holds_after(self, number: int) -> bool:
        """Whether all pieces after this number are here, or will be."""
        return self.first - 1 <= number <= self.last

    def after(self, number: int) -> Numbered[_Piece] | None:
        """Return the piece that follows a number; None if it has yet to come, or nothing is kept any more."""
        if number >= self.last or not self._pieces:
            return None
        return self._pieces[number + 1 - self._pieces[0].number]

    def append(self, piece: _Piece, size_bytes: int) -> None:
        """Keep the next piece."""
        self.last += 1
        self._pieces.append(Numbered(self.last, piece, size_bytes))
        self._count(size_bytes)
        self._trim()

    def has_sent(self, number: int) -> None:
        """A piece was given to the reader; what was sent may go if there is too much."""
        self.sent = number
        self._trim()
        self._room.set()

    async def until_there_is_room(self) -> None:
        """Wait until the reader has taken enough for another piece."""
        while self.kept_bytes > self._max_bytes and self.sent < self.last:
            self._room.clear()
            await self._room.wait()

    def clear(self) -> None:
        """Keep nothing any more."""
        self._count(-self.kept_bytes)
        self._pieces.clear()

    def _count(self, size_bytes: int) -> None:
        self.kept_bytes += size_bytes
        self._shared.kept_bytes += size_bytes

    def _trim(self) -> None:
        """Forget the oldest pieces that were sent, as far as there are too many."""
        is_tight = self._shared.kept_bytes > self._max_shared_bytes
        limit_bytes = 0 if is_tight else self._max_bytes
        while self.kept_bytes > limit_bytes and self._pieces[0].number < self.sent:
            self._count(-self._pieces.popleft().size_bytes)
