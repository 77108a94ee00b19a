"""How a TCP connection comes about: SYN, its repetitions, refusals, full backlogs, routers in between."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from meshnode.sim.virtual.addresses import spelled
from meshnode.sim.virtual.kernel import ANY
from meshnode.sim.virtual.streams import LOOPBACK_S, StreamEnd, join

if TYPE_CHECKING:
    import asyncio

    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.sim.virtual.kernel import Listener
    from meshnode.sim.virtual.sockets import VirtualSocket

SYN_AT_S: Final = (0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0)
"""When a SYN is sent that nobody answers: Linux's tcp_syn_retries of 6."""

SYN_TIMEOUT_S: Final = 127.0
"""When it is given up."""

_SYN_BYTES: Final = 60


class Dialling:
    """One attempt to connect a socket.

    Attributes:
        outcome: Done once the socket is connected, or cannot be.
    """

    def __init__(self, sock: VirtualSocket, address: str, port: int) -> None:
        """Send the first SYN now."""
        self._sock = sock
        self._host = sock.host
        self._loop = sock.host.loop
        self._address = address
        self._port = port
        self._began_at = self._loop.now()
        self._tries = 0
        self._over = False
        self._own: StreamEnd | None = None
        self.outcome: asyncio.Future[None] = self._loop.create_future()
        kernel = self._host.kernel
        if address in ANY:  # as Linux does
            self._address = "127.0.0.1"
        self._target: VirtualHost | None = (
            self._host if kernel.is_own(self._address) else self._loop.by_address.get(address)
        )
        self._send_syn()

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self._over = True
        if self._own is not None and self._sock.end is not self._own:
            self._own.reset()

    def _send_syn(self) -> None:
        if self._over:
            return
        self._tries += 1
        if self._tries > len(SYN_AT_S):
            self._fail(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
            return
        target, loop = self._target, self._loop
        if target is not None and self._passes(self._host, target) and self._may_dial(target):
            loop.after(self._delay_s(self._host, target), self._syn_arrives, target)
        due = [*SYN_AT_S, SYN_TIMEOUT_S][self._tries]
        loop.at(self._began_at + due, self._again, self._tries)

    def _again(self, tries: int) -> None:
        if tries == self._tries and self._own is None:
            self._send_syn()

    def _may_dial(self, target: VirtualHost) -> bool:
        return self._loop.network.may_dial(self._host.name, target.name)

    def _passes(self, source: VirtualHost, target: VirtualHost) -> bool:
        return source is target or self._loop.network.passes(source.name, target.name)

    def _delay_s(self, source: VirtualHost, target: VirtualHost) -> float:
        if source is target:
            return LOOPBACK_S
        network = self._loop.network
        return network.stream_delay_s(source.name, target.name, _SYN_BYTES, self._loop.now())

    def _syn_arrives(self, target: VirtualHost) -> None:
        """Let the target's kernel answer: it listens, or refuses; a full backlog says nothing."""
        if self._over or target.off or not self._passes(target, self._host):
            return
        listener = target.kernel.listener_at(self._address, self._port)
        back_s = self._delay_s(target, self._host)
        if listener is None:
            self._loop.after(back_s, self._refused)
        elif len(listener.queue) < listener.backlog:
            self._loop.after(back_s, self._established, target, listener)

    def _refused(self) -> None:
        if not self._over and self._own is None and not self._host.off:
            self._fail(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))

    def _established(self, target: VirtualHost, listener: Listener) -> None:
        """The answer has come: this side is connected, the other one will be when it hears so."""
        sock, host, loop = self._sock, self._host, self._loop
        if self._over or self._own is not None or host.off or sock.process.dead:
            return
        own_port = sock.own_port()
        here = "127.0.0.1" if target is host and self._address.startswith("127.") else host.address
        number = loop.next_number()
        mine = self._own = StreamEnd(
            host, sock.process, number, sock.family,
            spelled(sock.family, here, own_port), spelled(sock.family, self._address, self._port),
        )  # fmt: skip
        other_family = listener.family
        other = StreamEnd(
            target, listener.process, number, other_family,
            spelled(other_family, self._address, self._port), spelled(other_family, here, own_port),
        )  # fmt: skip
        join(mine, other)
        mine.tell_peer(_came, other, listener)
        if self.outcome.done():  # cancelled at this moment
            self.give_up()
            return
        sock.end = mine
        self.outcome.set_result(None)

    def _fail(self, error: OSError) -> None:
        self._over = True
        if not self.outcome.done():
            self.outcome.set_exception(error)


def _came(end: StreamEnd, listener: Listener) -> None:
    """The third packet arrives: the connection waits to be accepted, unless nobody listens any more."""
    if end.host.off or end.closed:
        return
    if listener.closed or listener.process.dead:
        end.reset()
        return
    listener.came(end)
