"""Rumours that are still worth telling.

One rumour per subject: a newer one about the same member replaces the older. Each is told a
bounded number of times by this node (SWIM section 4.1: a multiple of log n reaches all with high
probability; anti-entropy finds the rest), those told least first and among them the newest, so that
fresh news never waits behind old. The queue is kept as tiers, one per number of times told:
taking a rumour moves it to the end of the next tier, so a datagram costs what it carries and not
what is queued.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.membership.messages import Rumour

SMALLEST_RUMOUR_BYTES: Final = 30
"""An array of six with a 20-byte subject: with less room left, looking further finds nothing."""


def retransmit_limit(multiplier: int, size: int) -> int:
    """Return how often a rumour is told in a mesh of `size` members (memberlist's formula)."""
    return multiplier * math.ceil(math.log10(size + 1))


class RumourQueue:
    """At most one rumour per member of the table, which bounds it."""

    def __init__(self) -> None:
        """Begin with nothing to tell."""
        self._tiers: list[dict[bytes, tuple[Rumour, int]]] = []
        self._tier_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._tier_of)

    def __repr__(self) -> str:
        return f"<RumourQueue {[len(tier) for tier in self._tiers]}>"

    def add(self, rumour: Rumour) -> None:
        """Tell this from now on, instead of whatever was told about the same subject."""
        self.drop(rumour.subject)
        self._place(0, rumour, len(msgspec.msgpack.encode(rumour)))

    def drop(self, subject: bytes) -> None:
        """Tell nothing about this subject any more."""
        tier = self._tier_of.pop(subject, None)
        if tier is None:
            return
        del self._tiers[tier][subject]
        if not self._tiers[tier]:
            self._tiers[tier] = {}  # a dict that was large stays slow to walk after it is emptied

    def take(self, budget_bytes: int, limit: int) -> list[Rumour]:
        """Return rumours for one message and count them as told once more.

        Args:
            budget_bytes: Room for their encodings together.
            limit: A rumour that has been told this often is dropped.
        """
        taken: list[tuple[int, Rumour, int]] = []
        if not self._tier_of:
            return []
        for told, rumour, size_bytes in self._in_order():
            if budget_bytes < SMALLEST_RUMOUR_BYTES:
                break
            if size_bytes <= budget_bytes:
                taken.append((told, rumour, size_bytes))
                budget_bytes -= size_bytes
        for told, rumour, size_bytes in reversed(taken):
            self.drop(rumour.subject)
            if told + 1 < limit:
                self._place(told + 1, rumour, size_bytes)
        return [rumour for _, rumour, _ in taken]

    def _in_order(self) -> Iterator[tuple[int, Rumour, int]]:
        for told, tier in enumerate(self._tiers):
            for rumour, size_bytes in reversed(tier.values()):
                yield told, rumour, size_bytes

    def _place(self, tier: int, rumour: Rumour, size_bytes: int) -> None:
        while len(self._tiers) <= tier:
            self._tiers.append({})
        self._tiers[tier][rumour.subject] = (rumour, size_bytes)
        self._tier_of[rumour.subject] = tier
