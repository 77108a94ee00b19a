"""Signed statements about who belongs to a mesh, and their bytes.

A mesh is a trust root: an Ed25519 key made by its founder. The mesh's id is that key's
fingerprint, and all trust comes down from it through four kinds of record:

| record | says | signed by |
|---|---|---|
| `Admission` | this public key is a member with this role | the root key (the founder), or a member that witnessed the join |
| `InviteGrant` | whoever holds this invite key may join with this role until then | the inviting member's node key |
| `Succession` | this public key takes my place | the node key that it replaces |
| `Promotion` | this member has this role | an admin's node key |

An admission through an invite also carries the invite key's own signature over the joiner's public
key: a witness cannot admit anyone who does not hold the invite. A succession carries the new key's
signature for the same reason. What takes something away, an eviction or a lower role, is no record
of a chain, which its holder could leave out: it is a statement of `meshnode.trust.statements`.

What is signed is `context + mesh id + payload`. The context differs for each kind of statement, so
that a signature made for one purpose can serve no other; the mesh id keeps a record from being
carried into another mesh. The payload travels as the bytes that were signed and is never encoded
anew, so that fields which a newer version appends stay covered by the signature.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Final, NewType

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_INVITE_USES, MAX_NAME_LENGTH, MAX_RECORD_WALL_S
from meshnode.trust.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from meshnode.trust.reasons import Reason, TrustError
from meshnode.types import NodeId, Role, node_id_of
from meshnode.wire.codec import Codec, Message

MeshId = NewType("MeshId", str)
"""32 hexadecimal characters: the first 128 bits of SHA-256 over the mesh's root public key."""

MESH_ID_BYTES: Final = 16
"""A joiner's whole trust rests on the id: finding another key with the same one takes 2^128 tries."""


PublicKey = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
WallSeconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORD_WALL_S)]
"""Seconds since 1970 in UTC. Whole numbers: what is signed has one encoding and no NaN."""


class Admission(Message, frozen=True, tag=65):
    """`subject` is a member with this role.

    `issuer` is the root key, or the node key of the member that witnessed the join; only in the
    latter case `invite_key` and `invite_proof` name the invite used and prove that it was held.
    """

    subject: PublicKey
    role: Role
    issued_at_s: WallSeconds
    issuer: PublicKey
    invite_key: bytes = b""
    invite_proof: bytes = b""


class InviteGrant(Message, frozen=True, tag=66):
    """Whoever holds the secret half of `invite_key` may join with this role, within these times.

    `uses` is how many devices it admits, 0 for any number (`meshnode.trust.standing`); `region` is
    where a joiner says it is whose owner names no other.
    """

    invite_key: PublicKey
    role: Role
    issued_at_s: WallSeconds
    expires_at_s: WallSeconds
    issuer: PublicKey
    uses: Annotated[int, msgspec.Meta(ge=0, le=MAX_INVITE_USES)] = 0
    region: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)] = ""

    @property
    def invite_id(self) -> str:
        """16 hexadecimal characters that name the invite in tables and logs."""
        return hashlib.sha256(self.invite_key).hexdigest()[:16]

    @property
    def inviter(self) -> NodeId:
        """The node that made the invite."""
        return node_id_of(self.issuer)


class Succession(Message, frozen=True, tag=69):
    """`subject`, a new key, is the member that `issuer` was; `proof` is the new key's signature.

    The issuer is then revoked by its own hand, but that is another statement.
    """

    subject: PublicKey
    issued_at_s: WallSeconds
    issuer: PublicKey
    proof: Signature


class Promotion(Message, frozen=True, tag=70):
    """`subject`, a member already, has this role too, by the word of `issuer`, an admin."""

    subject: PublicKey
    role: Role
    issued_at_s: WallSeconds
    issuer: PublicKey


Record = Admission | InviteGrant | Succession | Promotion


class SignedRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record's bytes as they were signed, and the signature."""

    payload: bytes
    signature: Signature


_RECORDS = Codec(Admission, InviteGrant, Succession, Promotion)
_CONTEXTS: Final[dict[type[Record], bytes]] = {
    Admission: b"meshnode admission 1\0",
    InviteGrant: b"meshnode invite grant 1\0",
    Succession: b"meshnode succession 1\0",
    Promotion: b"meshnode promotion 1\0",
}
_PROOF_CONTEXT: Final = b"meshnode invite proof 1\0"
_SUCCESSOR_CONTEXT: Final = b"meshnode successor 1\0"


def mesh_id_of(root_public_key: bytes) -> MeshId:
    """Return the id of the mesh whose root key this is."""
    return MeshId(hashlib.sha256(root_public_key).digest()[:MESH_ID_BYTES].hex())


def sign_record(signer: Identity, mesh_id: MeshId, record: Record) -> SignedRecord:
    """Encode and sign a record for one mesh."""
    payload = _RECORDS.encode(record)
    return SignedRecord(payload, signer.sign(_signed_bytes(type(record), mesh_id, payload)))


def read_record(signed: SignedRecord) -> Record:
    """Decode a record without checking its signature.

    Raises:
        TrustError: if the payload is no record that this version knows.
    """
    try:
        record: Record | None = _RECORDS.decode(signed.payload)
    except ProtocolError as error:
        raise TrustError(Reason.CHAIN, f"a record is damaged: {error}") from error
    if record is None:
        # Skipping it, as with other messages, might skip a restriction.
        raise TrustError(Reason.CHAIN, "a record is of a kind that needs a newer meshnode")
    return record


def is_signed_by_issuer(signed: SignedRecord, record: Record, mesh_id: MeshId) -> bool:
    """Whether the signature is that of the record's issuer, for this mesh."""
    return verify(
        record.issuer, _signed_bytes(type(record), mesh_id, signed.payload), signed.signature
    )


def prove_invite(invite_key: Identity, mesh_id: MeshId, subject: bytes) -> bytes:
    """Sign a joiner's public key with the invite key: it holds the invite and wants to join."""
    return invite_key.sign(_PROOF_CONTEXT + mesh_id.encode() + subject)


def is_invite_proof(invite_key: bytes, mesh_id: MeshId, subject: bytes, proof: bytes) -> bool:
    """Whether `proof` was made by `prove_invite` for this subject and mesh."""
    return verify(invite_key, _PROOF_CONTEXT + mesh_id.encode() + subject, proof)


def prove_successor(successor: Identity, mesh_id: MeshId, former: bytes) -> bytes:
    """Sign the public key that a new key replaces with the new key: it agrees, and is held."""
    return successor.sign(_SUCCESSOR_CONTEXT + mesh_id.encode() + former)


def is_successor_proof(successor: bytes, mesh_id: MeshId, former: bytes, proof: bytes) -> bool:
    """Whether `proof` was made by `prove_successor` for this mesh and former key."""
    return verify(successor, _SUCCESSOR_CONTEXT + mesh_id.encode() + former, proof)


def rfc3339(wall_s: float) -> str:
    """Write a wall time (seconds since 1970) as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(int(wall_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _signed_bytes(kind: type[Record], mesh_id: MeshId, payload: bytes) -> bytes:
    return _CONTEXTS[kind] + mesh_id.encode() + payload
