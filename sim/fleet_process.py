"""What drives one membership core in a `SimFleet`, and a member without a mind for it to meet.

A process is known to the world by its *place* and to other cores by its NodeId. The two are the same
but for a copy of a node: two processes with one NodeId, at two places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.effects import CloseLink, Dial, Effect, Emit, SendDatagram, SendNote
from meshnode.events import DatagramReceived, Event, LinkDown, LinkUp, NoteReceived
from meshnode.limits import MAX_DATAGRAM_BYTES, MAX_META_BYTES
from meshnode.membership.messages import CODEC, Ack, MemberRecord, Ping
from meshnode.sim.fleet import FleetEvent, Traffic
from meshnode.trust.datagrams import OVERHEAD_BYTES
from meshnode.types import Address, NodeId, NodeState
from meshnode.wire.frames import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.membership import Membership

IP_UDP_BYTES: Final = 28
"""Headers of IPv4 and UDP around a datagram."""

NOTE_OVERHEAD_BYTES: Final = HEADER_BYTES + 22 + 52 + 52
"""Around a note: its frame's header, a TLS record, IPv4 and TCP with time stamps, and a bare ACK."""

COPY: Final = "two processes run with this node's key"
"""Why a link is refused whose other end is linked already, with another boot."""

UP: Final = frozenset({"member.alive"})
DOWN: Final = frozenset({"member.dead", "member.left", "member.evicted"})


class Places:
    """Who is where, and what has been heard of them: what the processes of a fleet share.

    Attributes:
        log: What cores told people, by kind.
        tap: Is shown every datagram that is sent.
        copies: The NodeIds of processes whose place is another one.
    """

    def __init__(self) -> None:
        """Begin without anybody."""
        self.log: dict[str, list[FleetEvent]] = {}
        self.tap: Callable[[float, str, str, bytes], None] | None = None
        self.copies: dict[NodeId, NodeId] = {}
        self._at: dict[str, Process | Puppet] = {}
        self._addresses: dict[Address, NodeId] = {}

    def __repr__(self) -> str:
        return f"<Places of {len(self._at)} processes, {len(self.copies)} of them copies>"

    def put(self, place: NodeId, address: Address, who: Process | Puppet) -> None:
        """Note that this runs here now."""
        self._at[place] = who
        self._addresses[address] = place

    def node_at(self, place: NodeId) -> NodeId:
        """Return the NodeId of a place's process."""
        return self.copies.get(place, place)

    def boot_at(self, place: NodeId) -> int:
        """Return the boot nonce with which a place's process runs, or ran last."""
        who = self._at.get(place)
        return -1 if who is None else who.boot

    def name_at(self, place: str) -> str:
        """Return the name of a place's process; what is no place stays as it is."""
        who = self._at.get(place)
        return place if who is None else who.name

    def place_of(self, address: Address) -> NodeId | None:
        """Return who listens at an address."""
        return self._addresses.get(address)

    def told(self, event: FleetEvent) -> None:
        """Keep what a core told people."""
        self.log.setdefault(event.kind, []).append(event)


class Process:
    """One boot of a node: its core, and what its driver would do."""

    __slots__ = (
        "boot",
        "greatest",
        "links",
        "membership",
        "name",
        "node_id",
        "place",
        "places",
        "seen_up",
        "traffic",
    )

    def __init__(
        self, places: Places, place: NodeId, name: str, membership: Membership, boot: int
    ) -> None:
        """Drive a core that has not started."""
        self.places = places
        self.place = place
        self.name = name
        self.membership = membership
        self.node_id = membership.node_id
        self.boot = boot
        self.links: dict[NodeId, tuple[NodeId, int]] = {}  # to which place and boot, by NodeId
        self.greatest = membership.record.incarnation
        self.seen_up: set[str] = set()
        self.traffic = Traffic()

    def __repr__(self) -> str:
        return f"<Process {self.name} boot {self.boot}, {self.membership!r}>"

    # What the world tells.

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Take an event of the world; return what is left for the world to do."""
        del wall_s
        if isinstance(event, DatagramReceived):
            peer = self.places.node_at(event.sender)
            if not self._has_boot(peer, self.places.boot_at(event.sender)):
                return []
            self.traffic.datagrams_in += 1
            self.traffic.datagram_bytes_in += len(event.payload) + OVERHEAD_BYTES + IP_UDP_BYTES
            event = event if peer == event.sender else DatagramReceived(peer, event.payload)
        elif isinstance(event, NoteReceived):
            peer = self.places.node_at(event.sender)
            if peer not in self.links or self.links[peer][0] != event.sender:
                return []
            self.traffic.notes_in += 1
            self.traffic.note_bytes_in += len(event.payload) + NOTE_OVERHEAD_BYTES
            event = event if peer == event.sender else NoteReceived(peer, event.payload)
        elif isinstance(event, LinkUp):
            return self._on_link_up(event, now)
        elif isinstance(event, LinkDown):
            peer = self.places.node_at(event.peer)
            if peer not in self.links or self.links[peer][0] != event.peer:
                return []
            del self.links[peer]
            if event.reason == COPY:
                self._told(Emit("member.conflict", self.node_id, COPY), now)
            event = LinkDown(peer, event.reason)
        return self.carry_out(self.membership.handle(event, now), now)

    def _on_link_up(self, event: LinkUp, now: float) -> list[Effect]:
        """Take a link, unless it is to a copy of this node, or of one to which a link is up."""
        place = event.peer
        peer = self.places.node_at(place)
        held = self.links.get(peer)
        if peer == self.node_id or (held is not None and held[0] != place):
            self._told(Emit("member.conflict", peer, COPY), now)
            return [CloseLink(place, COPY)]
        self.links[peer] = (place, self.places.boot_at(place))
        return self.carry_out(self.membership.handle(LinkUp(peer, event.address), now), now)

    # What the core wants.

    def carry_out(self, effects: list[Effect], now: float) -> list[Effect]:
        """Count and check what the core does; return what is left for the world."""
        self._check()
        rest: list[Effect] = []
        for effect in effects:
            kept: Effect | None = effect
            if isinstance(effect, SendDatagram):
                kept = self._datagram(effect, now)
            elif isinstance(effect, Emit):
                kept = None
                self._told(effect, now)
            elif isinstance(effect, SendNote):
                kept = self._note(effect)
            elif isinstance(effect, Dial) and self.places.copies and effect.expect is not None:
                place = self._place_of(effect.expect, effect.addresses)
                kept = Dial(effect.addresses, place)
            elif isinstance(effect, CloseLink):
                place, _ = self.links.get(effect.to, (effect.to, 0))
                kept = CloseLink(place, effect.reason)
            if kept is not None:
                rest.append(kept)
        return rest

    def _check(self) -> None:
        own = self.membership.members[self.node_id]
        incarnation = own.record.incarnation
        assert incarnation >= self.greatest, f"{self.name}'s incarnation fell"
        self.greatest = incarnation
        expected = NodeState.LEFT if self.membership.left else NodeState.ALIVE
        assert own.state is expected, f"{self.name} holds itself {own.state}"

    def _datagram(self, effect: SendDatagram, now: float) -> SendDatagram | None:
        sealed_bytes = len(effect.payload) + OVERHEAD_BYTES
        assert sealed_bytes <= MAX_DATAGRAM_BYTES, f"a datagram of {sealed_bytes} bytes"
        place = effect.to
        if self.places.copies:
            member = self.membership.members.get(effect.to)
            place = self._place_of(effect.to, () if member is None else member.record.addresses)
        if not self._has_boot(effect.to, self.places.boot_at(place)):
            return None  # it could not be opened there
        self.traffic.datagrams_out += 1
        self.traffic.datagram_bytes_out += sealed_bytes + IP_UDP_BYTES
        tap = self.places.tap
        if tap is not None:
            tap(now, self.name, self.places.name_at(place), effect.payload)
        return effect if place == effect.to else SendDatagram(place, effect.payload)

    def _note(self, effect: SendNote) -> SendNote | None:
        assert len(effect.payload) <= MAX_META_BYTES
        link = self.links.get(effect.to)
        if link is None:
            return None
        self.traffic.notes_out += 1
        self.traffic.note_bytes_out += len(effect.payload) + NOTE_OVERHEAD_BYTES
        return effect if link[0] == effect.to else SendNote(link[0], effect.payload)

    def _told(self, emit: Emit, now: float) -> None:
        kind = emit.kind
        subject = self.places.name_at(emit.subject)
        detail = "" if kind in UP else emit.detail
        self.places.told(FleetEvent(now, self.name, kind, subject, detail))
        if emit.subject == self.node_id:
            return
        if kind in UP:
            assert subject not in self.seen_up, f"{self.name} was told twice that {subject} is up"
            self.seen_up.add(subject)
        elif kind in DOWN:
            assert subject in self.seen_up, f"{self.name} was told twice that {subject} is down"
            self.seen_up.discard(subject)

    # Who is who.

    def _has_boot(self, peer: NodeId, boot: int) -> bool:
        """Whether datagrams between this process and a boot of a peer can be sealed and opened here."""
        member = self.membership.members.get(peer)
        if member is not None and member.record.boot == boot:
            return True
        link = self.links.get(peer)
        return link is not None and link[1] == boot

    def _place_of(self, node_id: NodeId, addresses: Iterable[Address]) -> NodeId:
        """Return which of the processes with this NodeId listens at one of these addresses."""
        for address in addresses:
            place = self.places.place_of(address)
            if place is not None and self.places.node_at(place) == node_id:
                return place
        return node_id


class Puppet:
    """A member without a mind: it answers pings and does nothing else, so it never refutes.

    Attributes:
        deaf_to: Nodes whose pings it does not answer.
        deaf_until: Until then it answers nobody, in seconds.
    """

    __slots__ = ("boot", "deaf_to", "deaf_until", "name", "node_id", "record")

    def __init__(self, name: str, record: MemberRecord) -> None:
        """Have a record that others may be told of."""
        self.name = name
        self.record = record
        self.node_id = record.node_id
        self.boot = record.boot
        self.deaf_to: set[NodeId] = set()
        self.deaf_until = 0.0

    def __repr__(self) -> str:
        return f"<Puppet {self.name}>"

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Answer a ping the way it came."""
        del wall_s
        if not isinstance(event, DatagramReceived | NoteReceived):
            return []
        message = CODEC.decode(event.payload)
        is_deaf = now < self.deaf_until or event.sender in self.deaf_to
        if is_deaf or not isinstance(message, Ping):
            return []
        send = SendDatagram if isinstance(event, DatagramReceived) else SendNote
        return [send(event.sender, CODEC.encode(Ack(message.sequence)))]
