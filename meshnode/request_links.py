"""Which members this node's requests go to, so that membership keeps links to them.

In a large mesh a node has links to a few neighbours only (`membership.linking`), and a request goes to a
replica over a link that is up. So a gateway wants links to the replicas of each model version: to all
of them while they are few, to `MAX_CANDIDATES_SCORED` of many, since routing looks at no more. Which of
many depends on the gateway, so that together the gateways use all. A node that fetches a model's files
wants links to those that have them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_CANDIDATES_SCORED
from meshnode.membership.linking import neighbours

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from meshnode.types import NodeId


class RequestLinks:
    """Members by what they are needed for; bounded by the tables that the needs come from."""

    def __init__(self, me: NodeId) -> None:
        """Need nobody yet."""
        self._me: Final = me
        self._needed: dict[Hashable, frozenset[NodeId]] = {}
        self._counts: Counter[NodeId] = Counter()
        self._has_changed = False

    def __repr__(self) -> str:
        return f"<RequestLinks to {len(self._counts)} members for {len(self._needed)} needs>"

    def put(self, need: Hashable, members: Iterable[NodeId]) -> None:
        """Need these members for something, instead of those of before; nobody ends the need."""
        others = sorted(set(members) - {self._me})
        if len(others) > MAX_CANDIDATES_SCORED:
            others = neighbours(self._me, others, MAX_CANDIDATES_SCORED)
        before, after = self._needed.pop(need, frozenset()), frozenset(others)
        self._has_changed = self._has_changed or before != after
        if after:
            self._needed[need] = after
        for member in after - before:
            self._counts[member] += 1
        for member in before - after:
            self._counts[member] -= 1
            if not self._counts[member]:
                del self._counts[member]

    def has_changed(self) -> bool:
        """Whether any need has changed since this was asked last."""
        changed, self._has_changed = self._has_changed, False
        return changed

    @property
    def members(self) -> frozenset[NodeId]:
        """All that are needed."""
        return frozenset(self._counts)
