"""What a witness checks before it admits a device, beyond what the chain will show by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.trust.chain import VerifiedMember, admit
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import InviteGrant, SignedRecord, read_record
from meshnode.types import node_id_of

if TYPE_CHECKING:
    from meshnode.trust.identity import Identity
    from meshnode.trust.roster import Roster


def admit_joiner(
    roster: Roster,
    *,
    witness: Identity,
    witness_member: VerifiedMember,
    grant: SignedRecord,
    subject: bytes,
    invite_proof: bytes,
    now_wall_s: float,
) -> VerifiedMember:
    """Admit a device through an invite, if its inviter and the invite itself are still good for it.

    Args:
        roster: The members that the witness knows, and who is out; read here, never changed.
        witness: The admitting node, which has checked that the joiner holds `subject`.
        witness_member: The same node as a member.
        grant: The invite's grant as the joiner showed it.
        subject: The joiner's public key.
        invite_proof: The invite key's signature over it.
        now_wall_s: The witness's wall time.

    Returns:
        The joiner with its new chain; with the one that it has, if this invite admitted it before.

    Raises:
        TrustError: says why not; nobody was admitted.
    """
    invite = read_record(grant)
    if not isinstance(invite, InviteGrant):
        raise TrustError(Reason.CHAIN, "what the joiner shows is not an invite")
    joiner = node_id_of(subject)
    known = roster.get(joiner)
    if known is not None and known.invite_key == invite.invite_key:
        return known  # the Welcome was lost: joining again changes nothing
    if known is None and roster.is_full:
        raise TrustError(Reason.FULL, "the mesh has no room for another member")
    if roster.standing.revocation(invite.inviter) is not None:
        raise TrustError(
            Reason.REVOKED,
            f"the invite was made by {invite.inviter}, which is out of the mesh; ask for a new one",
        )
    if roster.standing.is_used_up(invite, joiner):
        raise TrustError(
            Reason.USED_UP,
            f"the invite was for {invite.uses} {'device' if invite.uses == 1 else 'devices'} and is "
            "used up; ask for a new one: meshnode invite",
        )
    inviter = roster.get(invite.inviter)
    if inviter is None:
        raise TrustError(
            Reason.UNKNOWN_INVITER,
            f"the invite was made by {invite.inviter}, which this node does not know; try again in "
            "a moment, or join through the node that made it",
        )
    admitted = admit(
        witness=witness, witness_member=witness_member, inviter=inviter, grant=grant,
        subject=subject, invite_proof=invite_proof, now_wall_s=now_wall_s,
    )  # fmt: skip
    return roster.require_good(admitted)
