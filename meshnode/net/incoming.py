"""The connections that a node takes: where it listens, and who waits for a hello."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from typing import TYPE_CHECKING

from meshnode.errors import LinkLost, MeshError, Saturated
from meshnode.limits import (
    HANDSHAKE_REFILL_S,
    HANDSHAKE_TIMEOUT_S,
    MAX_HANDSHAKE_SOURCES,
    MAX_HANDSHAKES_PER_SOURCE,
    MAX_LINKS_UNAUTHENTICATED,
)
from meshnode.net import sockets
from meshnode.net.connection import Connection, plain_host
from meshnode.net.log_budget import LogBudget
from meshnode.net.reachability import said
from meshnode.net.relay_transport import RelayedTransport
from meshnode.throttle import Throttle, source_of
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.clock import Clock
    from meshnode.net.hello_phase import Hello
    from meshnode.net.link_owner import LinkOwner
    from meshnode.net.tls import ServerTls
    from meshnode.types import NodeId
    from meshnode.wire.link import LinkConfig

log = logging.getLogger(__name__)

_ACCEPT_PAUSE_S = 0.5


class Incoming:
    """Listens, and takes connections until their hello is over.

    Attributes:
        connections: Those that are in their hello, the oldest first.
        throttled: Connections that were not looked at, because their source opens too many.
    """

    def __init__(
        self,
        owner: LinkOwner,
        clock: Clock,
        tls: ServerTls,
        begin_hello: Callable[[], Hello],
        config: LinkConfig,
        made: Callable[[Connection], None],
    ) -> None:
        """Take connections for a hub.

        Args:
            owner: Of every connection; it calls `ended` when a hello is over.
            clock: Theirs.
            tls: How they are secured.
            begin_hello: Begins a hello.
            config: Of their links.
            made: Told of each connection before anything happens on it.
        """
        self.connections: dict[Connection, asyncio.Task[None]] = {}
        self.throttled = 0
        self._owner = owner
        self._clock = clock
        self._tls = tls
        self._begin_hello = begin_hello
        self._config = config
        self._told_made = made
        self._log = LogBudget(log, clock)
        self._bound: list[socket.socket] = []
        self._listeners: dict[socket.socket, asyncio.Task[None]] = {}
        self._throttle = Throttle(
            burst=MAX_HANDSHAKES_PER_SOURCE,
            refill_s=HANDSHAKE_REFILL_S,
            max_sources=MAX_HANDSHAKE_SOURCES,
        )

    def __repr__(self) -> str:
        return f"<Incoming at {len(self._listeners)} addresses, {len(self.connections)} in hello>"

    async def listen(self, address: Address) -> Address:
        """Bind this address; return it with the port that was bound.

        Connections wait in the kernel until `start`.

        Raises:
            OSError: if it is in use or not ours.
        """
        bound = await sockets.bind(address, socket.SOCK_STREAM)
        self._bound.append(bound)
        return Address(address.host, int(bound.getsockname()[1]))

    def unlisten(self) -> None:
        """Give up the address that was bound last and is not accepted at yet."""
        self._bound.pop().close()

    def start(self) -> None:
        """Take connections at the bound addresses."""
        while self._bound:
            listener = self._bound.pop()
            self._listeners[listener] = asyncio.ensure_future(self._accept_all(listener))

    def stop(self) -> None:
        """Take no more; those in their hello go on."""
        while self._bound:
            self.unlisten()
        for listener, task in self._listeners.items():
            task.cancel()
            listener.close()
        self._listeners.clear()

    def abort(self) -> list[asyncio.Task[None]]:
        """Drop all that are in their hello; return what is still to end."""
        tasks = list(self.connections.values())
        for connection, task in tuple(self.connections.items()):
            task.cancel()
            connection.abort(LinkLost("this node is stopping"))
        return tasks

    def ended(self, connection: Connection) -> None:
        """Note that a connection's hello is over, or waits for a person."""
        self.connections.pop(connection, None)

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, where = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # it was gone before it was taken
            except OSError as error:
                self._log.write(logging.ERROR, "accept", f"a connection was not taken: {error}")
                await asyncio.sleep(_ACCEPT_PAUSE_S)  # out of file descriptors, most likely
                continue
            self._accept(accepted, Address(plain_host(str(where[0])), int(where[1])))

    def _accept(self, accepted: socket.socket, remote: Address) -> None:
        """Take a TCP connection; it has `HANDSHAKE_TIMEOUT_S` to become a link.

        When too many are in that state, the oldest of the source that has most of them makes room:
        silent strangers are older than a peer that talks, and one flood cannot keep others out.
        """
        if self._throttle.take(source_of(remote.host), self._clock.now()):
            accepted.close()
            self.throttled += 1
            text = f"{remote.host} opens too many connections; some are closed unheard"
            self._log.write(logging.WARNING, "links throttled", text)
            return
        if len(self.connections) >= MAX_LINKS_UNAUTHENTICATED:
            self._make_room()
        accepted.setblocking(False)
        connection = Connection(
            self._owner,
            lambda _: self._begin_hello(),
            self._clock,
            config=self._config,
            remote=remote,
        )
        self._told_made(connection)
        task = asyncio.ensure_future(self._secure(connection, accepted))
        task.add_done_callback(lambda task: accepted.close() if task.cancelled() else None)
        self.connections[connection] = task

    def take_relayed(self, outer: Connection, stream: int, relay: NodeId) -> None:
        """Take a connection that comes through a relay; it has `HANDSHAKE_TIMEOUT_S` to become a link.

        Args:
            outer: The link to the relay.
            stream: The conversation on it.
            relay: Who that is.

        Raises:
            Saturated: if too many come through this relay.
        """
        if self._throttle.take(relay, self._clock.now()):
            self.throttled += 1
            raise Saturated("too many links are opened through this relay; try another one")
        if len(self.connections) >= MAX_LINKS_UNAUTHENTICATED:
            self._make_room()
        connection = Connection(
            self._owner,
            lambda _: self._begin_hello(),
            self._clock,
            config=self._config,
            remote=Address(relay, 0),
            relay=relay,
        )
        self._told_made(connection)
        transport = RelayedTransport(
            outer, connection, self._tls.context, relay=relay, server_side=True
        )
        outer.attend(stream, transport)
        transport.begin(stream)
        securing = self._secure_relayed(connection, transport)
        self.connections[connection] = asyncio.ensure_future(securing)

    async def _secure_relayed(self, connection: Connection, transport: RelayedTransport) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await transport.secured()
        except (MeshError, TimeoutError) as error:
            connection.abort(LinkLost(f"no TLS through a relay: {said(error)}"))
            transport.abort()
        except asyncio.CancelledError:
            transport.abort()
            raise

    def _make_room(self) -> None:
        sources = [source_of(connection.remote.host) for connection in self.connections]
        crowd = Counter(sources).most_common(1)[0][0]
        oldest = tuple(self.connections)[sources.index(crowd)]
        self.connections[oldest].cancel()
        oldest.abort(LinkLost("too many connections are waiting for their hello"))

    async def _secure(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )
        except OSError as error:  # ssl.SSLError and time-outs among them: not TLS, or not in time
            connection.abort(LinkLost(f"no TLS: {said(error)}"))
