"""How much a relay does for others: how many pairs, and how many bytes a second. Pure.

Bytes are not refused but slowed down: whoever relays gives a stream its credit back only when the budget
says so, so its sender waits, and no more than a window of it ever waits here.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from meshnode.errors import Saturated
from meshnode.limits import (
    MAX_RELAYED_LINKS,
    MAX_RELAYED_LINKS_PER_NODE,
    RELAY_BURST_S,
    RELAY_BYTES_PER_S,
    RELAY_PAIR_BYTES_PER_S,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from meshnode.types import NodeId


class Rate:
    """A rate that may be run ahead of by a burst; what it costs is time."""

    def __init__(self, bytes_per_s: float, burst_s: float) -> None:
        """Begin with the whole burst."""
        self._bytes_per_s: Final = bytes_per_s
        self._burst_s: Final = burst_s
        self._paid_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Rate of {self._bytes_per_s:.0f} bytes/s>"

    def take(self, size_bytes: int, now: float) -> float:
        """Use so many bytes; return in how many seconds that much was allowed."""
        self._paid_until = max(self._paid_until, now) + size_bytes / self._bytes_per_s
        return max(0.0, self._paid_until - self._burst_s - now)


class RelayBudget:
    """What one relay has given away.

    Attributes:
        bytes: Relayed since the start.
    """

    def __init__(
        self,
        *,
        pair_bytes_per_s: float = RELAY_PAIR_BYTES_PER_S,
        bytes_per_s: float = RELAY_BYTES_PER_S,
    ) -> None:
        """Relay for nobody yet."""
        self.bytes = 0
        self._pair_bytes_per_s = pair_bytes_per_s
        self._all = Rate(bytes_per_s, RELAY_BURST_S)
        self._rates: dict[Hashable, Rate] = {}
        self._ends: dict[Hashable, tuple[NodeId, NodeId]] = {}
        self._per_node: Counter[NodeId] = Counter()

    def __repr__(self) -> str:
        return f"<RelayBudget of {len(self._ends)} pairs, {self.bytes} bytes>"

    @property
    def pairs(self) -> int:
        """Pairs that are relayed between."""
        return len(self._ends)

    def check(self, one: NodeId, other: NodeId) -> None:
        """Refuse a pair for which there is no room.

        Raises:
            Saturated: if there is none.
        """
        if len(self._ends) >= MAX_RELAYED_LINKS:
            raise Saturated(f"this node relays for {MAX_RELAYED_LINKS} pairs already; ask another")
        if max(self._per_node[one], self._per_node[other]) >= MAX_RELAYED_LINKS_PER_NODE:
            raise Saturated(
                f"this node relays {MAX_RELAYED_LINKS_PER_NODE} links of one of the two already; "
                "ask another"
            )

    def begin(self, pair: Hashable, one: NodeId, other: NodeId) -> None:
        """Count a pair.

        Raises:
            Saturated: if there is no room.
        """
        self.check(one, other)
        self._ends[pair] = (one, other)
        self._rates[pair] = Rate(self._pair_bytes_per_s, RELAY_BURST_S)
        self._per_node.update((one, other))

    def end(self, pair: Hashable) -> None:
        """Count it no more; does nothing if it was not counted."""
        ends = self._ends.pop(pair, None)
        if ends is None:
            return
        del self._rates[pair]
        for node in ends:
            self._per_node[node] -= 1
            if not self._per_node[node]:
                del self._per_node[node]

    def take(self, pair: Hashable, size_bytes: int, now: float) -> float:
        """Relay so many bytes; return after how many seconds their sender may send as many more."""
        self.bytes += size_bytes
        rate = self._rates.get(pair)
        mine_s = 0.0 if rate is None else rate.take(size_bytes, now)
        return max(mine_s, self._all.take(size_bytes, now))
