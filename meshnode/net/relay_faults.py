"""Which relays failed, and to whom: those come last for a while. Pure.

A relay may pass nothing on, lose or alter bytes, or be frozen, and still answer quicker than any other
that it would relay. So what it says counts only until a link through it fails: one that stalls,
breaks, or is never made, though the relay said that it would.

| what happened                                            | whom it counts against              |
|----------------------------------------------------------|-------------------------------------|
| a link to a peer stalled or broke, or its hello failed   | that relay, for this peer           |
| and then the peer answers through another relay          | that relay, for all other peers, too|
| it happens again while that counts, or as long afterwards| the same, for twice as long         |
| this node's own link to the relay is made anew           | what it did once is forgiven: it    |
|                                                          | had failed itself, and is back      |

It counts for `RELAY_DISTRUST_S` the first time, up to `MAX_RELAY_DISTRUST_S`. A peer that is itself gone
fails through every relay, which changes nothing in their order.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.limits import (
    HANDSHAKE_TIMEOUT_S,
    MAX_RELAY_DISTRUST_S,
    MAX_RELAY_FAULTS,
    RELAY_DISTRUST_S,
)

if TYPE_CHECKING:
    from meshnode.types import NodeId


@dataclass(slots=True)
class _Fault:
    """How often, until when it counts, whether it was counted against the relay as such, and whether it is forgiven."""

    times: int
    at: float
    until: float
    is_proven: bool = False
    is_forgiven: bool = False


class RelayFaults:
    """What one node remembers; bounded by `MAX_RELAY_FAULTS`, the oldest is forgotten first."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._faults: OrderedDict[tuple[NodeId, NodeId | None], _Fault] = OrderedDict()

    def __repr__(self) -> str:
        return f"<RelayFaults {len(self._faults)}>"

    def failed(self, relay: NodeId, peer: NodeId, now: float) -> None:
        """A link to a peer through a relay stalled or broke, or could not be made.

        Args:
            relay: Which one.
            peer: To whom.
            now: Monotonic seconds.
        """
        self._count(relay, peer, now)

    def reached(self, relay: NodeId, peer: NodeId, now: float) -> None:
        """A peer answers through this relay: who has just failed to reach it is to blame, and not the peer.

        Args:
            relay: Which one.
            peer: Who answered.
            now: Monotonic seconds.
        """
        for (other, whom), fault in tuple(self._faults.items()):
            is_fresh = fault.at > now - HANDSHAKE_TIMEOUT_S
            if whom == peer and other != relay and is_fresh and not fault.is_proven:
                fault.is_proven = True
                self._count(other, None, now)

    def returned(self, relay: NodeId) -> None:
        """This node has a new link to a relay: it was gone itself. A second failure counts twice all the same."""
        for (other, _), fault in self._faults.items():
            if other == relay and fault.times == 1:
                fault.is_forgiven = True

    def count(self, relay: NodeId, peer: NodeId, now: float) -> int:
        """Return how many failures count against a relay to a peer; 0 if it is as good as any.

        Args:
            relay: Which one.
            peer: To whom.
            now: Monotonic seconds.
        """
        return self._counting((relay, peer), now) or self._counting((relay, None), now)

    def _counting(self, key: tuple[NodeId, NodeId | None], now: float) -> int:
        fault = self._faults.get(key)
        if fault is None or fault.is_forgiven or now >= fault.until:
            return 0
        return fault.times

    def _count(self, relay: NodeId, peer: NodeId | None, now: float) -> None:
        former = self._faults.pop((relay, peer), None)
        times = 1
        if former is not None and now < former.until + (former.until - former.at):
            times = former.times + 1
        lasts_s = min(MAX_RELAY_DISTRUST_S, RELAY_DISTRUST_S * 2.0 ** min(times - 1, 32))
        self._faults[relay, peer] = _Fault(times, now, now + lasts_s)
        if len(self._faults) > MAX_RELAY_FAULTS:
            self._faults.popitem(last=False)
