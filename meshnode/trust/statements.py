"""Statements that take something away: who is out of the mesh, and who has another role now.

They are values of the desired state, which every node has: one that is told of a chain alone could
be told of an old one. Each is signed by its author as all entries there, and never deleted.

| value | says | written by |
|---|---|---|
| `Revocation` | this key is out, for ever | an admin; or the key itself, when another one takes its place |
| `RoleChange` | this member has this role from now on | an admin |

What the key was trusted with before should stay good, but nothing that is made with it later, however
it is dated: who can sign can write any date. So both name whom the key has let in or promoted until
then, *as far as the author knows*, and to which role: `keeps`. An admission or a promotion by that
key for anybody else, or to more, does not count. In the same way they name what it has written to
the desired state, deployments and API keys: `entries`. Of what they do not name, nothing counts.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import (
    ENTRY_DIGEST_BYTES,
    MAX_CHAIN_BYTES,
    MAX_ENTRIES_KEPT,
    MAX_EVICTION_REASON_LENGTH,
    MAX_NAME_LENGTH,
    MAX_STATEMENTS_PER_AUTHOR,
)
from meshnode.trust.records import PublicKey, WallSeconds
from meshnode.types import NodeId, Role, node_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_ID_BYTES: Final = 20
_ROLES: Final = tuple(Role)

_Kept = Annotated[bytes, msgspec.Meta(min_length=_ID_BYTES + 1, max_length=_ID_BYTES + 1)]
"""A NodeId's 160 bits and the index of a role: a mesh of two thousand still fits one value."""

_Digest = Annotated[
    bytes, msgspec.Meta(min_length=ENTRY_DIGEST_BYTES, max_length=ENTRY_DIGEST_BYTES)
]
_Digests = Annotated[tuple[_Digest, ...], msgspec.Meta(max_length=MAX_ENTRIES_KEPT)]


class Revocation(msgspec.Struct, array_like=True, frozen=True):
    """A key is out.

    Attributes:
        subject: The public key of a node, or of the mesh's root (`meshnode trust seal`).
        reason: Why, for people; may be empty.
        at_wall_s: When, by the author's clock.
        kept: Who was let in by the key and stays, packed; see `keeps`.
        name: What the node was called, for people: nobody else remembers it; may be empty.
        parts: Of how many statements this is one that count as one; see `meshnode.trust.parts`.
        entries: The digests of the key's entries in the desired state that stay.
    """

    subject: PublicKey
    reason: Annotated[str, msgspec.Meta(max_length=MAX_EVICTION_REASON_LENGTH)]
    at_wall_s: WallSeconds
    kept: tuple[_Kept, ...] = ()
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)] = ""
    parts: Annotated[int, msgspec.Meta(ge=1, le=MAX_STATEMENTS_PER_AUTHOR)] = 1
    entries: _Digests = ()

    @property
    def node_id(self) -> NodeId:
        """Whom it is about."""
        return node_id_of(self.subject)


class RoleChange(msgspec.Struct, array_like=True, frozen=True):
    """A member has another role.

    Attributes:
        subject: Its public key.
        role: Its role from now on.
        chain: For a higher role than its admission gave it: a chain with a promotion; else empty.
        kept: Whom it invited and who stays, where it may not invite any more; see `keeps`.
        parts: Of how many statements this is one that count as one; see `meshnode.trust.parts`.
        entries: For a lower role: the digests of its entries in the desired state that stay.
    """

    subject: PublicKey
    role: Role
    chain: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN_BYTES)] = b""
    kept: tuple[_Kept, ...] = ()
    parts: Annotated[int, msgspec.Meta(ge=1, le=MAX_STATEMENTS_PER_AUTHOR)] = 1
    entries: _Digests = ()

    @property
    def node_id(self) -> NodeId:
        """Whom it is about."""
        return node_id_of(self.subject)


Statement = Revocation | RoleChange

_REVOCATIONS: Final = msgspec.msgpack.Decoder(Revocation)
_ROLE_CHANGES: Final = msgspec.msgpack.Decoder(RoleChange)


def pack_keeps(keeps: Mapping[NodeId, Role]) -> tuple[bytes, ...]:
    """Return who stays, and up to which role, as statements carry it."""
    return tuple(
        base64.b32decode(node.upper()) + bytes([_ROLES.index(role)])
        for node, role in sorted(keeps.items())
    )


def keeps(statement: Statement) -> dict[NodeId, Role]:
    """Return who stays, and up to which role; a role of a later version is read as none."""
    return {
        NodeId(base64.b32encode(kept[:_ID_BYTES]).decode().lower()): _ROLES[kept[_ID_BYTES]]
        for kept in statement.kept
        if kept[_ID_BYTES] < len(_ROLES)
    }


def read_revocation(value: bytes) -> Revocation:
    """Read a value of the desired state.

    Raises:
        ProtocolError: if the bytes are no revocation.
    """
    try:
        return _REVOCATIONS.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a value is not a revocation: {error}") from error


def read_role_change(value: bytes) -> RoleChange:
    """Read a value of the desired state.

    Raises:
        ProtocolError: if the bytes are no change of a role.
    """
    try:
        return _ROLE_CHANGES.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a value is not a change of a role: {error}") from error


def write_statement(statement: Statement) -> bytes:
    """Return the value to put into the desired state."""
    return msgspec.msgpack.encode(statement)
