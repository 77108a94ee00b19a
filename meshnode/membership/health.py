"""How much a node doubts itself: Lifeguard's local health (Dadgar et al. 2018, section IV-A).

A node whose own loop, machine or network is slow sees others fail to answer. So it keeps a count of
signs that the fault is its own, and probes by so much more slowly and with so much more patience:
intervals and timeouts are multiplied by 1 + the count.

| sign | count |
|---|---|
| a probe was answered, directly or through a helper | - 1 |
| a probe failed, and nobody could have helped | + 1 |
| a helper that was asked sent neither `Ack` nor `Nack` | + 1 for each |
| this node was suspected and had to refute | + 1 |
| one of its own timers came late: it was asleep | + 1 |

The first four are the paper's; the last is seen only here, and is the surest of all.
"""

from __future__ import annotations

from meshnode.limits import MAX_LOCAL_HEALTH


class LocalHealth:
    """The count, 0 (well) to `MAX_LOCAL_HEALTH`; without Lifeguard it stays 0."""

    def __init__(self, *, is_kept: bool = True) -> None:
        """Begin well."""
        self._is_kept = is_kept
        self.count = 0

    def __repr__(self) -> str:
        return f"<LocalHealth {self.count} of {MAX_LOCAL_HEALTH}>"

    def change(self, by: int) -> None:
        """Count signs: positive ones against this node, negative ones for it."""
        if self._is_kept:
            self.count = min(max(self.count + by, 0), MAX_LOCAL_HEALTH)

    def scale(self, time_s: float) -> float:
        """Return an interval or a timeout as this node should use it now, in seconds."""
        return time_s * (1 + self.count)

    def doubt_s(self, time_s: float) -> float:
        """Return by how much `scale` lengthens a time: 0 for a node that is well."""
        return time_s * self.count
