"""Who may say what: records and entries of the desired state, checked against admissions.

The cores of membership and state are given these checks as functions, since they know nothing of
trust. What is learnt on the way, a member's verified chain, goes into the roster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.state.admission import admission_key, is_admission
from meshnode.trust.chain import VerifiedMember, verify_chain
from meshnode.trust.identity import verify
from meshnode.trust.reasons import TrustError
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership.messages import MemberRecord
    from meshnode.state.desired_messages import Entry
    from meshnode.trust.roster import Roster


class Authority:
    """Checks what nodes of one mesh say, by the admissions in a roster."""

    def __init__(self, roster: Roster, on_learnt: Callable[[], None]) -> None:
        """`on_learnt` is called after a member was added, or its chain has changed."""
        self._roster = roster
        self._on_learnt = on_learnt

    def __repr__(self) -> str:
        return f"<Authority over {self._roster!r}>"

    def learn(self, member: VerifiedMember) -> str | None:
        """Take a verified member into the roster; return why not, or None."""
        known = self._roster.get(member.node_id)
        if known is not None and known.chain == member.chain:
            return None
        try:
            kept = self._roster.add(member.chain)
        except TrustError as error:
            return str(error)
        if known is None or kept.chain != known.chain:  # of two chains the roster keeps one
            self._on_learnt()
        return None

    def verify_record(self, record: MemberRecord) -> str | None:
        """Say why a member's record is refused, or None: its admission and signature hold."""
        flaw = self._verify_chain(record.node_id, record.chain)
        if flaw is None and not verify(record.public_key, record.signed_bytes(), record.signature):
            return "its signature does not fit"
        return flaw

    def verify_entry(self, entry: Entry) -> str | None:
        """Say why an entry of the desired state is refused, or None.

        An admission brings the author that it is about, and nothing else; anything else needs an
        author who is known and whose role allows it. (Which API keys may be deleted depends on
        their values, which `meshnode.node` knows.)
        """
        author_id = NodeId(entry.author)
        if is_admission(entry.key):
            if entry.key != admission_key(author_id) or entry.deleted:
                return "an admission is written by its own node, and stays"
            flaw = self._verify_chain(author_id, entry.value)
            if flaw is not None:
                return flaw
        author = self._roster.get(author_id)
        if author is None:
            return "its author is not known here"
        if not author.role.allows(Role.OPERATOR):
            return f"its author is a {author.role} and may not change the mesh"
        if not verify(author.public_key, entry.signed_bytes, entry.signature):
            return "its signature does not fit"
        return None

    def _verify_chain(self, node: NodeId, chain: bytes) -> str | None:
        known = self._roster.get(node)
        if known is not None and known.chain == chain:
            return None
        try:
            member = verify_chain(chain, self._roster.mesh_id)
        except TrustError as error:
            return f"its admission does not hold: {error}"
        if member.node_id != node:
            return "its admission is another node's"
        return self.learn(member)
