"""The node's end of one of the two sockets of a worker process, on the event loop."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol, cast

from meshnode.errors import ProtocolError
from meshnode.limits import WORKER_MESSAGES_PER_S
from meshnode.models.workers.protocol import Reader
from meshnode.models.workers.supervision import Pace

if TYPE_CHECKING:
    from meshnode.models.workers import protocol as say


class Hearer(Protocol):
    """Who is told what a process says."""

    def heard(self, message: say.ToProcess | say.FromProcess) -> None:
        """Take a message."""
        ...

    def end(self, reason: str) -> None:
        """End the process for a reason."""
        ...

    def lost(self) -> None:
        """The socket is closed."""
        ...


class Channel(asyncio.Protocol):
    """Reads messages. A process that says more than it may, for long, is read later."""

    def __init__(self, hearer: Hearer) -> None:
        """Tell this one."""
        self._hearer = hearer
        self._reader = Reader(from_process=True)
        self._pace = Pace(WORKER_MESSAGES_PER_S, time.monotonic())
        self._transport: asyncio.ReadTransport | None = None

    def __repr__(self) -> str:
        return f"<Channel {self._pace!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.ReadTransport", transport)  # uvloop's are of no such class

    def data_received(self, data: bytes) -> None:
        """Hand on whole messages, and rest if they were too many."""
        count = 0
        try:
            for message in self._reader.feed(data):
                self._hearer.heard(message)
                count += 1
        except ProtocolError as error:
            self._hearer.end(f"{error}; it was ended")
        pause_s = self._pace.pause_s(count, time.monotonic())
        if pause_s and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(pause_s, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the socket."""
        del exc
        self._hearer.lost()
