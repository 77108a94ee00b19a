"""Which nodes keep a job: rendezvous hashing over the nodes that live.

Every node ranks the same nodes alike for the same job, so any of them knows whom to ask, and when a node goes, only what
it kept moves. Jobs share `_SLOTS` rankings, which are kept until the members change: ten thousand jobs on a thousand
nodes would else cost ten million hashes whenever one node comes or goes.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshnode.types import NodeId

_SLOTS: Final = 1024
_KEPT: Final = 16  # first places of a slot that are kept
_PERSON: Final = b"mesh-jobs"


class Ranking:
    """Ranks the live nodes for jobs."""

    def __init__(self, live: Collection[NodeId]) -> None:
        """Rank these nodes."""
        self.live = frozenset(live)
        self._first: dict[int, list[NodeId]] = {}

    def __repr__(self) -> str:
        return f"<Ranking of {len(self.live)} nodes>"

    def first(self, job_id: str, count: int, without: Collection[NodeId] = ()) -> list[NodeId]:
        """Return the nodes that rank first for a job.

        Args:
            job_id: The job.
            count: How many at most.
            without: Nodes that are passed over.
        """
        slot = int.from_bytes(_hash(job_id.encode()), "big") % _SLOTS
        known = self._first.get(slot)
        if known is None:
            known = self._first[slot] = heapq.nsmallest(_KEPT, self.live, key=_order(slot))
        found = [node for node in known if node not in without]
        if len(found) < count and len(known) < len(self.live):
            left = [node for node in self.live if node not in without]
            found = heapq.nsmallest(count, left, key=_order(slot))
        return found[:count]


class _order:  # noqa: N801 - a key function with an argument
    def __init__(self, slot: int) -> None:
        self._slot = slot.to_bytes(2, "big")

    def __call__(self, node: NodeId) -> tuple[bytes, str]:
        return _hash(self._slot + node.encode()), node


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8, person=_PERSON).digest()
