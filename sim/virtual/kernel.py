"""A host's kernel: who is bound where, which connections it has, and who may connect.

Ports are given out in order, so they are the same in every run.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual.datagrams import DatagramPort
    from meshnode.sim.virtual.host import Process, VirtualHost
    from meshnode.sim.virtual.streams import StreamEnd

FIRST_EPHEMERAL_PORT: Final = 32_768
LAST_PORT: Final = 65_535

ANY: Final = ("0.0.0.0", "::", "")  # noqa: S104 - what programs name who listen everywhere

_LOOPBACK: Final = "127."


class Listener:
    """A socket that is connected to: connections wait until they are accepted.

    Attributes:
        process: Whose it is.
        queue: Those that wait.
        backlog: How many may.
        wake: Called in the kernel when one has come.
        family: Of its socket.
        closed: Whether it listens no more.
    """

    __slots__ = ("backlog", "closed", "family", "process", "queue", "wake")

    def __init__(self, process: Process, backlog: int, family: int = socket.AF_INET) -> None:
        """Listen."""
        self.process = process
        self.family = family
        self.closed = False
        self.backlog = max(1, backlog)
        self.queue: deque[StreamEnd] = deque()
        self.wake: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Listener of {self.process!r}, {len(self.queue)} wait>"

    def came(self, end: StreamEnd) -> None:
        """Take a connection."""
        self.queue.append(end)
        if self.wake is not None:
            self.wake()


class Kernel:
    """The sockets of one host.

    Attributes:
        ends: Its connections, the oldest first.
        listeners: Who listens, by port, with the address that each is bound to.
        datagram_ports: Who receives datagrams, likewise.
        unix: Who listens, by path.
    """

    def __init__(self, host: VirtualHost) -> None:
        """Begin with no socket."""
        self.host = host
        self.ends: dict[StreamEnd, None] = {}
        self.listeners: dict[int, dict[str, Listener]] = {}
        self.datagram_ports: dict[int, dict[str, DatagramPort]] = {}
        self.unix: dict[str, Listener] = {}
        self._claimed: dict[tuple[socket.SocketKind, int], list[str]] = {}
        self._next_port = FIRST_EPHEMERAL_PORT
        self._vanished: list[StreamEnd] = []

    def __repr__(self) -> str:
        return f"<Kernel of {self.host.name}: {len(self.ends)} connections, {len(self.listeners)} ports>"

    # Addresses.

    def is_own(self, address: str) -> bool:
        """Whether an address leads to this host from itself."""
        return address in (self.host.address, "::1") or address.startswith(_LOOPBACK)

    def claim(self, kind: socket.SocketKind, address: str, port: int) -> int:
        """Bind an address; return its port, the next free one for 0.

        Raises:
            OSError: if it is not this host's, or in use.
        """
        if address not in ANY and not self.is_own(address):
            raise failure(errno.EADDRNOTAVAIL)
        wanted = "" if address in ANY else address
        if port == 0:
            port = self._free_port(kind)
        taken = self._claimed.setdefault((kind, port), [])
        if taken and (not wanted or "" in taken or wanted in taken):
            raise failure(errno.EADDRINUSE)
        taken.append(wanted)
        return port

    def unclaim(self, kind: socket.SocketKind, address: str, port: int) -> None:
        """Give an address back."""
        taken = self._claimed.get((kind, port), [])
        wanted = "" if address in ANY else address
        if wanted in taken:
            taken.remove(wanted)
        if not taken:
            self._claimed.pop((kind, port), None)

    def _free_port(self, kind: socket.SocketKind) -> int:
        for _ in range(FIRST_EPHEMERAL_PORT, LAST_PORT + 1):
            port = self._next_port
            self._next_port = FIRST_EPHEMERAL_PORT if port == LAST_PORT else port + 1
            if (kind, port) not in self._claimed:
                return port
        raise failure(errno.EADDRINUSE)

    def ephemeral_port(self) -> int:
        """Return the port of a connection that is made from here."""
        return self._free_port(socket.SOCK_STREAM)

    def listener_at(self, address: str, port: int) -> Listener | None:
        """Return who listens at an address of this host."""
        bound = self.listeners.get(port)
        if bound is None:
            return None
        return bound.get(address) or bound.get("")

    def datagram_port_at(self, address: str, port: int) -> DatagramPort | None:
        """Return who receives the datagrams that are sent to an address of this host."""
        bound = self.datagram_ports.get(port)
        if bound is None:
            return None
        return bound.get(address) or bound.get("")

    # What happens to the process.

    def process_ended(self) -> None:
        """Close all that the process had, as a kernel does: with a reset where something is unread."""
        ends = [*self.ends]
        for end in ends:
            end.abandon()
            end.hang_up()
        self._forget_sockets()

    def vanish(self) -> None:
        """Lose everything at once, with no word to anybody."""
        self._vanished = [end.peer for end in self.ends]
        for end in [*self.ends]:
            end.abandon()
            end.close()
        self.ends.clear()
        self._forget_sockets()

    def booted(self) -> None:
        """Be there again, and know none of the former connections: who still sends is told so."""
        vanished, self._vanished = self._vanished, []
        for end in vanished:
            if not end.closed:
                end.machine_is_back()

    def _forget_sockets(self) -> None:
        self.listeners.clear()
        self.datagram_ports.clear()
        self.unix.clear()
        self._claimed.clear()


def failure(number: int) -> OSError:
    """Return the OSError of an error number, as the operating system words it."""
    return OSError(number, os.strerror(number))
