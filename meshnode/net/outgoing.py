"""The connections that a node opens: which address answers, and whether its hello holds."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, cast

from meshnode.errors import HandshakeError, LinkLost, MeshError, UsageError
from meshnode.limits import ADDRESS_TIMEOUT_S, HANDSHAKE_TIMEOUT_S
from meshnode.net import sockets
from meshnode.net.connection import Connection
from meshnode.net.reachability import SILENT, dial_reason
from meshnode.net.relay_transport import RelayedTransport
from meshnode.net.tls import client_tls, peer_certificate_hash
from meshnode.types import Address

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Coroutine

    from meshnode.clock import Clock
    from meshnode.membership.addresses import Kind
    from meshnode.net.hello_phase import Hello
    from meshnode.net.link_owner import LinkOwner
    from meshnode.types import NodeId
    from meshnode.wire.link import LinkConfig

    Attach = Callable[[RelayedTransport], None]


class Outgoing:
    """Opens connections and says hello on them.

    Attributes:
        tls: How they are secured; who answers is proven by the hello.
    """

    def __init__(
        self,
        owner: LinkOwner,
        clock: Clock,
        begin_hello: Callable[[bytes, NodeId | None], Hello],
        config: LinkConfig,
        made: Callable[[Connection], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Open connections for a hub.

        Args:
            owner: Of every connection; it passes on here what becomes of those that were dialled.
            clock: Theirs.
            begin_hello: `begin_hello(certificate_hash, expected_id)` begins a hello.
            config: Of their links.
            made: Told of each connection before anything happens on it.
            tls: How they are secured; by default with a context that takes any certificate.
        """
        self.tls = tls or client_tls()
        self._owner = owner
        self._clock = clock
        self._begin_hello = begin_hello
        self._config = config
        self._told_made = made
        self._asking: dict[Connection, Callable[[Connection], None]] = {}
        self._outcomes: dict[Connection, asyncio.Future[Connection]] = {}

    def __repr__(self) -> str:
        return f"<Outgoing {len(self._outcomes)} in hello>"

    def established(self, connection: Connection) -> None:
        """Answer who dialled, if this was dialled: it is a link."""
        outcome = self._outcomes.pop(connection, None)
        if outcome is not None and not outcome.done():
            outcome.set_result(connection)

    def closed(self, connection: Connection, error: MeshError | None) -> None:
        """Answer who dialled, if this was dialled: it is none."""
        outcome = self._outcomes.pop(connection, None)
        if outcome is not None and not outcome.done():
            outcome.set_exception(error or LinkLost("the connection was closed during the hello"))
            outcome.exception()  # whoever dialled may have given up: that is no mistake

    def waits(self, connection: Connection) -> None:
        """Tell who asks that the member waits for a person."""
        self._asking[connection](connection)

    async def connect(
        self,
        addresses: tuple[Address, ...],
        expect: NodeId | None,
        kinds: Collection[Kind] | None = None,
    ) -> Connection:
        """Open a link to the first address that answers.

        Raises:
            HandshakeError: if a peer answered and the hello failed: its reason.
            LinkLost: if nothing answered at any address.
            UsageError: if the link was made and this node cannot take it.
        """
        refusal: HandshakeError | None = None
        reasons: dict[Address, str] = {}
        async with contextlib.aclosing(sockets.connect_any(addresses, kinds)) as outcomes:
            async for address, outcome in outcomes:
                if isinstance(outcome, Exception):
                    reasons[address] = dial_reason(outcome)
                    continue
                try:
                    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                        return await self._say_hello(outcome, address, expect)
                except UsageError:
                    raise
                except HandshakeError as error:
                    refusal = refusal or error
                except TimeoutError:
                    reasons[address] = SILENT
                except (MeshError, OSError) as error:
                    reasons[address] = dial_reason(error)
        if refusal is not None:
            raise refusal
        told = (f"{address}: {reasons[address]}" for address in addresses)
        raise LinkLost("; ".join(told) or "no address is known")

    async def ask(
        self,
        address: Address,
        expect: NodeId | None,
        on_waiting: Callable[[Connection], None],
        kinds: Collection[Kind] | None = None,
    ) -> Connection:
        """Ask the member at this address to be admitted; returns when a person has approved it.

        Args:
            address: Of the member.
            expect: Who it must be, or None for any.
            on_waiting: Called when `connection.pairing` has the code to show, and again each time that
                the member says how long it still waits.
            kinds: Where the address may lead once it is resolved; None for anywhere.

        Raises:
            TrustError: if the member refused, at once or in the end.
            HandshakeError: if the hello failed otherwise.
            LinkLost: if nothing answered, or the member fell silent.
        """
        try:
            async with asyncio.timeout(ADDRESS_TIMEOUT_S) as limit:

                def waiting(connection: Connection) -> None:
                    limit.reschedule(None)  # a person decides, not the network
                    on_waiting(connection)

                try:
                    connected = await sockets.connect(address, kinds)
                except OSError as error:
                    raise LinkLost(f"{address}: {dial_reason(error)}") from error
                return await self._say_hello(connected, address, expect, waiting)
        except TimeoutError:
            raise LinkLost(f"{address}: {SILENT}") from None

    async def _say_hello(
        self,
        connected: socket.socket,
        address: Address,
        expect: NodeId | None,
        on_waiting: Callable[[Connection], None] | None = None,
    ) -> Connection:
        connection = self._make(address, expect)
        if on_waiting is not None:
            self._asking[connection] = on_waiting
        try:
            return await self._outcome(connection, self._secure(connection, connected))
        except ssl.SSLError as error:
            raise LinkLost(f"it does not speak meshnode's protocol ({error.reason})") from error
        finally:
            self._asking.pop(connection, None)

    async def say_hello_through(
        self, outer: Connection, relay: NodeId, expect: NodeId, attach: Attach
    ) -> Connection:
        """Open a link within a conversation on another one.

        Args:
            outer: The link to the relay.
            relay: Who that is.
            expect: Who must answer.
            attach: Gets the transport to let it begin; raises a MeshError if it cannot.

        Raises:
            HandshakeError: if a peer answered and the hello failed: its reason.
            MeshError: if the relay refused, or it broke.
            TimeoutError: if nothing came.
        """
        connection = self._make(Address(relay, 0), expect, relay)
        transport = RelayedTransport(outer, connection, self.tls, relay=relay, server_side=False)
        try:
            attach(transport)
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                return await self._outcome(connection, transport.secured())
        finally:
            if not connection.established:
                connection.abort()
                transport.abort()

    def _make(
        self, address: Address, expect: NodeId | None, relay: NodeId | None = None
    ) -> Connection:
        def make_hello(transport: asyncio.Transport) -> Hello:
            tls = cast("ssl.SSLObject", transport.get_extra_info("ssl_object"))
            return self._begin_hello(peer_certificate_hash(tls), expect)

        connection = Connection(
            self._owner, make_hello, self._clock, config=self._config, dialled=address, relay=relay
        )
        self._told_made(connection)
        return connection

    async def _outcome(
        self, connection: Connection, securing: Coroutine[None, None, None]
    ) -> Connection:
        outcome: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._outcomes[connection] = outcome
        try:
            await securing
            return await outcome
        finally:
            self._outcomes.pop(connection, None)
            if not connection.established:
                connection.abort()

    async def _secure(self, connection: Connection, connected: socket.socket) -> None:
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            sock=connected,
            ssl=self.tls,
            server_hostname="",
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
