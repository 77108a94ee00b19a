"""All links of this node: listening, dialling, one link per peer, and what comes over them.

Two connections between the same two nodes are one too many. Both sides must part with the same one,
or both would be lost; the loser finishes what runs on it. Which one goes:

| the newer connection                                      | stays | because                         |
|-----------------------------------------------------------|-------|---------------------------------|
| is of another start of the peer (boot)                    | newer | the older one's process is gone |
| comes when the older one is stalled or going away         | newer | it was opened to replace it     |
| is direct and the older one goes through a relay          | newer | it is shorter, and nobody else's |
| goes through a relay and the older one is direct          | older | likewise                        |
| was opened by the same side                               | newer | that side parts with the older  |
| comes long after the older one (`SIMULTANEOUS_S`)         | newer | who dials has lost the older    |
| was opened by the other side, at about the same time      | that which the smaller NodeId dialled |

A link that is spent (its ids ran out, or its peer stops) is replaced by the side that dialled it. If
that fails it stays: a peer that stops may still ask on it for its last clients.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Protocol

from meshnode.errors import LinkLost, MeshError
from meshnode.events import DialFailed, Event, LinkDown, LinkUp
from meshnode.limits import (
    DIAL_TIMEOUT_S,
    LINK_CLOSE_TIMEOUT_S,
    MAX_SPARE_LINKS,
    RELAYED_LINK_GRACE_S,
    REPLACED_LINK_GRACE_S,
)
from meshnode.net.incoming import Incoming
from meshnode.net.log_budget import LogBudget
from meshnode.net.outgoing import Outgoing
from meshnode.net.relay_faults import RelayFaults
from meshnode.net.twins import Twins
from meshnode.trust.reasons import Reason, TrustError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Iterable

    from meshnode.clock import Clock
    from meshnode.membership.addresses import Kind
    from meshnode.net.connection import Connection
    from meshnode.net.hello_phase import Hello
    from meshnode.net.tls import ServerTls
    from meshnode.trust.hello import HelloResult
    from meshnode.types import Address, NodeId
    from meshnode.wire.link import LinkConfig

log = logging.getLogger(__name__)

RETIRE_AFTER_S = 0.5
"""A duplicate stays usable for so long: the other side may not have seen the one that stays yet."""

SIMULTANEOUS_S = 3.0
"""Two links that come up further apart than this were not dialled at the same time."""


class LinkUser(Protocol):
    """What the hub tells the node above it."""

    def link_event(self, event: Event) -> None:
        """A link came up or went down, or a dial failed."""

    def link_established(self, connection: Connection) -> None:
        """A hello succeeded; comes before the `LinkUp` of the same link.

        Raises:
            MeshError: if the link cannot be taken; it is closed then.
        """

    def link_health(self, peer: NodeId, rtt_s: float | None, usable: bool) -> None:
        """A link's RTT or its usability changed."""

    def note_received(self, peer: NodeId, payload: bytes) -> None:
        """A one-way message arrived."""

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """A peer asks something."""

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        """A peer wants to talk; a MeshError refuses it."""

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """A peer does not want its answer any more."""

    def connection_closed(self, connection: Connection) -> None:
        """An established connection is gone, whether or not it was the peer's only one."""

    def twin_met(self, peer: NodeId, boot: int, remote: Address) -> None:
        """Another process with a linked peer's key, of this boot, was refused: the peer still answers."""

    def hello_refused(self, error: TrustError) -> None:
        """A peer refused this node's hello, or turned out to have this node's key."""


class PairingUser(Protocol):
    """What decides about devices that ask this node to be admitted."""

    def pairing_asked(self, device: NodeId, remote: Address) -> bytes:
        """A device asks; return 32 random bytes to go on with it.

        Raises:
            TrustError: to refuse it, with the reason that it is told.
        """

    def pairing_begun(self, connection: Connection) -> None:
        """`connection.pairing` has the device's code; it waits for `connection.approve`.

        Raises:
            TrustError: to refuse it after all.
        """

    def pairing_ended(self, connection: Connection) -> None:
        """The connection of a device that waited is gone, or has become a link."""


class LinkHub:
    """Owns every connection of this node.

    Attributes:
        refused: Incoming connections that did not become links.
        trials: Those that only asked whether they would, and would.
        outgoing: Opens the connections of this node.
        incoming: Takes connections of others.
        relay_faults: Relays through which links failed.
    """

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
        pairing: PairingUser | None = None,
        dial_tls: ssl.SSLContext | None = None,
    ) -> None:
        """`dial_hello(certificate_hash, expected_id)` and `accept_hello()` begin a hello.

        Devices that ask to be admitted without an invite are refused where nobody decides about them.
        `dial_tls` secures connections that this node opens, as `Outgoing` has it.
        """
        self._me = me
        self._clock = clock
        self._user = user
        self._config = config
        self._pairing = pairing
        self._log = LogBudget(log, clock)
        self._links: dict[NodeId, Connection] = {}
        self._spare: dict[NodeId, list[Connection]] = {}
        self._up_since: dict[Connection, float] = {}
        self._waiting: dict[Connection, None] = {}
        self._dials: dict[object, asyncio.Task[None]] = {}
        self._made: weakref.WeakKeyDictionary[Connection, None] = weakref.WeakKeyDictionary()
        self.incoming = Incoming(self, clock, tls, accept_hello, config, self._note_made)
        self.outgoing = Outgoing(self, clock, dial_hello, config, self._note_made, dial_tls)
        self._turned_away: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._closing = False
        self._twins = Twins(self._met_twin)
        self.relay_faults = RelayFaults()
        self.refused = 0
        self.trials = 0

    def __repr__(self) -> str:
        return f"<LinkHub {len(self._links)} links, {len(self.incoming.connections)} in hello>"

    # Listening

    async def listen(self, address: Address) -> Address:
        """Bind this address; return it with the port that was bound.

        Connections wait in the kernel until `start_accepting`.

        Raises:
            OSError: if it is in use or not ours.
        """
        return await self.incoming.listen(address)

    def unlisten(self) -> None:
        """Give up the address that was bound last and is not accepted at yet."""
        self.incoming.unlisten()

    def start_accepting(self) -> None:
        """Take links at the bound addresses: this node can say hello now."""
        self.incoming.start()

    def stop_listening(self) -> None:
        """Accept and dial no more links."""
        self._closing = True
        self.incoming.stop()
        for task in self._dials.values():
            task.cancel()
        for connection in tuple(self._waiting):
            connection.turn_away(
                TrustError(Reason.UNAPPROVED, "the node is stopping; ask another one")
            )

    # Links

    def peers(self) -> Iterable[NodeId]:
        """Return the peers that a link stands to."""
        return tuple(self._links)

    def connection(self, peer: NodeId) -> Connection | None:
        """Return the peer's connection if a new stream may be opened on it."""
        connection = self._links.get(peer)
        if connection is not None and connection.usable:
            return connection
        return self._usable_spare(peer)

    def rtt_s(self, peer: NodeId) -> float | None:
        """Return the smoothed round trip of the peer's link, None before the first ping came back."""
        connection = self._links.get(peer)
        return None if connection is None else connection.rtt_s

    def boot(self, peer: NodeId) -> int | None:
        """Return the boot of the peer's process that a link stands to, if that answers."""
        connection = self._links.get(peer)
        return None if connection is None or connection.stalled else _boot(connection)

    def is_stalled(self, peer: NodeId) -> bool:
        """Whether the peer has stopped answering while it owed an answer."""
        connection = self._links.get(peer)
        return connection is not None and connection.stalled

    def remote_address(self, peer: NodeId) -> Address | None:
        """Return the remote end of the peer's connection, if there is a direct one."""
        connection = self._links.get(peer)
        return connection.remote if connection and connection.relay is None else None

    def has_dialled(self, peer: NodeId) -> bool:
        """Whether this node opened the peer's connection, and directly."""
        connection = self._links.get(peer)
        return connection is not None and connection.dialler and connection.relay is None

    def relay(self, peer: NodeId) -> NodeId | None:
        """Return the node through which the peer's link goes; None if it is direct, or there is none."""
        connection = self._links.get(peer)
        return None if connection is None else connection.relay

    def note(self, peer: NodeId, payload: bytes) -> None:
        """Send a one-way message; it is dropped where there is no link."""
        connection = self._links.get(peer)
        if connection is not None:
            connection.note(payload)

    def tell_health(self) -> None:
        """Tell the user about every link's health, as if it had just changed."""
        for peer in tuple(self._links):
            self._tell_health(peer)

    def close_link(self, peer: NodeId, reason: str, *, if_idle: bool = False) -> None:
        """Close every connection to a peer, or with `if_idle` none while a stream runs on one."""
        found = (self._links.get(peer), *self._spare.get(peer, ()))
        connections = [connection for connection in found if connection is not None]
        if if_idle and not all(connection.idle for connection in connections):
            return
        for connection in connections:
            connection.close(LinkLost(reason))

    def prove_links(self, within_s: float) -> None:
        """Part with peers that say nothing in so many seconds: this machine slept, and they may have given it up."""
        for connection in self._all():
            connection.prove(within_s)

    def leave_addresses(self, hosts: Collection[str]) -> None:
        """Part with links that end at addresses which this machine has no more."""
        for connection in self._all():
            if connection.local_host in hosts:
                connection.abort(LinkLost("this device has another address now"))

    def go_away(self) -> None:
        """Take no new links, and tell every peer to open no new streams; running ones finish.

        Streams can still be opened from here, until the peer goes away as well.
        """
        self.stop_listening()
        for connection in self._all():
            connection.go_away()

    async def close(self) -> None:
        """Close everything; returns when every socket is closed."""
        self.stop_listening()
        tasks = list(self._dials.values())
        for connection in self._all():
            connection.close()
        tasks += self.incoming.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        waited_for = [connection for connection in self._made if not connection.lost.is_set()]
        closing = [asyncio.ensure_future(connection.lost.wait()) for connection in waited_for]
        if closing:
            _, late = await asyncio.wait(closing, timeout=2 * LINK_CLOSE_TIMEOUT_S)
            for waiting in late:
                waiting.cancel()

    # Dialling

    def dial(
        self,
        addresses: tuple[Address, ...],
        expect: NodeId | None,
        kinds: Collection[Kind] | None = None,
    ) -> None:
        """Open a link in the background; `LinkUp` or `DialFailed` tells how it went.

        A node is dialled once at a time; where a direct link to it stands, nothing happens.

        Args:
            addresses: Where to try, in order.
            expect: Who must answer, or None for any member.
            kinds: Where the addresses may lead once they are resolved; None for anywhere.
        """
        key: object = expect or addresses
        if self._closing or key in self._dials:
            return
        former = None if expect is None else self._links.get(expect)
        if former is not None and not former.going_away and former.relay is None:
            return
        task = asyncio.ensure_future(self._dial(addresses, expect, kinds))
        self._dials[key] = task
        task.add_done_callback(lambda _: self._dials.pop(key, None))

    async def connect(
        self,
        addresses: tuple[Address, ...],
        expect: NodeId | None,
        kinds: Collection[Kind] | None = None,
    ) -> Connection:
        """Open a link to the first address that answers; see `Outgoing.connect`."""
        return await self.outgoing.connect(addresses, expect, kinds)

    async def ask(
        self,
        address: Address,
        expect: NodeId | None,
        on_waiting: Callable[[Connection], None],
        kinds: Collection[Kind] | None = None,
    ) -> Connection:
        """Ask the member at this address to be admitted; see `Outgoing.ask`."""
        return await self.outgoing.ask(address, expect, on_waiting, kinds)

    async def _dial(
        self,
        addresses: tuple[Address, ...],
        expect: NodeId | None,
        kinds: Collection[Kind] | None,
    ) -> None:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self.connect(addresses, expect, kinds)
            return
        except TimeoutError:
            reason = "no answer in time"
        except MeshError as error:
            reason = str(error)
        self._user.link_event(DialFailed(addresses, expect, reason))
        former = None if expect is None else self._links.get(expect)
        if (
            former is not None and former.going_away and former.relay is None
        ):  # nothing takes its place
            # A peer that leaves has closed it by then; after that nobody would.
            former.retire(REPLACED_LINK_GRACE_S, REPLACED_LINK_GRACE_S)

    # LinkOwner

    def established(self, connection: Connection) -> None:
        """Take a connection whose hello succeeded into the table."""
        self.incoming.ended(connection)
        self._end_waiting(connection)
        self._user.link_established(connection)
        peer = _peer(connection)
        former = self._links.get(peer)
        is_preferred = former is None or self._is_preferred(connection, former)
        self._up_since[connection] = self._clock.now()
        if former is None or is_preferred:
            self._links[peer] = connection
            if former is not None:
                self._part_with(former, connection)
            self._user.link_event(LinkUp(peer, connection.dialled or connection.remote))
        else:
            self._keep_spare(connection)
            connection.retire(RETIRE_AFTER_S, REPLACED_LINK_GRACE_S)
        self.outgoing.established(connection)
        self._tell_health(peer)

    def must_wait(self, connection: Connection, result: HelloResult) -> bool:
        """Hold a peer back whose former run has a link that may still answer."""
        former = self._links.get(result.peer.node_id)
        if former is None or connection.dialler:
            return False
        return self._twins.must_wait(connection, result, former)

    def _is_about_me(self, connection: Connection, error: TrustError) -> bool:
        """Whether a failed hello tells this node something of itself: it was refused, or has a twin."""
        is_twin = error.reason is Reason.TWIN and connection not in self._turned_away
        return error.by_peer or is_twin

    def _met_twin(self, former: Connection, newcomer: Connection, boot: int) -> None:
        self._turned_away.add(newcomer)
        self._user.twin_met(_peer(former), boot, newcomer.remote)

    def closed(self, connection: Connection, error: MeshError | None) -> None:
        """Forget a connection; the peer is down when no usable one is left."""
        self.incoming.ended(connection)
        has_waited = self._end_waiting(connection)
        self._up_since.pop(connection, None)
        self.outgoing.closed(connection, error)
        if connection.hello is None:
            if isinstance(error, TrustError) and self._is_about_me(connection, error):
                self._user.hello_refused(error)
            if isinstance(error, TrustError) and error.reason is Reason.TRIAL:
                self.trials += 1
            elif not connection.dialler and not has_waited:
                self.refused += 1
                text = f"a connection from {connection.remote.host} was refused: {error}"
                self._log.write(logging.INFO, "links refused", text)
            return
        self._user.connection_closed(connection)
        peer = _peer(connection)
        spares = self._spare.get(peer, [])
        if connection in spares:
            spares.remove(connection)
            if not spares:
                del self._spare[peer]
        elif self._links.get(peer) is connection:
            del self._links[peer]
            if not self._promote(peer):
                reason = str(error) if error else "closed by the peer"
                self._user.link_event(LinkDown(peer, reason))
        self._tell_health(peer)
        if not self._closing:
            self._twins.gone(connection)

    def pairing_asked(self, connection: Connection, device: NodeId) -> bytes:
        """Let a device that asks to be admitted go on, or refuse it."""
        if self._pairing is None or self._closing:
            raise TrustError(Reason.UNAPPROVED, "this node takes no requests to join")
        return self._pairing.pairing_asked(device, connection.remote)

    def pairing_waits(self, connection: Connection) -> None:
        """Pass on that a device waits, here or as this one; strangers no longer push it out here."""
        if connection.dialler:
            self.outgoing.waits(connection)
            return
        assert self._pairing is not None
        self._pairing.pairing_begun(connection)
        self.incoming.ended(connection)
        self._waiting[connection] = None

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """Pass a peer's question on."""
        self._user.stream_opened(connection, stream, meta, data)

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        """Pass a peer's wish to talk on."""
        self._user.conversation_opened(connection, stream, meta)

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """Pass a peer's change of mind on."""
        self._user.stream_cancelled(connection, stream)

    def note_received(self, connection: Connection, payload: bytes) -> None:
        """Pass a note on."""
        self._user.note_received(_peer(connection), payload)

    def way_failed(self, connection: Connection) -> None:
        """Remember the relay through which a link failed."""
        if connection.relay is not None:
            self.relay_faults.failed(connection.relay, _peer(connection), self._clock.now())

    def health_changed(self, connection: Connection) -> None:
        """Pass a link's health on; replace one on which nothing can be opened any more."""
        self._twins.heard(connection)
        peer = _peer(connection)
        if connection.spent and self._links.get(peer) is connection:
            self._replace(peer, connection)
        elif connection.peer_is_away:
            connection.go_away()  # a spare: the peer hears that nothing is on its way
        self._tell_health(peer)

    # Inside

    def _note_made(self, connection: Connection) -> None:
        self._made[connection] = None

    def _end_waiting(self, connection: Connection) -> bool:
        """Whether it was that of a device that waited to be admitted; it no longer is."""
        if connection not in self._waiting:
            return False
        del self._waiting[connection]
        assert self._pairing is not None
        self._pairing.pairing_ended(connection)
        return True

    def _all(self) -> list[Connection]:
        spare = [connection for group in self._spare.values() for connection in group]
        return [*self._links.values(), *spare]

    def _usable_spare(self, peer: NodeId) -> Connection | None:
        return next((spare for spare in self._spare.get(peer, ()) if spare.usable), None)

    def _tell_health(self, peer: NodeId) -> None:
        connection = self.connection(peer)
        rtt_s = connection.rtt_s if connection else None
        self._user.link_health(peer, rtt_s, connection is not None)

    def _is_preferred(self, new: Connection, former: Connection) -> bool:
        """Whether the newer connection stays: the table in the module's text."""
        if _boot(new) != _boot(former) or former.stalled or former.going_away:
            return True
        if (new.relay is None) != (former.relay is None):
            return new.relay is None
        if new.dialler == former.dialler:
            return True
        if self._clock.now() - self._up_since[former] > SIMULTANEOUS_S:
            return True
        return new.dialler == (self._me < _peer(new))

    def _part_with(self, former: Connection, new: Connection) -> None:
        if _boot(former) != _boot(new):
            former.abort(LinkLost("the peer has restarted"))
            return
        self._keep_spare(former)
        # Of two that the peer dialled it alone knows which is newer on its side: it parts with one.
        if new.dialler or former.dialler:
            is_relayed = former.relay is not None
            grace_s = RELAYED_LINK_GRACE_S if is_relayed else REPLACED_LINK_GRACE_S
            former.retire(RETIRE_AFTER_S, grace_s)

    def _keep_spare(self, connection: Connection) -> None:
        spares = self._spare.setdefault(_peer(connection), [])
        spares.append(connection)
        if connection.peer_is_away:
            connection.go_away()  # the peer hears that nothing is on its way
        if len(spares) > MAX_SPARE_LINKS:
            spares[0].abort(LinkLost("the peer opens too many links"))

    def _promote(self, peer: NodeId) -> bool:
        """Make a usable spare link the peer's link."""
        spare = self._usable_spare(peer)
        if spare is None:
            return False
        self._spare[peer].remove(spare)
        if not self._spare[peer]:
            del self._spare[peer]
        self._links[peer] = spare
        return True

    def _replace(self, peer: NodeId, connection: Connection) -> None:
        """See to another link; this one stays until that is there, or cannot be had."""
        if self._promote(peer):
            self._keep_spare(connection)
            connection.retire(0.0, REPLACED_LINK_GRACE_S)
        elif self._closing:
            connection.retire(0.0, REPLACED_LINK_GRACE_S)
        elif connection.dialled is not None and connection.relay is None:
            self.dial((connection.dialled,), peer)


def _peer(connection: Connection) -> NodeId:
    assert connection.hello is not None
    return connection.hello.peer.node_id


def _boot(connection: Connection) -> int:
    assert connection.hello is not None
    return connection.hello.peer_boot
