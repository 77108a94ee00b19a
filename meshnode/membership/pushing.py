"""News passed on over links: at once, once per node, to a few peers.

Gossip by datagram carries rumours only: a record with its signature and admission chain does not fit,
and a node that needs one has to ask. So whatever changes a node's view (a record that it took, a state
that it came to believe) also goes over `push_fanout` of its links, chosen at random, and each node for
which it is news does the same. A join is then known to a thousand nodes after some seven steps of one
link's delay each, and an accusation reaches the accused where datagrams are lost.

A record that this node had to ask for is no news to others, and is not passed on.

The first piece of news goes out at once; what follows within `gossip_interval_s` is gathered, so that
a mesh of thousands that starts at once sends full notes and not one per record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from meshnode.effects import Effect, SendNote, StartTimer
from meshnode.membership import antientropy
from meshnode.membership.messages import CODEC, pack_id
from meshnode.membership.timers import PushRound

if TYPE_CHECKING:
    import random

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.member import MemberTable
    from meshnode.membership.messages import Rumour
    from meshnode.types import NodeId


class Pusher:
    """What is still to be passed on: at most one piece per member of the table, which bounds it."""

    def __init__(self, table: MemberTable, config: MembershipConfig, rng: random.Random) -> None:
        """Pass on what the table's owner learns."""
        self._table = table
        self._config = config
        self._rng = rng
        self._records: dict[NodeId, NodeId | None] = {}  # whose, and who told
        self._rumours: dict[bytes, tuple[Rumour, NodeId | None]] = {}
        self._is_waiting = False
        self._next_at = 0.0

    def __repr__(self) -> str:
        return f"<Pusher of {len(self._records)} records, {len(self._rumours)} rumours>"

    def add_record(self, node_id: NodeId, teller: NodeId | None, now: float) -> list[Effect]:
        """Pass on a member's record as it is when the time comes."""
        self._records[node_id] = teller
        return self._wait(now)

    def add_rumour(self, rumour: Rumour, teller: NodeId | None, now: float) -> list[Effect]:
        """Pass on what is believed about a member, instead of what was before."""
        self._rumours[rumour.subject] = (rumour, teller)
        return self._wait(now)

    def send(self, now: float) -> list[Effect]:
        """Send what is waiting to a few linked peers, but nobody what it told itself."""
        self._is_waiting = False
        self._next_at = now + self._config.gossip_interval_s
        records, rumours = self._encoded(), [*self._rumours.values()]
        self._records, self._rumours = {}, {}
        linked = self._table.linked
        effects: list[Effect] = []
        for peer in self._rng.sample(linked, min(self._config.push_fanout, len(linked))):
            notes = antientropy.pack_encoded(
                [(subject, record) for subject, record, teller in records if teller != peer],
                [rumour for rumour, teller in rumours if teller != peer],
            )
            effects += [SendNote(peer, note) for note in notes]
        return effects

    def _encoded(self) -> list[tuple[bytes, msgspec.Raw, NodeId | None]]:
        """Return whose records wait, the records as they are now, and who told them."""
        held = ((self._table.get(subject), teller) for subject, teller in self._records.items())
        return [
            (pack_id(member.node_id), msgspec.Raw(CODEC.encode(member.record)), teller)
            for member, teller in held
            if member is not None
        ]

    def _wait(self, now: float) -> list[Effect]:
        if self._is_waiting:
            return []
        self._is_waiting = True
        return [StartTimer(PushRound(), max(0.0, self._next_at - now))]
