"""Relays in a daemon: links to peers that cannot be dialled, and what this node relays for others.

`meshnode.net.relay_plan` says when something is due; here it is done. Only peers that this node needs
are looked for through relays: its requests go there, or it fetches from there. All others it
hears of through the members that both are linked with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from meshnode.daemon.background import BackgroundTasks
from meshnode.daemon.named import name_of
from meshnode.errors import LinkLost, MeshError
from meshnode.events import DialFailed, LinkDown, LinkUp
from meshnode.limits import (
    DIAL_TIMEOUT_S,
    MAX_RELAYS_ASKED,
    RELAY_AFTER_S,
    RELAY_ANSWERS_S,
    RELAY_LOOK_S,
)
from meshnode.net.relay import Relay
from meshnode.net.relay_plan import MUCH_BETTER, RelayPlan, Try, Way
from meshnode.net.relayed_links import RelayedLinks
from meshnode.types import Address

if TYPE_CHECKING:
    import random
    from collections.abc import Collection

    from meshnode.clock import Clock
    from meshnode.events import Event
    from meshnode.membership.addresses import Kind
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.node import Node
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

_UNKNOWN_S = 1.0
"""What a round trip counts that is not known: more than one that is."""

_HELPERS_DIALLED = 2
"""Neighbours of a peer that are dialled where no linked node relays to it: in a large mesh, few have links to both."""


class Relaying:
    """Both sides of relaying for one node.

    Attributes:
        relay: What this node does for others.
        found: Links that were opened through relays.
        failed: Searches that found no relay.
        replaced: Relayed links whose place a direct one took.
    """

    def __init__(
        self, node: Node, hub: LinkHub, clock: Clock, rng: random.Random, *, is_willing: bool
    ) -> None:
        """Work over a hub's links; `is_willing` is whether this node relays for others."""
        self.relay = Relay(hub, clock, is_willing=is_willing)
        self.found = 0
        self.failed = 0
        self.replaced = 0
        self._node = node
        self._hub = hub
        self._clock = clock
        self._links = RelayedLinks(hub, clock)
        self._plan = RelayPlan(rng)
        self._kinds: Collection[Kind] = ()
        self._tasks = BackgroundTasks(log, "looking for a relay failed")
        self._relayed: frozenset[NodeId] = frozenset()
        self._asked: dict[NodeId, set[NodeId]] = {}  # by peer: for whom no relay was found yet
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Relaying {self.relay!r}, {len(self.relayed)} own links>"

    def start(self, kinds: Collection[Kind]) -> None:
        """Look regularly; `kinds` is where peers' addresses may lead."""
        self._kinds = kinds
        self._look_regularly()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._tasks.cancel()

    @property
    def relayed(self) -> dict[NodeId, NodeId]:
        """The peers whose link goes through another node, and through whom."""
        found = ((peer, self._hub.relay(peer)) for peer in self._hub.peers())
        return {peer: relay for peer, relay in found if relay is not None}

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        """A peer wants this node to relay, or calls it through a relay.

        Raises:
            MeshError: if nothing comes of it.
        """
        self.relay.conversation_opened(connection, stream, meta)

    def link_event(self, event: Event) -> None:
        """A link came up or went down, or a dial failed."""
        now = self._clock.now()
        if isinstance(event, DialFailed) and event.expect is not None:
            self._plan.dial_failed(event.expect, now)
        if isinstance(event, DialFailed | LinkDown):
            self.look_soon()
        elif isinstance(event, LinkUp):
            if self._hub.relay(event.peer) is None:
                self._hub.relay_faults.returned(event.peer)
            if self._plan.link_came_up(now):
                asyncio.get_running_loop().call_later(RELAY_ANSWERS_S, self.look_soon)

    def look_soon(self) -> None:
        """Look at the end of this turn of the loop: something has changed."""
        if not self._is_due and self._timer is not None:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._look)

    async def link(self, peer: NodeId, addresses: tuple[Address, ...]) -> Connection:
        """Make a link to a peer now, directly, or through a relay where that is slow or fails.

        Args:
            peer: The member.
            addresses: Where it says that it is reached.

        Raises:
            MeshError: if there is no way.
        """
        direct = asyncio.ensure_future(self._hub.connect(addresses, peer, self._kinds))
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await asyncio.wait((direct,), timeout=RELAY_AFTER_S)
                if direct.done() and direct.exception() is None:
                    return direct.result()
                with contextlib.suppress(MeshError):
                    return await self._links.connect(peer, self.candidates(peer))
                return await direct
        except TimeoutError:
            raise LinkLost("the node does not answer, directly or through another one") from None
        finally:
            direct.cancel()

    def candidates(self, peer: NodeId) -> list[NodeId]:
        """Return the nodes to ask whether they relay to a peer, those with the shortest way first.

        Measured round trips where there are any, else what the network coordinates say. In a large mesh
        the peer's neighbours come first, since they have links to it. The relay that the present link
        goes through comes last: another one is wanted. Those through which links failed come after all others, and
        after them those that were asked in vain a moment ago.
        """
        membership = self._node.membership
        linked = [each for each in self._hub.peers() if each != peer and self._may_relay(each)]
        near = frozenset(membership.neighbours_of(peer))
        present = self._hub.relay(peer)
        asked = self._asked.get(peer, ())
        now = self._clock.now()

        def place(relay: NodeId) -> tuple[bool, int, bool, bool, float, NodeId]:
            faults = self._hub.relay_faults.count(relay, peer, now)
            is_far = bool(near) and relay not in near
            total_s = self._total_s(relay, peer)
            return relay in asked, faults, relay == present, is_far, total_s, relay

        return sorted(linked, key=place)[: 2 * MAX_RELAYS_ASKED]

    def _total_s(self, relay: NodeId, peer: NodeId) -> float:
        """Return the round trip to a peer through a relay, as far as can be told."""
        own_s = self._hub.rtt_s(relay)
        rest_s = self._node.membership.rtt_s(relay, peer)
        return (_UNKNOWN_S if own_s is None else own_s) + (_UNKNOWN_S if rest_s is None else rest_s)

    def _is_worth_a_move(self, relay: NodeId, peer: NodeId) -> bool:
        """Whether a peer may be reached through this node rather than through the present relay."""
        faults = self._hub.relay_faults.count(relay, peer, self._clock.now())
        return relay != self._hub.relay(peer) and not faults

    def _may_relay(self, relay: NodeId) -> bool:
        member = self._node.membership.members.get(relay)
        return (
            member is not None
            and member.live
            and self._hub.relay(relay) is None
            and self._hub.connection(relay) is not None
        )

    # What is due

    def _look_regularly(self) -> None:
        self._look()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(RELAY_LOOK_S, self._look_regularly)

    def _look(self) -> None:
        self._is_due = False
        members = self._node.membership.members
        needed = {peer for peer in self._node.needed if peer in members and members[peer].live}
        relayed = frozenset(self.relayed)
        for peer in self._asked.keys() - needed - relayed:
            del self._asked[peer]
        gone = (peer for peer in self._relayed - relayed if self._hub.connection(peer) is not None)
        self.replaced += len(list(gone))
        self._relayed = relayed
        ways = {peer: self._way(peer) for peer in sorted(needed | relayed)}
        for peer, what in self._plan.look(ways, self._clock.now()):
            if what is Try.DIRECT:
                self._hub.dial(self._addresses(peer), peer, self._kinds)
            elif what is Try.RELAY:
                self._tasks.start(self._search(peer))
            else:
                self._tasks.start(self._improve(peer, ways[peer]))

    def _way(self, peer: NodeId) -> Way:
        relay = self._hub.relay(peer)
        is_usable = self._hub.connection(peer) is not None
        if relay is not None and self._hub.connection(relay) is None:
            is_usable = False  # the relay goes away, or is silent
        own = tuple(self._node.membership.record.addresses)
        way = Way(
            is_linked=peer in self._hub.peers(),
            relay=relay,
            is_usable=is_usable,
            places=(self._addresses(peer), own),
        )
        if relay is None or not is_usable or peer not in self._node.needed:
            return way
        best = [each for each in self.candidates(peer)[:1] if self._is_worth_a_move(each, peer)]
        best_s = self._total_s(best[0], peer) if best else None
        return way._replace(rtt_s=self._hub.rtt_s(peer), best_rtt_s=best_s)

    def _addresses(self, peer: NodeId) -> tuple[Address, ...]:
        member = self._node.membership.members.get(peer)
        return () if member is None else tuple(Address(*each) for each in member.record.addresses)

    async def _search(self, peer: NodeId) -> None:
        has_worked = others_left = False
        asked = self.candidates(peer)
        try:
            try:
                await self._links.connect(peer, asked)
            except MeshError:
                further = await self._linked_neighbours(peer, asked)
                if not further:
                    raise
                await self._links.connect(peer, further)
            has_worked = True
            self.found += 1
            through = self._hub.relay(peer)
            if through is not None:
                log.info("%s is reached through %s", self._name(peer), self._name(through))
        except MeshError as error:
            self.failed += 1
            others_left = self._note_asked(peer, asked)
            log.debug("no relay to %s: %s", self._name(peer), error)
        finally:
            if has_worked:
                self._asked.pop(peer, None)
            self._plan.relay_tried(
                peer, has_worked=has_worked, now=self._clock.now(), others_left=others_left
            )

    def _note_asked(self, peer: NodeId, asked: Collection[NodeId]) -> bool:
        """Remember who was asked in vain; return whether others are left. If not, all are asked anew."""
        known = self._asked.setdefault(peer, set())
        known.update(asked)
        others_left = any(each not in known for each in self.candidates(peer))
        if not others_left:
            del self._asked[peer]
        return others_left

    async def _improve(self, peer: NodeId, way: Way) -> None:
        """Take a relay over which the way is much shorter, if there is one; what runs on the present one finishes."""
        others = [each for each in self.candidates(peer) if self._is_worth_a_move(each, peer)]
        try:
            assert way.rtt_s is not None
            await self._links.connect(peer, others, MUCH_BETTER * way.rtt_s)
        except MeshError as error:
            log.debug("no better relay to %s: %s", self._name(peer), error)
        finally:
            self._plan.reviewed(peer)

    async def _linked_neighbours(
        self, peer: NodeId, asked: Collection[NodeId]
    ) -> tuple[NodeId, ...]:
        """Make links to a few of a peer's neighbours, in a large mesh; return those that came to be."""
        found: list[NodeId] = []
        near = self._node.membership.neighbours_of(peer)
        others = [each for each in near if each not in (*asked, peer)]
        for helper in others[:_HELPERS_DIALLED]:
            with contextlib.suppress(MeshError):
                await self._hub.connect(self._addresses(helper), helper, self._kinds)
                found.append(helper)
        return tuple(found)

    def _name(self, node: NodeId) -> str:
        return name_of(self._node.membership.members, node)
