"""Sockets of virtual hosts, with the methods of `socket.socket` that programs on an asyncio loop call.

They make no system call and have no file descriptor. What would block raises BlockingIOError: a loop's
methods (`sock_accept`, `sock_connect`, `create_server`, `create_connection` ...) do that work.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.sim.virtual.addresses import plain, spelled
from meshnode.sim.virtual.datagrams import DatagramPort
from meshnode.sim.virtual.kernel import ANY, Listener, failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual.host import Process, VirtualHost
    from meshnode.sim.virtual.streams import StreamEnd

_FIRST_FILENO: Final = 1_000_000  # above every real one, so that a mix-up is found out

_NO_LINGER: Final = struct.pack("ii", 1, 0)

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


class VirtualSocket:
    """A socket of the host that made it; `VirtualLoop.open_socket` makes one.

    Attributes:
        family: Its address family, AF_INET or AF_INET6.
        type: SOCK_STREAM or SOCK_DGRAM.
        proto: As it was given; means nothing.
        host: Whose it is.
        end: Its end of a connection, if it has one.
        listener: What waits to be accepted, if it listens.
        datagram_port: Where it is bound, if it is bound and for datagrams.
        unix_path: The path at which it listens, if it does at one.
    """

    def __init__(
        self,
        process: Process,
        family: int,
        kind: int,
        proto: int = 0,
        end: StreamEnd | None = None,
    ) -> None:
        """Make one for a process.

        Raises:
            OSError: if there are no such sockets here.
        """
        if family not in _INTERNET or kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise failure(errno.EAFNOSUPPORT)
        assert process.host is not None
        self.host: VirtualHost = process.host
        self.process = process
        self.family = socket.AddressFamily(family)
        self.type = socket.SocketKind(kind)
        self.proto = proto
        self.end = end
        self.listener: Listener | None = None
        self.datagram_port: DatagramPort | None = None
        self._options: dict[tuple[int, int], Any] = {}
        self._fileno = _FIRST_FILENO + self.host.loop.next_number()
        self._bound: tuple[str, int] | None = None
        self._claimed = False
        self.unix_path: str | None = None

    def __repr__(self) -> str:
        state = "closed" if self._fileno < 0 else f"at {self._bound}" if self._bound else "unbound"
        return f"<VirtualSocket of {self.host.name}, {self.type.name}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Where it is.

    def bind(self, address: Any) -> None:
        """Take an address of this host.

        Raises:
            OSError: if it is not this host's, or in use.
        """
        self._check_open()
        if self._bound is not None:
            raise failure(errno.EINVAL)
        kernel = self.host.kernel
        where = plain(address[0])
        port = kernel.claim(self.type, where, address[1])
        self._bound = (where, port)
        self._claimed = True
        if self.type is socket.SOCK_DGRAM:
            made = DatagramPort(self.host, self.process, self.family, self._key, port)
            kernel.datagram_ports.setdefault(port, {})[self._key] = made
            self.datagram_port = made

    def listen(self, backlog: int = 128) -> None:
        """Let others connect.

        Raises:
            OSError: if it is not bound.
        """
        self._check_open()
        if self.listener is None and self._bound is None:
            raise failure(errno.EDESTADDRREQ)
        if self.listener is None:
            assert self._bound is not None
            self.listener = Listener(self.process, backlog, self.family)
            self.host.kernel.listeners.setdefault(self._bound[1], {})[self._key] = self.listener
        self.listener.backlog = max(1, backlog)

    @property
    def _key(self) -> str:
        assert self._bound is not None
        return "" if self._bound[0] in ANY else self._bound[0]

    def getsockname(self) -> tuple[Any, ...]:
        """Return its own address."""
        self._check_open()
        if self.end is not None:
            return self.end.sockname
        if self.unix_path is not None:
            return (self.unix_path, 0)
        if self._bound is None:
            return spelled(self.family, "::" if self.family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104
        where, port = self._bound
        if where in ANY:
            where = "::" if self.family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
        return spelled(self.family, where, port)

    def getpeername(self) -> tuple[Any, ...]:
        """Return the other end's address.

        Raises:
            OSError: if it is not connected.
        """
        self._check_open()
        if self.end is None:
            raise failure(errno.ENOTCONN)
        return self.end.peername

    # What loops and transports call.

    def on_connection(self, call: Callable[[], None] | None) -> None:
        """Call this, in the kernel, when a connection has come; at once if some wait."""
        assert self.listener is not None
        self.listener.wake = call
        if call is not None and self.listener.queue:
            call()

    def take_connection(self) -> VirtualSocket | None:
        """Return the next connection that waits."""
        if self.listener is None or not self.listener.queue:
            return None
        end = self.listener.queue.popleft()
        return VirtualSocket(self.process, self.family, self.type, self.proto, end)

    def own_port(self) -> int:
        """Return the port that a connection is made from."""
        return self._bound[1] if self._bound else self.host.kernel.ephemeral_port()

    def released(self) -> None:
        """Note that the transport that took it over has closed it."""
        self._fileno = -1

    # Options.

    def setblocking(self, flag: bool) -> None:
        """Do nothing: it never blocks."""

    def settimeout(self, value: float | None) -> None:
        """Do nothing: it never blocks."""

    def gettimeout(self) -> float:
        """Return 0: it never blocks."""
        return 0.0

    def getblocking(self) -> bool:
        """Return False: it never blocks."""
        return False

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Keep an option; none but SO_LINGER changes anything."""
        self._check_open()
        self._options[level, option] = value

    def getsockopt(self, level: int, option: int) -> Any:
        """Return an option that was set, or 0."""
        self._check_open()
        return self._options.get((level, option), 0)

    @property
    def resets_when_closed(self) -> bool:
        """Whether SO_LINGER asks for a reset instead of an orderly end."""
        return self._options.get((socket.SOL_SOCKET, socket.SO_LINGER)) == _NO_LINGER

    # What would block.

    def accept(self) -> Any:
        """Refuse: use the loop's `sock_accept`."""
        raise BlockingIOError(errno.EWOULDBLOCK, "use the loop's sock_accept")

    def connect(self, address: Any) -> None:
        """Refuse, unless it is for datagrams that go to nobody: use the loop's `sock_connect`."""
        del address
        raise BlockingIOError(errno.EWOULDBLOCK, "use the loop's sock_connect")

    # Ends.

    def fileno(self) -> int:
        """Return a number that is no file descriptor; -1 once it is closed."""
        return self._fileno

    def shutdown(self, how: int) -> None:
        """End what is sent, or all."""
        if self.end is None:
            raise failure(errno.ENOTCONN)
        if how != socket.SHUT_RD:
            self.end.send_fin()

    def detach(self) -> int:
        """Refuse: there is no file descriptor."""
        raise NotImplementedError("a virtual socket has no file descriptor")

    def close(self) -> None:
        """Give its address back; a connection ends, and those that wait are refused."""
        if self._fileno < 0:
            return
        self._fileno = -1
        if self.process.dead:
            return
        kernel = self.host.kernel
        if self._claimed and self._bound is not None:
            kernel.unclaim(self.type, *self._bound)
            self._forget(kernel.listeners, self.listener)
            self._forget(kernel.datagram_ports, self.datagram_port)
        if self.unix_path is not None:
            kernel.unix.pop(self.unix_path, None)
        if self.listener is not None:
            self.listener.closed = True
            while self.listener.queue:
                self.listener.queue.popleft().reset()
        if self.end is not None and not self.end.closed:
            self.end.send_fin()
            self.end.close()

    def _forget(self, table: dict[int, dict[str, Any]], what: object) -> None:
        assert self._bound is not None
        bound = table.get(self._bound[1], {})
        if what is not None and bound.get(self._key) is what:
            del bound[self._key]
            if not bound:
                del table[self._bound[1]]

    def _check_open(self) -> None:
        if self._fileno < 0:
            raise failure(errno.EBADF)
