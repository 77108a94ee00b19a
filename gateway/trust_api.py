"""The part of `/mesh/v1` about who belongs to the mesh, and who may do what in it.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/invites` | POST `{"ttl_s"?, "uses"?, "role"?, "region"?}` | admin | `{"invite", "invite_id", "expires_at", "addresses", "role", "uses", "region"}` |
| `/mesh/v1/trust` | GET | admin | `{"mesh", "node", "role", "sealed", "members", "revoked"}` |
| `/mesh/v1/evictions` | POST `{"node", "reason"?, "with_invited"?}` | admin | what was done, and to whom; `"changed"` is false if it was evicted before |
| `/mesh/v1/roles/NODE` | PUT `{"role"}` | admin | `{"node", "name", "role", "changed"}` |
| `/mesh/v1/trust/rotate` | POST | owner | 202 `{"node", "former"}`; the daemon goes on as the new node |
| `/mesh/v1/trust/seal` | POST | owner | `{"mesh", "changed"}` |

`uses` 0 is any number. Evictions and roles need the node of an admin; where this node is none, it has one
make the change, which takes an API key that was made on an admin's node: whoever may only make keys must
not make one that may do more than they.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import (
    MAX_EVICTION_REASON_LENGTH,
    MAX_INVITE_TTL_S,
    MAX_INVITE_USES,
    MAX_NAME_LENGTH,
)
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.caller import Caller

DEFAULT_INVITE_TTL_S = 24 * 3600
"""Long enough to walk to the next device, short enough to forget."""


class TrustControl(Protocol):
    """What the daemon lets the gateway read and change of who belongs to the mesh.

    All are made by this node, and raise Forbidden where its role, or that of the node that made the
    caller's key, does not allow it.
    """

    def create_invite(
        self, ttl_s: int, role: Role, uses: int, region: str, caller: Caller
    ) -> dict[str, Any]:
        """Make an invite."""
        ...

    def view(self) -> dict[str, Any]:
        """Describe the members and who is none any more."""
        ...

    def evict(
        self, node: str, reason: str, *, with_invited: bool, caller: Caller
    ) -> dict[str, Any]:
        """Take a node out of the mesh for ever."""
        ...

    def set_role(self, node: str, role: Role, caller: Caller) -> dict[str, Any]:
        """Give a node another role."""
        ...

    def rotate(self) -> dict[str, Any]:
        """Give this node another key; the daemon goes on with it once this is answered."""
        ...

    def seal(self) -> dict[str, Any]:
        """Put the mesh's root key out of use for ever."""
        ...


_Node = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH)]


class _Invite(msgspec.Struct, forbid_unknown_fields=True):
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_INVITE_TTL_S)] = DEFAULT_INVITE_TTL_S
    uses: Annotated[int, msgspec.Meta(ge=0, le=MAX_INVITE_USES)] = 0
    role: Role = Role.OPERATOR
    region: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)] = ""


class _Eviction(msgspec.Struct, forbid_unknown_fields=True):
    node: _Node
    reason: Annotated[str, msgspec.Meta(max_length=MAX_EVICTION_REASON_LENGTH)] = ""
    with_invited: bool = False


class _Role(msgspec.Struct, forbid_unknown_fields=True):
    role: Role


async def create_invite(control: MeshControl, http: HttpRequest, request_id: str) -> HttpResponse:
    """Answer `POST /mesh/v1/invites`."""
    wish = decode_body(http, _Invite)
    # Nobody invites to more than they are.
    needed = Role.ADMIN if wish.role is Role.ADMIN else Role.OPERATOR
    elsewhere = control.forward(needed, http, request_id)
    if elsewhere is not None:
        return await elsewhere
    made = control.trust.create_invite(wish.ttl_s, wish.role, wish.uses, wish.region, http.caller)
    return json_response(made)


def evict(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/evictions`."""
    wish = decode_body(http, _Eviction)
    done = control.trust.evict(
        wish.node, wish.reason, with_invited=wish.with_invited, caller=http.caller
    )
    return json_response(done)


def set_role(control: MeshControl, http: HttpRequest, node: str) -> HttpResponse:
    """Answer `PUT /mesh/v1/roles/NODE`."""
    return json_response(control.trust.set_role(node, decode_body(http, _Role).role, http.caller))


_TAG = "Trust"
_OBJECT = {"type": "object"}
OPERATIONS = (
    Operation("POST", "/mesh/v1/invites", "Invite a device", _TAG, Scope.ADMIN, _Invite, _OBJECT),
    Operation("POST", "/mesh/v1/evictions", "Evict a node", _TAG, Scope.ADMIN, _Eviction, _OBJECT),
    Operation("PUT", "/mesh/v1/roles/{node}", "Give a node a role", _TAG, Scope.ADMIN, _Role, _OBJECT),
    Operation("GET", "/mesh/v1/trust", "Members, and who is none any more", _TAG, Scope.ADMIN, answer=_OBJECT),
    Operation(
        "POST", "/mesh/v1/trust/rotate", "Give this node another key", _TAG, Scope.OWNER,
        answer=_OBJECT, status=202,
    ),
    Operation("POST", "/mesh/v1/trust/seal", "Put the root key out of use", _TAG, Scope.OWNER, answer=_OBJECT),
)  # fmt: skip
"""What the routes do whose answers are here."""
