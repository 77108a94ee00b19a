"""All links of this node: listening, dialling, one link per peer, and what comes over them.

Two nodes may dial each other at the same moment. Both then keep the connection that the smaller
NodeId dialled and let the other one finish what runs on it, so that they never close both. A peer
that restarted (another boot nonce) replaces its former link at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Protocol, cast

from meshnode.config import HANDSHAKE_TIMEOUT_S, MAX_LINKS_UNAUTHENTICATED
from meshnode.errors import HandshakeError, LinkLost, MeshError
from meshnode.events import DialFailed, Event, LinkDown, LinkUp
from meshnode.net.connection import Connection, Hello
from meshnode.net.tls import ServerTls, client_tls, peer_certificate_hash
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.clock import Clock
    from meshnode.wire.link import LinkConfig

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.0
"""Seconds for TCP to one address: a SYN and one retransmission; the next address is tried then."""

REPLACED_LINK_GRACE_S = 30.0
"""Seconds in which a duplicate link may finish what runs on it: the default request deadline."""

_BACKLOG = 128  # connections that the kernel completes before we take them
_ACCEPT_PAUSE_S = 0.5


class LinkUser(Protocol):
    """What the hub tells the node above it."""

    def link_event(self, event: Event) -> None:
        """A link came up or went down, or a dial failed."""

    def link_established(self, connection: Connection) -> None:
        """A hello succeeded; comes before the `LinkUp` of the same link."""

    def link_health(self, peer: NodeId, rtt_s: float | None, usable: bool) -> None:
        """A link's RTT or its usability changed."""

    def note_received(self, peer: NodeId, payload: bytes) -> None:
        """A one-way message arrived."""

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """A peer asks something."""

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """A peer does not want its answer any more."""

    def connection_closed(self, connection: Connection) -> None:
        """An established connection is gone, whether or not it was the peer's only one."""


class LinkHub:
    """Owns every connection of this node."""

    def __init__(
        self,
        *,
        me: NodeId,
        clock: Clock,
        user: LinkUser,
        tls: ServerTls,
        dial_hello: Callable[[bytes, NodeId | None], Hello],
        accept_hello: Callable[[], Hello],
        config: LinkConfig,
    ) -> None:
        """`dial_hello(certificate_hash, expected_id)` and `accept_hello()` begin a hello."""
        self._me = me
        self._clock = clock
        self._user = user
        self._tls = tls
        self._client_context = client_tls()
        self._dial_hello = dial_hello
        self._accept_hello = accept_hello
        self._config = config
        self._listeners: dict[socket.socket, asyncio.Task[None]] = {}
        self._links: dict[NodeId, Connection] = {}
        self._spare: dict[NodeId, list[Connection]] = {}
        self._accepted: dict[Connection, asyncio.Task[None]] = {}
        self._dials: dict[tuple[tuple[Address, ...], NodeId | None], asyncio.Task[None]] = {}
        self._outcomes: dict[Connection, asyncio.Future[Connection]] = {}
        self._closing = False
        self.refused = 0

    def __repr__(self) -> str:
        return f"<LinkHub {len(self._links)} links, {len(self._accepted)} in hello>"

    async def listen(self, address: Address) -> Address:
        """Accept links at this address; return it with the port that was bound.

        Raises:
            OSError: if it is in use or not ours.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it would let two programs share the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listeners[listener] = asyncio.ensure_future(self._accept_all(listener))
        return Address(address.host, int(listener.getsockname()[1]))

    def unlisten(self) -> None:
        """Give up the address that was bound last."""
        self._close_listener(next(reversed(self._listeners)))

    def _close_listener(self, listener: socket.socket) -> None:
        self._listeners.pop(listener).cancel()
        listener.close()

    def peers(self) -> Iterable[NodeId]:
        """Return the peers that a link stands to."""
        return tuple(self._links)

    def connection(self, peer: NodeId) -> Connection | None:
        """Return the peer's connection if a new stream may be opened on it."""
        connection = self._links.get(peer)
        if connection is not None and connection.usable:
            return connection
        for spare in self._spare.get(peer, ()):
            if spare.usable:
                return spare
        return None

    def is_stalled(self, peer: NodeId) -> bool:
        """Whether the peer has stopped answering while it owed an answer."""
        connection = self._links.get(peer)
        return connection is not None and connection.stalled

    def remote_address(self, peer: NodeId) -> Address | None:
        """Return the remote end of the peer's connection, if there is one."""
        connection = self._links.get(peer)
        return connection.remote if connection else None

    def note(self, peer: NodeId, payload: bytes) -> None:
        """Send a one-way message; it is dropped where there is no link."""
        connection = self._links.get(peer)
        if connection is not None:
            connection.note(payload)

    def close_link(self, peer: NodeId, reason: str) -> None:
        """Close every connection to a peer."""
        for connection in [self._links.get(peer), *self._spare.get(peer, ())]:
            if connection is not None:
                connection.close(LinkLost(reason))

    def dial(self, addresses: tuple[Address, ...], expect: NodeId | None) -> None:
        """Open a link in the background; `LinkUp` or `DialFailed` tells how it went."""
        key = (addresses, expect)
        if self._closing or key in self._dials or (expect is not None and expect in self._links):
            return
        task = asyncio.ensure_future(self._dial(addresses, expect))
        self._dials[key] = task
        task.add_done_callback(lambda _: self._dials.pop(key, None))

    async def connect(self, addresses: tuple[Address, ...], expect: NodeId | None) -> Connection:
        """Open a link to the first address that answers.

        Raises:
            HandshakeError: if a peer answered and the hello failed: its reason.
            LinkLost: if nothing answered at any address.
        """
        refusal: HandshakeError | None = None
        reasons: list[str] = []
        for address in addresses:
            try:
                return await self._connect(address, expect)
            except HandshakeError as error:
                refusal = refusal or error
            except (MeshError, OSError, TimeoutError) as error:
                reason = str(error) or "no answer in time"
                reasons.append(f"{address}: {reason}")
        if refusal is not None:
            raise refusal
        raise LinkLost("; ".join(reasons) or "no address is known")

    def go_away(self) -> None:
        """Tell every peer to open no new streams here; running ones finish."""
        for connection in self._all():
            connection.go_away()

    def stop_listening(self) -> None:
        """Accept and dial no more links."""
        self._closing = True
        for listener in tuple(self._listeners):
            self._close_listener(listener)
        for task in self._dials.values():
            task.cancel()

    def close(self) -> None:
        """Close everything."""
        self.stop_listening()
        for connection in [*self._all(), *self._outcomes]:
            connection.close()
        for connection, task in tuple(self._accepted.items()):
            task.cancel()
            connection.close()

    # LinkOwner

    def established(self, connection: Connection) -> None:
        """Take a connection whose hello succeeded into the table."""
        self._accepted.pop(connection, None)
        assert connection.hello is not None
        peer = connection.hello.peer.node_id
        self._user.link_established(connection)
        outcome = self._outcomes.pop(connection, None)
        if outcome is not None and not outcome.done():
            outcome.set_result(connection)
        former = self._links.get(peer)
        if former is None:
            self._links[peer] = connection
            self._user.link_event(LinkUp(peer, connection.remote))
        elif self._preferred(connection, former):
            self._links[peer] = connection
            self._retire(peer, former, restarted=_boot(former) != _boot(connection))
        else:
            self._retire(peer, connection, restarted=False)
        self._health(peer)

    def closed(self, connection: Connection, error: MeshError | None) -> None:
        """Forget a connection; the peer is down when it was the last one."""
        self._accepted.pop(connection, None)
        outcome = self._outcomes.pop(connection, None)
        if outcome is not None and not outcome.done():
            outcome.set_exception(error or LinkLost("the connection was closed during the hello"))
        if connection.hello is None:
            self.refused += not connection.dialler
            if error is not None:
                log.info("link refused: %s", error, extra={"remote": str(connection.remote)})
            return
        self._user.connection_closed(connection)
        peer = connection.hello.peer.node_id
        spare = self._spare.get(peer, [])
        if connection in spare:
            spare.remove(connection)
        elif self._links.get(peer) is connection:
            if spare:
                self._links[peer] = spare.pop()
            else:
                del self._links[peer]
                reason = str(error) if error else "closed by the peer"
                self._user.link_event(LinkDown(peer, reason))
        if not spare:
            self._spare.pop(peer, None)
        self._health(peer)

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """Pass a peer's question on."""
        self._user.stream_opened(connection, stream, meta, data)

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """Pass a peer's change of mind on."""
        self._user.stream_cancelled(connection, stream)

    def note_received(self, connection: Connection, payload: bytes) -> None:
        """Pass a note on."""
        assert connection.hello is not None
        self._user.note_received(connection.hello.peer.node_id, payload)

    def health_changed(self, connection: Connection) -> None:
        """Pass a link's health on."""
        assert connection.hello is not None
        self._health(connection.hello.peer.node_id)

    # Inside

    def _all(self) -> list[Connection]:
        spare = [connection for group in self._spare.values() for connection in group]
        return [*self._links.values(), *spare]

    def _health(self, peer: NodeId) -> None:
        connection = self.connection(peer)
        self._user.link_health(
            peer, connection.rtt_s if connection else None, connection is not None
        )

    def _preferred(self, new: Connection, former: Connection) -> bool:
        if _boot(new) != _boot(former) or new.dialler == former.dialler or former.stalled:
            return True
        assert new.hello is not None
        return new.dialler == (self._me < new.hello.peer.node_id)

    def _retire(self, peer: NodeId, connection: Connection, *, restarted: bool) -> None:
        if restarted:
            connection.abort(LinkLost("the peer has restarted"))
        else:
            self._spare.setdefault(peer, []).append(connection)
            connection.close_when_idle(REPLACED_LINK_GRACE_S)

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # it was gone before it was taken
            except OSError as error:
                log.error("a connection could not be taken: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)  # out of file descriptors, most likely
                continue
            self._accept(accepted)

    def _accept(self, accepted: socket.socket) -> None:
        """Take a TCP connection; it has `HANDSHAKE_TIMEOUT_S` to become a link.

        When too many are in that state the oldest makes room: silent strangers are older than a
        peer that talks, so they cannot keep it out.
        """
        if len(self._accepted) >= MAX_LINKS_UNAUTHENTICATED:
            oldest, task = next(iter(self._accepted.items()))
            self._accepted.pop(oldest)
            task.cancel()
            oldest.abort(LinkLost("too many connections are waiting for their hello"))
        accepted.setblocking(False)
        connection = Connection(
            self, lambda _: self._accept_hello(), self._clock, dialler=False, config=self._config
        )
        self._accepted[connection] = asyncio.ensure_future(self._secure(connection, accepted))

    async def _secure(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )
        except OSError:  # ssl.SSLError and time-outs among them: not TLS, or not in time
            self.refused += 1
            self._accepted.pop(connection, None)
        except asyncio.CancelledError:
            accepted.close()
            raise

    async def _dial(self, addresses: tuple[Address, ...], expect: NodeId | None) -> None:
        try:
            await self.connect(addresses, expect)
        except MeshError as error:
            self._user.link_event(DialFailed(addresses, expect, str(error)))

    async def _connect(self, address: Address, expect: NodeId | None) -> Connection:
        loop = asyncio.get_running_loop()

        def make_hello(transport: asyncio.Transport) -> Hello:
            tls = cast("ssl.SSLObject", transport.get_extra_info("ssl_object"))
            return self._dial_hello(peer_certificate_hash(tls), expect)

        connection = Connection(self, make_hello, self._clock, dialler=True, config=self._config)
        outcome: asyncio.Future[Connection] = loop.create_future()
        self._outcomes[connection] = outcome
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + HANDSHAKE_TIMEOUT_S):
                await loop.create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=self._client_context,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
                return await outcome
        except ssl.SSLError as error:
            raise LinkLost(
                f"{address} does not speak meshnode's protocol ({error.reason})"
            ) from error
        finally:
            self._outcomes.pop(connection, None)
            outcome.cancel()
            if not connection.established:
                connection.close()


def _boot(connection: Connection) -> int:
    assert connection.hello is not None
    return connection.hello.peer_boot
