"""Who has let in whom, of all chains that are known: what an eviction has to name.

Made once for each eviction, in one pass over the chains: a node may have let in thousands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.trust.chain import highest
from meshnode.trust.records import Succession

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.trust.chain import VerifiedMember
    from meshnode.types import NodeId, Role


class Descent:
    """Whom each node, and the root, has let in, invited or promoted."""

    def __init__(self, chains: Iterable[VerifiedMember]) -> None:
        """Read these chains, of members and of former ones."""
        self._given: dict[NodeId, dict[NodeId, Role]] = {}
        self._invited: dict[NodeId, dict[NodeId, None]] = {}
        for step in dict.fromkeys(step for each in chains for step in each.steps):
            inviter = step.by if step.grant is None else step.grant.inviter
            for giver in {step.by, inviter}:
                given = self._given.setdefault(giver, {})
                known = given.get(step.subject, step.role)
                given[step.subject] = highest((known, step.role))
            if step.grant is not None or step.kind is Succession:
                self._invited.setdefault(inviter, {})[step.subject] = None

    def __repr__(self) -> str:
        return f"<Descent from {len(self._given)} keys>"

    def given(self, giver: NodeId) -> dict[NodeId, Role]:
        """Return whom a node, or the root, has let in or promoted, each with the highest such role."""
        return dict(self._given.get(giver, {}))

    def invited(self, node: NodeId, but: NodeId) -> dict[NodeId, None]:
        """Return a node, those that it invited, those that these invited, and so on.

        Args:
            node: Where to begin; it comes first.
            but: Who is left out, and with it those that it invited alone.
        """
        found = {node: None}
        waiting = [node]
        for each in waiting:  # grows as it goes
            for other in self._invited.get(each, ()):
                if other not in found and other != but:
                    found[other] = None
                    waiting.append(other)
        return found
