"""When a peer is looked for through a relay, and when directly again. Pure.

Membership dials who is wanted, directly, and goes on with it where that fails. This plan adds two things
for peers that this node needs (its requests go there, or it fetches from there):

| the way to the peer            | what is due                                                              |
|--------------------------------|--------------------------------------------------------------------------|
| none, a dial has failed        | a relay, at once                                                         |
| none yet                       | a relay after `RELAY_AFTER_S`: the network may swallow what is sent      |
| relayed, and it broke          | a relay, at once: it was needed a moment ago                             |
| relayed, and silent or ending  | another relay, at once: the silence was waited for                       |
| direct, and silent or ending   | a relay after `RELAY_AFTER_S`                                            |
| no relay was found             | again after `RELAY_RETRY_S`, doubling up to `MAX_RELAY_RETRY_S`          |
| and somebody was not asked yet | again after `RELAY_ANSWERS_S`; the pause does not double                  |
| none found, and a link came up | again after `RELAY_ANSWERS_S`: who is linked now may relay               |
| relayed, and no dial has failed| a direct dial at once: the peer, who called, may have no way to this node|
| relayed                        | a direct dial after `DIRECT_RETRY_S`, doubling up to `MAX_DIRECT_RETRY_S`|
| relayed, and an address changed| a direct dial at once, here or there; then as above                      |
| relayed, and a much shorter way| that relay, every `RELAY_REVIEW_S` as long as it looks much shorter      |

Half of each pause is random, so that many do not come back in step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.limits import (
    DIRECT_RETRY_S,
    MAX_DIRECT_RETRY_S,
    MAX_RELAY_RETRY_S,
    RELAY_AFTER_S,
    RELAY_ANSWERS_S,
    RELAY_RETRY_S,
    RELAY_REVIEW_S,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Hashable, Mapping

    from meshnode.types import NodeId


MUCH_BETTER: Final = 0.7
"""A way of less than this share of the present one is worth a new link: estimates are off by 15 %."""

LEAST_GAIN_S: Final = 0.005
"""Less is not, whatever the share: nobody notices it."""


class Way(NamedTuple):
    """The way to a peer as it is now.

    Attributes:
        is_linked: Whether a link stands.
        relay: Through whom it goes; None if it is direct, or there is none.
        is_usable: Whether something can be asked on it.
        rtt_s: Its round trip, if it was measured.
        best_rtt_s: What the round trip through the best other relay would be, as far as can be told.
        places: Where the two nodes say that they are reached: another value makes a dial worth while.
    """

    is_linked: bool = False
    relay: NodeId | None = None
    is_usable: bool = False
    rtt_s: float | None = None
    best_rtt_s: float | None = None
    places: Hashable = ()


class Try(Enum):
    """What is due for a peer."""

    RELAY = auto()
    DIRECT = auto()
    BETTER_RELAY = auto()


@dataclass(slots=True)
class _Peer:
    """What is remembered of a peer that is needed.

    Attributes:
        way: As it was seen last.
        relay_at: When a relay is due, if the way is still no good then; None if it is good.
        relay_failures: In a row.
        direct_at: When a direct dial is due; None unless the way is relayed.
        dial_failed_at: When a direct dial failed last.
        direct_dials: Since the way is relayed, or an address changed.
        is_trying: Whether a relay is being looked for.
        is_reviewing: Whether a better one is; that keeps nobody from looking for any when the present one fails.
        review_at: When a better relay is looked for, if there seems to be one; None unless the way is relayed.
    """

    way: Way
    relay_at: float | None = None
    relay_failures: int = 0
    direct_at: float | None = None
    direct_dials: int = 0
    dial_failed_at: float = -math.inf
    is_trying: bool = False
    is_reviewing: bool = False
    review_at: float | None = None


class RelayPlan:
    """The plan of one node; bounded by the peers that it needs."""

    def __init__(self, rng: random.Random) -> None:
        """Begin; `rng` spreads pauses."""
        self._rng = rng
        self._peers: dict[NodeId, _Peer] = {}

    def __repr__(self) -> str:
        return f"<RelayPlan for {len(self._peers)} peers>"

    def look(self, ways: Mapping[NodeId, Way], now: float) -> list[tuple[NodeId, Try]]:
        """Return what is due now, given the ways to all needed peers. A relay is tried once at a time.

        Args:
            ways: By peer; who is missing is needed no more.
            now: Monotonic seconds.
        """
        for peer in self._peers.keys() - ways.keys():
            if not self._peers[peer].is_trying and not self._peers[peer].is_reviewing:
                del self._peers[peer]
        due: list[tuple[NodeId, Try]] = []
        for peer, way in ways.items():
            known = self._peers.get(peer)
            if known is None:
                known = self._peers[peer] = _Peer(Way())
            self._follow(known, way, now)
            if known.relay_at is not None and known.relay_at <= now and not known.is_trying:
                known.is_trying = True
                due.append((peer, Try.RELAY))
            if known.direct_at is not None and known.direct_at <= now:
                known.direct_at = now + self._pause_s(
                    DIRECT_RETRY_S, known.direct_dials, MAX_DIRECT_RETRY_S
                )
                known.direct_dials += 1
                due.append((peer, Try.DIRECT))
            if known.review_at is not None and known.review_at <= now:
                known.review_at = now + self._pause_s(RELAY_REVIEW_S, 0, RELAY_REVIEW_S)
                if is_much_better(way) and not known.is_trying and not known.is_reviewing:
                    known.is_reviewing = True
                    due.append((peer, Try.BETTER_RELAY))
        return due

    def dial_failed(self, peer: NodeId, now: float) -> None:
        """A direct dial of a peer has failed: no use to wait any longer for a first one."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.dial_failed_at = now
        if known.relay_at is not None and not known.relay_failures:
            known.relay_at = min(known.relay_at, now)

    def link_came_up(self, now: float) -> bool:
        """A node that may relay is linked now: look again for the peers to which no relay was found.

        Not at once: if the node has come back, the peer's own link to it takes as long as this one.

        Returns:
            Whether there are any; they are due in `RELAY_ANSWERS_S`.
        """
        waiting = [each for each in self._peers.values() if each.relay_at and each.relay_failures]
        for known in waiting:
            known.relay_at = min(known.relay_at or now, now + RELAY_ANSWERS_S)
        return bool(waiting)

    def relay_tried(
        self, peer: NodeId, *, has_worked: bool, now: float, others_left: bool = False
    ) -> None:
        """Take how it went with relays; `others_left` is whether there are some that were not asked."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.is_trying = False
        if has_worked or known.way.is_usable:
            known.relay_failures = 0
            return
        if others_left:
            known.relay_at = now + RELAY_ANSWERS_S
            return
        pause_s = self._pause_s(RELAY_RETRY_S, known.relay_failures, MAX_RELAY_RETRY_S)
        known.relay_failures += 1
        known.relay_at = now + pause_s

    def reviewed(self, peer: NodeId) -> None:
        """The search for a better relay is over."""
        known = self._peers.get(peer)
        if known is not None:
            known.is_reviewing = False

    def _follow(self, known: _Peer, way: Way, now: float) -> None:
        before, known.way = known.way, way
        if way.is_linked and way.is_usable:
            known.relay_at = None
            known.relay_failures = 0
        elif known.relay_at is None:
            was_relayed = before.relay is not None or way.relay is not None
            known.relay_at = now if was_relayed else now + RELAY_AFTER_S
        if way.relay is None:
            known.direct_at = known.review_at = None
        elif known.direct_at is None:
            has_failed = now - known.dial_failed_at < DIRECT_RETRY_S
            known.direct_dials = 0
            known.direct_at = now + has_failed * self._pause_s(
                DIRECT_RETRY_S, 0, MAX_DIRECT_RETRY_S
            )
            known.review_at = now + RELAY_REVIEW_S
        elif way.places != before.places:
            known.direct_dials = 0
            known.direct_at = now

    def _pause_s(self, first_s: float, number: int, longest_s: float) -> float:
        pause_s = min(longest_s, first_s * 2.0 ** min(number, 32))
        return pause_s * self._rng.uniform(0.5, 1.0)


def is_much_better(way: Way) -> bool:
    """Whether another relay would shorten the way by so much that a new link is worth while."""
    if way.rtt_s is None or way.best_rtt_s is None:
        return False
    return way.best_rtt_s < MUCH_BETTER * way.rtt_s and way.rtt_s - way.best_rtt_s > LEAST_GAIN_S
