"""Which links a node wants: all of them in a small mesh, those to a few neighbours in a large one.

Up to `full_mesh_size` live members everybody is linked with everybody. Above it a link is wanted with

- the `link_degree` members that rank first for this node. Two nodes' rank for each other is one number,
  made from both ids (rendezvous hashing), so who ranks first here mostly ranks this node first too,
  every node can say who another one's neighbours are, and a member that comes or goes moves only links
  of its own;
- the members that requests go to (`Membership.want_links`);
- members to which datagrams do not pass: the link is the only way to them.

A graph in which each node has a few random neighbours hangs together with near certainty from three on,
and any two of its nodes are some log n / log k steps apart. News, records and anti-entropy travel along it.

A link stays while either end wants it. One that its owner does not want for `link_linger_s` is offered
for closing::

    A (does not want it) ── Unwanted ──> B (does not want it either): closes
                                         B (wants it): nothing; once it does not, it says so in turn

The offer is made again now and then, for the note may be lost, and a link is left up while a request runs
on it. Links to nodes that are no live members
are not touched here: something is about to be learnt over them.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from heapq import nlargest
from typing import TYPE_CHECKING, Final

from meshnode.effects import CloseLink, Effect, SendNote, StartTimer
from meshnode.limits import MAX_MEMBERS
from meshnode.membership.messages import CODEC, Unwanted, pack_id
from meshnode.membership.timers import LinkRound
from meshnode.types import NodeState

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.member import MemberTable
    from meshnode.membership.outbox import Outbox
    from meshnode.types import NodeId

OFFER_AGAIN_ROUNDS: Final = 6
"""A link that is not wanted is offered for closing again after so many rounds."""

_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1


def rank(one: NodeId, other: NodeId) -> int:
    """Return how much two nodes are neighbours: the greater the more, the same from both sides.

    Ids are hashes already, so a multiplication is enough to make the order of any node's peers
    another one (Fibonacci hashing: Knuth, The Art of Computer Programming 3, section 6.4).
    """
    return (_number(one) ^ _number(other)) * _MULTIPLIER & _MASK


@lru_cache(2 * MAX_MEMBERS)
def _number(node_id: NodeId) -> int:
    return int.from_bytes(pack_id(node_id)[:8], "big")


def neighbours(node_id: NodeId, others: Iterable[NodeId], count: int) -> list[NodeId]:
    """Return which of the others rank first for a node, the first one first."""
    return nlargest(count, others, key=lambda other: rank(node_id, other))


class Linking:
    """This node's wishes, kept up with the table; bounded by it."""

    def __init__(
        self,
        table: MemberTable,
        outbox: Outbox,
        config: MembershipConfig,
        rng: random.Random,
    ) -> None:
        """Want links for the table's owner."""
        self._table = table
        self._outbox = outbox
        self._config = config
        self._rng = rng
        self._ranked: list[NodeId] = []  # live members, the first in rank last
        self._nearest: frozenset[NodeId] | None = None
        self._asked_for: frozenset[NodeId] = frozenset()
        self._unwanted: dict[NodeId, float] = {}  # linked peers: since when
        self._offered: dict[NodeId, int] = {}  # linked peers: rounds since the offer
        self._parting: set[NodeId] = set()  # linked peers that this or the other side offered

    def __repr__(self) -> str:
        return f"<Linking {len(self.wanted())} of {self._table.size - 1} wanted>"

    @property
    def is_full(self) -> bool:
        """Whether the mesh is small enough for links between all."""
        return self._table.size <= self._config.full_mesh_size

    def start(self) -> list[Effect]:
        """Begin the rounds in which links are offered for closing."""
        return [StartTimer(LinkRound(), self._round_s())]

    def member_live(self, node_id: NodeId) -> None:
        """Rank a member that became live."""
        place = bisect_left(self._ranked, self._place_of(node_id), key=self._place_of)
        if self._ranked[place : place + 1] != [node_id]:
            self._ranked.insert(place, node_id)
            self._nearest = None

    def member_gone(self, node_id: NodeId) -> None:
        """Drop a member that died, left or was evicted."""
        place = bisect_left(self._ranked, self._place_of(node_id), key=self._place_of)
        if self._ranked[place : place + 1] == [node_id]:
            del self._ranked[place]
            self._nearest = None

    def _place_of(self, node_id: NodeId) -> tuple[int, NodeId]:
        return rank(self._table.own_id, node_id), node_id

    def ask_for(self, nodes: frozenset[NodeId]) -> bool:
        """Want links with these besides, and return whether that is news."""
        changed = nodes != self._asked_for
        self._asked_for = nodes
        return changed

    def wants(self, node_id: NodeId) -> bool:
        """Whether this node wants a link with a live member."""
        return (
            self.is_full
            or node_id in self._nearby()
            or node_id in self._asked_for
            or self._outbox.is_blocked(node_id)
        )

    def is_mutual(self, node_id: NodeId) -> bool:
        """Whether the other end of a link that is wanted most likely wants it too."""
        return self.is_full or node_id in self._nearby()

    def wanted(self) -> list[NodeId]:
        """Return the live members with which it wants links, linked or not, in a stable order."""
        if self.is_full:
            return list(self._table.live)
        more = self._asked_for | set(self._outbox.blocked)
        others = (self._table.get(node_id) for node_id in sorted(more - self._nearby()))
        return [
            *self._ranked[-self._config.link_degree :],
            *(each.node_id for each in others if each is not None and each.live),
        ]

    def neighbours_of(self, node_id: NodeId) -> list[NodeId]:
        """Return the others that rank first for a member in a large mesh; nobody in a small one."""
        if self.is_full:
            return []
        others = [each for each in self._table.live if each != node_id]
        return neighbours(node_id, others, self._config.link_degree)

    def helpers(self, target: NodeId, count: int, asked: Iterable[NodeId] = ()) -> list[NodeId]:
        """Return members that may reach a target over other ways than this node's own.

        In a large mesh: one to which this node has a link, since its own datagrams may be what does
        not pass, and members that should have a link to the target. One that has both comes first: by
        links all the way no loss counts.

        Args:
            target: Whom they should reach.
            count: How many at most.
            asked: Members that need not be asked again.
        """
        but = {target, *asked}
        if self.is_full:
            return self._alive(self._shuffled(self._table.live), count, but)
        near = neighbours(target, self._table.live, self._config.link_degree)
        linked = sorted(self._shuffled(self._table.linked), key=lambda each: each not in near)
        chosen = self._alive(linked, 1, but)
        others = self._shuffled(near)
        return chosen + self._alive(others, count - len(chosen), but.union(chosen))

    def _alive(self, nodes: Iterable[NodeId], count: int, but: set[NodeId]) -> list[NodeId]:
        """Return the first of these members that are alive: a suspect is a poor helper."""
        found: list[NodeId] = []
        for node_id in nodes:
            member = self._table.get(node_id)
            if len(found) >= count:
                break
            if member is not None and member.state is NodeState.ALIVE and node_id not in but:
                found.append(node_id)
        return found

    def link_lost(self, peer: NodeId) -> bool:
        """Forget a link's state, and return whether its end was agreed on."""
        self._unwanted.pop(peer, None)
        self._offered.pop(peer, None)
        was_parting = peer in self._parting
        self._parting.discard(peer)
        return was_parting

    def offered_by(self, peer: NodeId) -> list[Effect]:
        """Close a link that its other end does not need, unless this one does."""
        member = self._table.get(peer)
        if member is None or not self._table.is_linked(peer) or self.wants(peer):
            return []
        self._parting.add(peer)
        return [CloseLink(peer, "neither of us needs this link now", only_if_idle=True)]

    def next_round(self, now: float) -> list[Effect]:
        """Offer links for closing that have not been wanted for a while."""
        effects: list[Effect] = [StartTimer(LinkRound(), self._round_s())]
        for peer in self._table.linked:
            member = self._table.get(peer)
            if member is None or not member.live or self.wants(peer):
                self.link_lost(peer)
                continue
            since = self._unwanted.setdefault(peer, now)
            rounds = self._offered.get(peer, -1) + 1
            if now - since < self._config.link_linger_s:
                continue
            self._offered[peer] = rounds
            if rounds % OFFER_AGAIN_ROUNDS == 0:
                self._parting.add(peer)
                effects.append(SendNote(peer, CODEC.encode(Unwanted())))
        return effects

    def _nearby(self) -> frozenset[NodeId]:
        if self._nearest is None:
            degree = self._config.link_degree
            self._nearest = frozenset(self._ranked[-degree:])
        return self._nearest

    def _shuffled(self, nodes: tuple[NodeId, ...] | list[NodeId]) -> list[NodeId]:
        return self._rng.sample(nodes, len(nodes))

    def _round_s(self) -> float:
        return self._config.link_linger_s / 3 * self._rng.uniform(0.8, 1.2)
