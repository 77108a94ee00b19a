"""What the client's calls about members and roles return; see `meshnode.client.results`."""

from __future__ import annotations

import msgspec


class TrustedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A member of the mesh, and how it became one.

    Attributes:
        id: Its id.
        name: Its name; its id where the gateway knows no more.
        role: `member`, `operator` or `admin`.
        state: `alive`, `suspect`, `dead`, `left`, or `unknown` if nothing was heard of it for long.
        how: `founded`, `invited` or `rotated`.
        by: Id of the node that invited it or whose place it took; None for the founder.
        by_name: That node's name.
        witness: Id of the node that admitted it, or None.
        at: When it was admitted, in RFC 3339.
        invite_id: Which invite it used, or empty.
        uses: How many devices that invite admits; 0 for any number.
        used: How many it has admitted.
    """

    id: str
    name: str
    role: str
    state: str = "unknown"
    how: str = ""
    by: str | None = None
    by_name: str | None = None
    witness: str | None = None
    at: str = ""
    invite_id: str = ""
    uses: int = 0
    used: int = 0


class RevokedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is no member any more, and never will be under this id.

    Attributes:
        id: Its id.
        name: Its name, or its id where the gateway knows no more.
        reason: `revoked`, or `used_up` where an invite had admitted too many.
        why: The same as a sentence.
        by: Id of the node that evicted it, or None.
        by_name: That node's name.
        at: When, in RFC 3339.
        successor: Id of the node that it goes on as, where its key was rotated.
    """

    id: str
    name: str
    reason: str
    why: str = ""
    by: str | None = None
    by_name: str | None = None
    at: str = ""
    successor: str | None = None


class TrustInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who belongs to a mesh.

    Attributes:
        mesh: The mesh's fingerprint.
        node: Id of the node that answered.
        role: Its role.
        sealed: Whether the root key is out of use.
        members: The members.
        revoked: Who is none any more.
    """

    mesh: str
    node: str
    role: str
    sealed: bool = False
    members: tuple[TrustedNode, ...] = ()
    revoked: tuple[RevokedNode, ...] = ()


class NamedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node by id and name."""

    id: str
    name: str


class NamedKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key by id, name and scopes."""

    id: str
    name: str
    scopes: tuple[str, ...] = ()


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an eviction.

    Attributes:
        node: Id of the node that was to go.
        name: Its name.
        reason: Why, as it was given.
        changed: False if it had been evicted before.
        sealed: Whether the mesh's root key, which was that node's, went out of use with it.
        evicted: Everybody who is no member any more because of this call.
        keys: API keys made by those that are valid still.
    """

    node: str
    name: str
    reason: str = ""
    changed: bool = True
    sealed: bool = False
    evicted: tuple[NamedNode, ...] = ()
    keys: tuple[NamedKey, ...] = ()


class NodeRole(msgspec.Struct, frozen=True, kw_only=True):
    """A node's role after it was set; `changed` is false if it had that role before."""

    node: str
    name: str
    role: str
    changed: bool = True


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A device that asks a node to admit it without an invite. Its code is on its own screen only.

    Attributes:
        node: Its id.
        name: What it calls itself; anybody may call themselves anything.
        address: Where it asks from.
        asked_at: In RFC 3339.
        expires_at: Until when it waits.
    """

    node: str
    name: str
    address: str = ""
    asked_at: str = ""
    expires_at: str = ""


class Approval(JoinRequest, frozen=True, kw_only=True):
    """A device that was admitted by its code.

    Attributes:
        role: What it is now: `member`, `operator` or `admin`.
        region: Where it is unless it says otherwise, or empty.
        invite_id: Names its admission in `meshnode trust show`.
    """

    role: str
    region: str = ""
    invite_id: str = ""
