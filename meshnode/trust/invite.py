"""Invites: the one line `mesh1...` that a person copies to a new device.

An invite is a delegated signing key. It holds the mesh's id, by which the joiner recognises the
mesh; the seed of a key that the inviter made and signed for this purpose alone (the grant); and
addresses to try. The joiner never sends the seed: it signs its own public key with it, and only
after the mesh has proven itself. Whoever sees the line can join, so it is treated as a secret: no
`repr` shows it.

The line is `mesh1`, then base64url of a MessagePack array and four bytes of SHA-256 over it, which
tell a line that lost its end on the way from one that was never an invite. The `1` is the format's
version. The grant is rebuilt from its fields instead of carried as bytes, which keeps the line
near 260 characters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from meshnode.errors import Forbidden, InvalidRequest, InviteError
from meshnode.limits import (
    MAX_CHAIN_RECORDS,
    MAX_HOST_LENGTH,
    MAX_INVITE_LENGTH,
    MAX_INVITE_SEEDS,
    MAX_INVITE_TTL_S,
    MAX_INVITE_USES,
    MAX_NAME_LENGTH,
)
from meshnode.trust.identity import SEED_BYTES, Identity
from meshnode.trust.records import (
    MESH_ID_BYTES,
    InviteGrant,
    MeshId,
    PublicKey,
    Signature,
    SignedRecord,
    WallSeconds,
    is_signed_by_issuer,
    prove_invite,
    rfc3339,
    sign_record,
)
from meshnode.types import Address, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.trust.chain import VerifiedMember

_PREFIX: Final = "mesh1"
_CHECKSUM_BYTES: Final = 4

_DAMAGED: Final = "the invite is damaged: copy the whole line that `meshnode invite` printed, from mesh1 to its end"


class _Seed(msgspec.Struct, array_like=True, frozen=True):
    """An address: an IP address as its 4 or 16 bytes, or the UTF-8 of a host name."""

    host: bytes
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    is_name: bool

    @classmethod
    def of(cls, address: Address) -> _Seed:
        try:
            packed = ipaddress.ip_address(address.host).packed
        except ValueError:
            packed = b""
        if packed and "%" not in address.host:  # a scope has no place in the packed form
            return cls(packed, address.port, is_name=False)
        return cls(address.host.encode(), address.port, is_name=True)

    def address(self) -> Address:
        host = self.host.decode() if self.is_name else str(ipaddress.ip_address(self.host))
        return Address(host, self.port)


class _Line(msgspec.Struct, array_like=True, frozen=True):
    """The content of the line."""

    mesh_id: Annotated[bytes, msgspec.Meta(min_length=MESH_ID_BYTES, max_length=MESH_ID_BYTES)]
    seed: Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]
    role: Role
    issued_at_s: WallSeconds
    expires_at_s: WallSeconds
    issuer: PublicKey
    signature: Signature
    seeds: Annotated[tuple[_Seed, ...], msgspec.Meta(max_length=MAX_INVITE_SEEDS)]
    uses: int = 0
    region: str = ""


@dataclass(frozen=True, slots=True)
class Invite:
    """A usable invite.

    Attributes:
        mesh_id: The mesh that it leads to; the mesh must prove that it is this one.
        grant: What it allows, as its inviter signed it.
        signed_grant: The same with the signature, as the joiner shows it.
        seeds: Addresses to try, in order.
    """

    mesh_id: MeshId
    grant: InviteGrant
    signed_grant: SignedRecord = field(repr=False)
    seeds: tuple[Address, ...]
    _seed: bytes = field(repr=False)

    @property
    def expires_at(self) -> str:
        """When it expires, in RFC 3339."""
        return rfc3339(self.grant.expires_at_s)

    def prove(self, public_key: bytes) -> bytes:
        """Sign a joiner's public key with the invite's key."""
        return prove_invite(Identity(self._seed), self.mesh_id, public_key)

    def require_current(self, now_wall_s: float) -> None:
        """Check the invite against this node's clock before trying to join; the witness's counts.

        Raises:
            InviteError: if it has expired, with when.
        """
        if now_wall_s > self.grant.expires_at_s:
            raise InviteError(
                f"the invite expired at {self.expires_at}; ask for a new one on a member of the "
                "mesh: meshnode invite"
            )

    def to_text(self) -> str:
        """Return the line to copy. It is a secret."""
        grant = self.grant
        line = _Line(
            bytes.fromhex(self.mesh_id), self._seed, grant.role, grant.issued_at_s,
            grant.expires_at_s, grant.issuer, self.signed_grant.signature,
            tuple(_Seed.of(address) for address in self.seeds), grant.uses, grant.region,
        )  # fmt: skip
        body = msgspec.msgpack.encode(line)
        return _PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Read an invite as a person pasted it: white space anywhere is ignored.

        Raises:
            InviteError: says what is wrong with it and what to do. Expiry is not checked here.
        """
        body = _body(text)
        try:
            line = msgspec.msgpack.decode(body, type=_Line)
            seeds = tuple(seed.address() for seed in line.seeds)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InviteError(f"the invite is not valid ({error}); ask for a new one") from error
        mesh_id = MeshId(line.mesh_id.hex())
        grant = InviteGrant(
            Identity(line.seed).public_key, line.role, line.issued_at_s, line.expires_at_s,
            line.issuer, line.uses, line.region,
        )  # fmt: skip
        signed = SignedRecord(msgspec.msgpack.encode(grant), line.signature)
        if not is_signed_by_issuer(signed, grant, mesh_id):
            raise InviteError("the invite is not signed by its inviter; ask for a new one")
        return cls(mesh_id, grant, signed, seeds, line.seed)


def create_invite(
    *,
    identity: Identity,
    member: VerifiedMember,
    role: Role,
    ttl_s: float,
    now_wall_s: float,
    seeds: Sequence[Address],
    random_seed: bytes,
    uses: int = 0,
    region: str = "",
) -> Invite:
    """Make an invite to this node's mesh.

    Args:
        identity: The inviting node.
        member: The same node as a member.
        role: What the joiner will be; at most the inviter's own role.
        ttl_s: How long it may be used, in seconds, up to `MAX_INVITE_TTL_S`.
        now_wall_s: Wall time.
        seeds: Addresses of members; the first `MAX_INVITE_SEEDS` are kept.
        random_seed: 32 random bytes, the invite's secret.
        uses: How many devices it admits, up to `MAX_INVITE_USES`; 0 for any number.
        region: Where a joiner says it is whose owner names no other; may be empty.

    Raises:
        Forbidden: if this node's role does not allow it.
        InvalidRequest: if the time, an address, the uses or the region is out of range.
    """
    if not member.role.allows(Role.OPERATOR):
        raise Forbidden("this node is a plain member and may not invite; ask an operator's node")
    if not member.role.allows(role):
        raise Forbidden(f"this node is an {member.role} and cannot invite an {role}")
    if len(member.records) + 2 > MAX_CHAIN_RECORDS:
        raise Forbidden(
            "too many invitations lie between this node and the mesh's founder; make the invite on "
            "the founder or on a node that it invited"
        )
    if not 1 <= ttl_s <= MAX_INVITE_TTL_S:
        raise InvalidRequest(
            f"an invite lasts from 1 second to {MAX_INVITE_TTL_S // 86400} days, not {ttl_s:g} seconds"
        )
    if not 0 <= uses <= MAX_INVITE_USES:
        raise InvalidRequest(
            f"an invite admits 1 to {MAX_INVITE_USES} devices, or any number (0), not {uses}"
        )
    if len(region) > MAX_NAME_LENGTH:
        raise InvalidRequest(
            f"a region has at most {MAX_NAME_LENGTH} characters, not {len(region)}"
        )
    kept = tuple(Address(*seed) for seed in seeds[:MAX_INVITE_SEEDS])
    for address in kept:
        if not 0 < len(address.host) <= MAX_HOST_LENGTH:
            raise InvalidRequest(f"{address.host[:64]!r} is not a host that an invite can name")
    issued_at_s = int(now_wall_s)
    grant = InviteGrant(
        Identity(random_seed).public_key, role, issued_at_s, issued_at_s + int(ttl_s),
        identity.public_key, uses, region,
    )  # fmt: skip
    signed = sign_record(identity, member.mesh_id, grant)
    return Invite(member.mesh_id, grant, signed, kept, random_seed)


def _body(text: str) -> bytes:
    """Return what the line encodes, its prefix and checksum checked and removed."""
    line = "".join(text[:MAX_INVITE_LENGTH].split())
    if not line.startswith(_PREFIX):
        if line.startswith("mesh") and line[4:5].isdigit():
            raise InviteError("the invite was made by a newer meshnode; update meshnode here")
        raise InviteError(
            "this is not an invite: an invite is one line that begins with mesh1; print one on a "
            "member of the mesh: meshnode invite"
        )
    encoded = line[len(_PREFIX) :]
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InviteError(_DAMAGED) from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # The last character of base64 may have bits that decoding drops: compare the text as well.
    canonical = base64.urlsafe_b64encode(data).decode().rstrip("=")
    if checksum != _checksum(body) or canonical != encoded:
        raise InviteError(_DAMAGED)
    return body


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + body).digest()[:_CHECKSUM_BYTES]
