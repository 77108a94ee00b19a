"""The datagrams of one node: sealed and opened, sent where their members are, bounded per source.

What comes in is opened here (`meshnode.trust.datagrams`); what does not open is counted and never
answered. What concerns paths (`meshnode.trust.paths`) stays here; all else is the cores'.

A source that sends much that does not open is read no more for a while. Its address may be forged,
though, so a member is still heard from where it is known to be, in datagrams that name its present
run: a boot is a random number that only members and those on the way know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.daemon.names import Names
from meshnode.errors import MeshError, ProtocolError
from meshnode.limits import (
    BAD_DATAGRAM_REFILL_S,
    MAX_BAD_DATAGRAMS,
    MAX_DATAGRAM_SOURCES,
    PATH_TOKEN_BYTES,
)
from meshnode.membership.addresses import Kind, datagram_address, is_name, kind_of
from meshnode.throttle import Throttle, source_of
from meshnode.trust.datagrams import DatagramError, DatagramSeal
from meshnode.trust.paths import (
    KEEPALIVE,
    PATH_MESSAGES,
    PATHS,
    PathChallenge,
    PathResponse,
    Paths,
)
from meshnode.types import Address
from meshnode.wire.codec import message_type

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.membership.member import Member
    from meshnode.membership.messages import MemberRecord
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.types import NodeId


class Datagrams:
    """Sends and receives for one node.

    Attributes:
        sent: Datagrams sent to members.
        sent_bytes: Their bytes, without UDP's headers.
        received: Datagrams of members that were accepted.
        received_bytes: Likewise.
        seal: The keys of all sessions.
        paths: Where members were heard and answered.
    """

    def __init__(self, credentials: Credentials, clock: Clock, dropped: Counter[str]) -> None:
        """Begin without a socket; `dropped` counts what was not accepted or not sent, by reason."""
        self.sent = 0
        self.sent_bytes = 0
        self.received = 0
        self.received_bytes = 0
        self.seal = DatagramSeal(credentials.identity, credentials.boot)
        self.paths = Paths(lambda: credentials.random_bytes(PATH_TOKEN_BYTES))
        self._credentials = credentials
        self._clock = clock
        self._dropped = dropped
        self._names = Names(clock)
        self._throttle = Throttle(
            burst=MAX_BAD_DATAGRAMS,
            refill_s=BAD_DATAGRAM_REFILL_S,
            max_sources=MAX_DATAGRAM_SOURCES,
        )
        self._kinds = frozenset({Kind.ROUTED})
        self._hosts: tuple[str, ...] = ()
        self._hub: LinkHub | None = None
        self._udp: DatagramSocket | None = None
        self._members: Mapping[NodeId, Member] = {}

    def __repr__(self) -> str:
        return f"<Datagrams {self.sent} sent, {self.received} received, {self.paths!r}>"

    def attach(self, hub: LinkHub, kinds: frozenset[Kind], hosts: tuple[str, ...]) -> None:
        """Take the links, which tell where peers are, where datagrams may lead, and this node's hosts."""
        self._hub = hub
        self._kinds = kinds
        self._hosts = hosts

    def begin(self, udp: DatagramSocket, members: Mapping[NodeId, Member]) -> None:
        """Take the socket and the table of members."""
        self._udp = udp
        self._members = members
        assert self._hub is not None
        for peer in self._hub.peers():
            self.link_up(peer)

    # In

    def receive(self, data: bytes, source: Address) -> tuple[NodeId, bytes] | None:
        """Open a datagram; return the sender and what is for the cores, if anything is."""
        now = self._clock.now()
        row = source_of(source.host)
        if self._throttle.is_spent(row, now) and not self._is_known(data, source, now):
            self._dropped["throttled"] += 1
            return None
        try:
            sender, payload = self.seal.open(data, self._credentials.roster.public_key)
        except DatagramError as error:
            self._dropped[str(error.reason)] += 1
            self._throttle.take(row, now)
            return None
        self.received += 1
        self.received_bytes += len(data)
        self._heard(sender, source, len(data), now)
        if _is_of_paths(payload):
            self._on_path(sender, payload, source, now)
            return None
        return sender, payload

    def _is_known(self, data: bytes, source: Address, now: float) -> bool:
        """Whether this is where a member's datagrams are known to come from, and names its run."""
        claimed = self.seal.claimed_sender(data)
        return claimed is not None and self._address(claimed, now) == source

    def _heard(self, sender: NodeId, source: Address, size_bytes: int, now: float) -> None:
        used = self._address(sender, now)
        if used is not None and not self._is_certain(sender, used, now):
            used = None
        if used != source and kind_of(source.host) not in self._kinds:
            return  # nowhere that this node sends to: a forged source, or one without a way back
        challenge = self.paths.heard(sender, source, size_bytes, used, now)
        if challenge is not None:
            self._send(sender, challenge, source)

    def _on_path(self, sender: NodeId, payload: bytes, source: Address, now: float) -> None:
        try:
            message = PATHS.decode(payload)
        except ProtocolError:
            self._dropped["path"] += 1
            return
        match message:
            case PathChallenge(token):
                # Where it came from, and no longer than it: the asker wants to know that very place.
                self.paths.challenged(sender, now)
                self._send(sender, PATHS.encode(PathResponse(token)), source)
            case PathResponse(token):
                self.paths.answered(sender, token, now)
            case _:
                pass

    # Out

    def send(self, to: NodeId, payload: bytes) -> None:
        """Send a member a datagram, which the network may lose."""
        now = self._clock.now()
        address = self._address(to, now)
        if address is None:
            self._dropped["no_address"] += 1
            return
        self._send(to, payload, address)
        self.paths.sent(to, now)

    def _send(self, to: NodeId, payload: bytes, address: Address) -> None:
        public_key = self._credentials.roster.public_key(to)
        if public_key is None or self._udp is None:
            self._dropped["no_address"] += 1
            return
        try:
            sealed = self.seal.seal(to, public_key, payload)
        except MeshError as error:
            self._dropped[error.code] += 1
            return
        self._udp.send(sealed, address)
        self.sent += 1
        self.sent_bytes += len(sealed)

    def keep_paths(self) -> None:
        """Send to peers that see this node behind a router, where nothing was sent for a while."""
        assert self._hub is not None
        for peer in self.paths.silent(frozenset(self._hub.peers()), self._clock.now()):
            self.send(peer, KEEPALIVE)

    def link_up(self, peer: NodeId) -> None:
        """Show a peer that this node has dialled where its datagrams come from."""
        if self._udp is not None and self._hub is not None and self._hub.has_dialled(peer):
            self.send(peer, KEEPALIVE)

    # Members

    def learn(self, record: MemberRecord) -> None:
        """Take the run of a member that its newest record names, unless a link shows another one.

        A hello is fresher than a record: of a node that has just started again the link may stand
        before the record of its new run is here.
        """
        assert self._hub is not None
        if self._hub.boot(record.node_id) in (None, record.boot):
            self.seal.follow_record(record.node_id, record.boot)

    def link_down(self, peer: NodeId) -> None:
        """Go by the record of a member that has no link any more."""
        member = self._members.get(peer)
        if member is not None:
            self.learn(member.record)

    def gone(self, peer: NodeId) -> None:
        """Drop where a member was that died, left or was evicted.

        Its session stays: counters that began anew would use the same key and numbers twice. An
        evicted node has no key in the roster any more, which silences it.
        """
        self.paths.forget(peer)

    # Where

    def _address(self, to: NodeId, now: float) -> Address | None:
        """Return where a member takes datagrams.

        Only ever a path that it has answered, an address of its signed record, or where its
        authenticated link ends.
        """
        assert self._hub is not None
        path = self.paths.place(to, now)
        if path is not None:
            return path
        member = self._members.get(to)
        remote = self._hub.remote_address(to)
        has_dialled = self._hub.has_dialled(to)
        if member is None or not member.record.addresses:
            return remote if has_dialled else None
        advertised = [Address(*address) for address in member.record.addresses]
        if remote is None:
            advertised = self._resolved(advertised)
        return datagram_address(
            advertised,
            remote,
            has_dialled=has_dialled,
            kinds=self._kinds,
            own=self._hosts,
        )

    def _resolved(self, advertised: list[Address]) -> list[Address]:
        """Put the addresses of a name in its place, once they are known."""
        if not any(is_name(each.host) for each in advertised):
            return advertised
        return [
            Address(host, each.port)
            for each in advertised
            for host in (self._names.literals(each.host) if is_name(each.host) else (each.host,))
        ]

    def _is_certain(self, peer: NodeId, used: Address, now: float) -> bool:
        """Whether an address is more than a guess: answered, dialled, or the member's own word."""
        assert self._hub is not None
        if used == self.paths.place(peer, now) or self._hub.has_dialled(peer):
            return True
        member = self._members.get(peer)
        if member is None:
            return False
        return used in self._resolved([Address(*address) for address in member.record.addresses])


def _is_of_paths(payload: bytes) -> bool:
    try:
        return message_type(payload) in PATH_MESSAGES
    except ProtocolError:
        return False
