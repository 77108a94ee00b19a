"""Who is in the mesh, by whose word, and who is not any more: rows for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.trust.reasons import Reason
from meshnode.trust.records import Promotion, Succession
from meshnode.trust.statements import Revocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.standing import InviteUses, Standing, Stated
    from meshnode.types import NodeId, Role

FOUNDED: Final = "founded"
INVITED: Final = "invited"
ROTATED: Final = "rotated"


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member in good standing.

    Attributes:
        node: Its id.
        role: What it may do now.
        admitted_at_s: Wall time of its admission, by the clock of who admitted it.
        how: `founded`, `invited` or `rotated` (it succeeded to another key of the same device).
        by: Who invited it, or whose place it took; None for the founder.
        witness: Who admitted it; None for the founder and after a rotation.
        invite_id: Names the invite as `meshnode invite` did; empty without one.
        uses: How many devices that invite admits; 0 for any number, or without one.
        used: How many it has admitted, as far as this node knows; 0 if they are not counted.
    """

    node: NodeId
    role: Role
    admitted_at_s: int
    how: str
    by: NodeId | None = None
    witness: NodeId | None = None
    invite_id: str = ""
    uses: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class RevokedRow:
    """A key that is out.

    Attributes:
        node: Its node's id; that of the root key after `meshnode trust seal`.
        reason: `Reason.REVOKED` or `Reason.USED_UP`.
        why: A sentence for people, safe to print.
        by: Who evicted it; its own id after a rotation; None if it was not a node that did.
        at_wall_s: When, in seconds since 1970, by that node's clock.
        successor: The node that took its place after a rotation, else None.
        is_root: Whether it is the mesh's root key.
        name: What it was called, if whoever evicted it said so; else empty. Safe to print.
    """

    node: NodeId
    reason: Reason
    why: str
    by: NodeId | None
    at_wall_s: int
    successor: NodeId | None = None
    is_root: bool = False
    name: str = ""


def member_rows(members: Iterable[VerifiedMember], uses: InviteUses) -> list[MemberRow]:
    """Describe members in good standing, the earliest admission first."""
    rows = [_member_row(member, uses) for member in members]
    return sorted(rows, key=lambda row: (row.admitted_at_s, row.node))


def _member_row(member: VerifiedMember, uses: InviteUses) -> MemberRow:
    own = (step for step in reversed(member.steps) if step.subject == member.node_id)
    step = next(step for step in own if step.kind is not Promotion)
    if step.kind is Succession:
        return MemberRow(member.node_id, member.role, step.at_s, ROTATED, by=step.by)
    if step.grant is None:
        return MemberRow(member.node_id, member.role, step.at_s, FOUNDED)
    return MemberRow(
        node=member.node_id,
        role=member.role,
        admitted_at_s=step.at_s,
        how=INVITED,
        by=step.grant.inviter,
        witness=step.by,
        invite_id=step.grant.invite_id,
        uses=step.grant.uses,
        used=len(uses.users(step.grant)),
    )


def revoked_rows(
    standing: Standing,
    members: Iterable[VerifiedMember],
    others: Iterable[VerifiedMember],
    is_root: Callable[[Stated], bool],
) -> list[RevokedRow]:
    """Describe the keys that are out, the latest first.

    Args:
        standing: Says which.
        members: Those in good standing: some have taken the place of a key that is out.
        others: Chains of nodes that are not among them.
        is_root: Whether a revocation is about the mesh's root key.
    """
    successors = {
        step.by: step.subject
        for member in members
        for step in member.steps
        if step.kind is Succession
    }
    rows = {}
    for stated in standing.revoked():
        said = stated.statement
        assert isinstance(said, Revocation)
        root = is_root(stated)
        rows[said.node_id] = RevokedRow(
            node=said.node_id,
            reason=Reason.REVOKED,
            why=_printable(said.reason),
            by=stated.author,
            at_wall_s=said.at_wall_s,
            successor=successors.get(said.node_id),
            is_root=root,
            name=_printable(said.name),
        )
    for member in others:
        flaw = standing.flaw(member)
        if flaw is None or member.node_id in rows:
            continue
        by = flaw.by
        rows[member.node_id] = RevokedRow(
            node=member.node_id,
            reason=flaw.reason,
            why=flaw.sentence,
            by=by.author if by is not None else None,
            at_wall_s=by.order[0] // 1000 if by is not None else member.issued_at_s,
        )
    return sorted(rows.values(), key=lambda row: (-row.at_wall_s, row.node))


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)
