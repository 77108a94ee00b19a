"""What follows when the mesh excludes a member: this node parts with it.

The desired state brings the statements, `meshnode.authority` says who is out by them, and here each
such node is shown why (the statements, over the link that is still up), its link is closed, and
membership, owner state and desired state forget it or what it may not have written. If it is this
node itself, its driver is told once the others are, and ends it.

| emitted | subject | detail |
|---|---|---|
| `trust.revoked` | a node that was a member here | why |
| `trust.evicted` | this node | why |
| `trust.uncounted` | a node | why its admission could not be counted for its invite |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.effects import Effect, Emit
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from meshnode.authority import Authority
    from meshnode.drafts import Drafts
    from meshnode.membership.core import Membership
    from meshnode.state.desired import DesiredState
    from meshnode.types import NodeId


class Evictions:
    """Keeps one node's cores in step with who is in good standing."""

    def __init__(
        self,
        me: NodeId,
        *,
        authority: Authority,
        membership: Membership,
        desired: DesiredState,
        drafts: Drafts,
    ) -> None:
        """Keep these in step."""
        self._me = me
        self._authority = authority
        self._membership = membership
        self._desired = desired
        self._drafts = drafts
        self._is_told = False

    def __repr__(self) -> str:
        return f"<Evictions at {self._me[:8]}>"

    def heed(self, now: float) -> list[Effect]:
        """Do what follows from the statements that were taken in since.

        Args:
            now: Monotonic seconds.
        """
        if not self._authority.is_unsettled:
            return []
        effects: list[Effect] = []
        for member, flaw in self._authority.settle():
            node = member.node_id
            if node != self._me:
                # Before its link is closed: it would else look for a reason at every other node.
                effects += self._desired.tell(node, self._authority.evidence_keys(member))
                effects += self._membership.evict(node, flaw.sentence, now)
                effects.append(Emit("trust.revoked", node, flaw.sentence))
        effects += self._desired.revalidate(self._authority.counts)
        return [*effects, *self._own(now)]

    def _own(self, now: float) -> list[Effect]:
        """Show this node's present chain to others; once it is out, say so."""
        own = self._authority.roster.get(self._me)
        if own is not None:
            return self._membership.update_record(now, chain=own.chain)
        return self.check_own()

    def check_own(self) -> list[Effect]:
        """Say that this node is out, if it is and that was not said before."""
        flaw = self._authority.why_out(self._me)
        if flaw is None or self._is_told:
            return []
        self._is_told = True
        return [Emit("trust.evicted", self._me, flaw.sentence)]

    def count(self, node: NodeId, wall_s: float) -> list[Effect]:
        """State the admission of a node by an invite for a number of devices, if nobody has yet.

        Its witness does so as soon as it is linked, and so does whoever meets it before that is
        known: an invite must be used up everywhere.

        Args:
            node: A member; this one too.
            wall_s: Seconds since the Unix epoch.
        """
        try:
            draft = self._drafts.admission(node, wall_s)
        except MeshError as error:
            return [Emit("trust.uncounted", node, str(error))]
        durable = [] if draft.persist is None else [draft.persist]
        return [*durable, *self._desired.commit(draft)]
