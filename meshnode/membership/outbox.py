"""How membership's messages leave: which way, and with which rumours on board.

Every ping, ack and request carries rumours in the room that its datagram has left. If the receiver
is held suspect or dead, the first of them is that accusation, whatever else is waiting: the accused
must hear it soonest, and a node that was taken for dead learns of it from the first answer it gets.

A member is reached by datagram, unless its probes were answered several times in a row but never
directly by datagram. Then UDP is taken to be blocked between the two, people are told once, and
gossip for it goes over the link until a direct ack comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from meshnode.effects import Effect, Emit, SendDatagram, SendNote
from meshnode.limits import MAX_META_BYTES
from meshnode.membership.messages import CODEC, Ack, Gossip, Nack, Ping, PingRequest, Rumour
from meshnode.membership.rumours import RumourQueue, retransmit_limit
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.member import MemberTable

ARRAY_HEADER_BYTES: Final = 2
"""What the length of a list of rumours may need beyond the one byte of an empty list."""

Carrier = TypeVar("Carrier", Ping, Ack, Nack, PingRequest, Gossip)


class Outbox:
    """Makes the effects that send messages; knows rumours and blocked paths."""

    def __init__(self, table: MemberTable, config: MembershipConfig) -> None:
        """Send on behalf of the table's owner.

        `blocked` are the peers to which UDP seems to be blocked, in the order in which that was seen.
        """
        self._table = table
        self._config = config
        self._unanswered_directly: dict[NodeId, int] = {}
        self.blocked: Final[dict[NodeId, None]] = {}
        self.rumours: Final = RumourQueue()
        # Lifeguard's buddy system is the first of them; who is taken for dead is told in any case.
        suspects = (NodeState.SUSPECT,) if config.lifeguard else ()
        self._told_first: Final = frozenset({*suspects, NodeState.DEAD})

    def __repr__(self) -> str:
        return f"<Outbox {self.rumours!r}>"

    # Messages are given without rumours; those are put on board here.

    def datagram(self, to: NodeId, message: Carrier) -> Effect:
        """Send a message and the rumours that fit by UDP."""
        return SendDatagram(to, self._load(to, message, self._config.max_payload_bytes))

    def note(self, to: NodeId, message: Carrier) -> Effect:
        """Send a message and the rumours that fit over the link."""
        return SendNote(to, self._load(to, message, MAX_META_BYTES))

    def best(self, to: NodeId, message: Carrier) -> Effect:
        """Send a message by UDP, or over the link where UDP is known to be blocked."""
        if self.is_blocked(to) and self._table.is_linked(to):
            return self.note(to, message)
        return self.datagram(to, message)

    def surest(self, to: NodeId, message: Carrier) -> Effect:
        """Send a message over the link where there is one, so that loss does not matter, else by UDP."""
        if self._table.is_linked(to):
            return self.note(to, message)
        return self.datagram(to, message)

    def is_blocked(self, peer: NodeId) -> bool:
        """Whether UDP seems to be blocked between this node and a peer."""
        return peer in self.blocked

    def answered(self, peer: NodeId, *, directly: bool) -> list[Effect]:
        """Note how a probe was answered, and tell people when a path is blocked or open again."""
        if directly:
            self._unanswered_directly.pop(peer, None)
            if peer not in self.blocked:
                return []
            del self.blocked[peer]
            return [Emit("member.udp_open", peer, "datagrams pass again")]
        unanswered = self._unanswered_directly.get(peer, 0) + 1
        self._unanswered_directly[peer] = unanswered
        if peer in self.blocked or unanswered < self._config.udp_blocked_after:
            return []
        self.blocked[peer] = None
        detail = "datagrams do not get through (a firewall or NAT); its link carries everything"
        return [Emit("member.udp_blocked", peer, detail)]

    def forget(self, peer: NodeId) -> None:
        """Drop what is known about the path to a member that is not there any more."""
        self._unanswered_directly.pop(peer, None)
        self.blocked.pop(peer, None)

    def _load(self, to: NodeId, message: Carrier, limit_bytes: int) -> bytes:
        plain = CODEC.encode(message)
        budget_bytes = limit_bytes - len(plain) - ARRAY_HEADER_BYTES
        rumours: list[Rumour] = []
        member = self._table.get(to)
        if member is not None and member.state in self._told_first:
            accusation = self._table.rumour(member, self._table.own_id)
            rumours.append(accusation)
            budget_bytes -= len(msgspec.msgpack.encode(accusation))
        limit = retransmit_limit(self._config.retransmit_multiplier, self._table.size)
        rumours += self.rumours.take(budget_bytes, limit)
        if not rumours:
            return plain
        return CODEC.encode(msgspec.structs.replace(message, rumours=tuple(rumours)))
