"""Who the vectors are about: the same seeds give the same keys, chains and signatures for ever."""

from __future__ import annotations

import hashlib

from meshnode.trust.chain import VerifiedMember, admit, found_mesh, promote, succeed
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.types import Address, Role

NOW_WALL_S = 1_800_000_000


def seed_of(name: str) -> bytes:
    """Return the 32 bytes that a name stands for."""
    return hashlib.sha256(b"meshnode vectors: " + name.encode()).digest()


FOUNDER = Identity(seed_of("founder"))
WITNESS = Identity(seed_of("witness"))
JOINER = Identity(seed_of("joiner"))
SUCCESSOR = Identity(seed_of("successor of the joiner"))

FOUNDED: VerifiedMember = found_mesh(FOUNDER, seed_of("root"), NOW_WALL_S)
MESH_ID = FOUNDED.mesh_id

SEEDS = (
    Address("192.0.2.7", 8471),
    Address("2001:db8::7", 8471),
    Address("hub.example.org", 443),
)


def invite_of(
    inviter: Identity, member: VerifiedMember, role: Role, uses: int = 0, region: str = ""
) -> Invite:
    """Return an invite whose secret follows from all that it says."""
    return create_invite(
        identity=inviter, member=member, role=role, ttl_s=86_400, now_wall_s=NOW_WALL_S, seeds=SEEDS,
        random_seed=seed_of(f"invite by {inviter.node_id} as {role}"), uses=uses, region=region,
    )  # fmt: skip


WITNESS_INVITE = invite_of(FOUNDER, FOUNDED, Role.OPERATOR)
JOINER_INVITE = invite_of(FOUNDER, FOUNDED, Role.MEMBER, uses=3, region="workshop")

WITNESS_MEMBER: VerifiedMember = admit(
    witness=FOUNDER, witness_member=FOUNDED, inviter=FOUNDED, grant=WITNESS_INVITE.signed_grant,
    subject=WITNESS.public_key, invite_proof=WITNESS_INVITE.prove(WITNESS.public_key),
    now_wall_s=NOW_WALL_S + 10,
)  # fmt: skip
JOINER_MEMBER: VerifiedMember = admit(
    witness=WITNESS, witness_member=WITNESS_MEMBER, inviter=FOUNDED, grant=JOINER_INVITE.signed_grant,
    subject=JOINER.public_key, invite_proof=JOINER_INVITE.prove(JOINER.public_key),
    now_wall_s=NOW_WALL_S + 20,
)  # fmt: skip
PROMOTED: VerifiedMember = promote(
    admin=FOUNDER, admin_member=FOUNDED, member=JOINER_MEMBER, role=Role.ADMIN,
    now_wall_s=NOW_WALL_S + 30,
)  # fmt: skip
SUCCEEDED: VerifiedMember = succeed(
    former=JOINER, member=PROMOTED, successor=SUCCESSOR, now_wall_s=NOW_WALL_S + 40
)
