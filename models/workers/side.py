"""The side socket of a worker process, and the thread that reads it."""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from meshnode.errors import Saturated
from meshnode.models.workers import protocol as say

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class Listener(Protocol):
    """Who is told what the node says on the side socket, in the side thread."""

    def take_freed(self) -> tuple[int, ...]:
        """Return the regions of inputs that the model has let go since the last call."""
        ...

    def interrupt(self, message: say.Interrupt) -> None:
        """Note that nobody waits for a batch any more."""
        ...

    def credit(self, message: say.Credit) -> None:
        """Let further parts of a stream go."""
        ...


class SideChannel:
    """The side socket and the thread that reads it."""

    def __init__(self, socket_: socket.socket, listener: Listener, silence_s: float) -> None:
        """Take over the socket; a process that answers no ping for `silence_s` ends itself."""
        self._socket = socket_
        self._listener = listener
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._asks = 0
        self._waiting: dict[int, queue.SimpleQueue[say.Room | say.Called]] = {}

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="meshnode-side", daemon=True).start()

    def need_room(self, batch: int, length: int) -> tuple[int, int]:
        """Return a region (offset, length) for an answer.

        Raises:
            Saturated: if there is none.
        """
        room = self._ask(lambda ask: say.NeedRoom(ask, batch, length))
        assert isinstance(room, say.Room)
        if room.offset < 0:
            raise Saturated(
                f"the memory that this model shares with its node has no room for {length} bytes"
            )
        return room.offset, room.length

    def call(self, model: str, version: int | None, request: say.WireRequest) -> say.Called:
        """Ask another model, and wait for its answer."""
        called = self._ask(lambda ask: say.CallModel(ask, model, version, request))
        assert isinstance(called, say.Called)
        return called

    def _ask(self, message: Callable[[int], say.Message]) -> say.Room | say.Called:
        mine: queue.SimpleQueue[say.Room | say.Called] = queue.SimpleQueue()
        with self._lock:
            self._asks += 1
            ask = self._asks
        self._waiting[ask] = mine
        self._send(message(ask))
        return mine.get()

    def _send(self, message: say.Message) -> None:
        data = say.encode(message)
        with self._lock:
            self._socket.sendall(data)

    def _read(self) -> None:
        reader = say.Reader(from_process=False)
        with suppress(OSError):
            while data := self._socket.recv(65536):
                for message in reader.feed(data):
                    self._handle(message)
        end_all()

    def _handle(self, message: say.ToProcess | say.FromProcess) -> None:
        if isinstance(message, say.Ping):
            faulthandler.dump_traceback_later(self._silence_s, exit=True)
            self._send(say.Pong(message.number, self._listener.take_freed()))
        elif isinstance(message, say.Interrupt):
            self._listener.interrupt(message)
        elif isinstance(message, say.Credit):
            self._listener.credit(message)
        elif isinstance(message, say.Room | say.Called):
            waiting = self._waiting.pop(message.ask, None)
            if waiting is not None:
                waiting.put(message)


def end_all() -> None:
    """End this process and what it has forked: its node is gone."""
    if sys.platform != "win32":
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)
