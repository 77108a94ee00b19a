"""The part of `/mesh/v1` that empties nodes.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/nodes/NODE/drain` | GET | infer | whether a node is drained, and how far that is |
| `/mesh/v1/nodes/NODE/drain` | PUT `{"force"?, "wait_s"?}` | admin | 202, the same; a second time changes only what differs |
| `/mesh/v1/nodes/NODE/drain` | DELETE | admin | the same: the node serves again |

NODE is a name or an id. The answer is `{"node", "name", "state"}`, where `state` is `serving`, `draining`, `drained` or
`away`; unless it is `serving`, also `"since"`, `"force"`, `"wait_s"`, what is left (`"requests"`, `"sequences"`, `"jobs"`,
`"replicas"`), the sentences `"waits_for"` and `"blocked_by"`, and `"ended"`: sequences that took longer than they may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import DRAIN_WAIT_S, MAX_DRAIN_WAIT_S
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.protocols.caller import Caller


class DrainControl(Protocol):
    """What the daemon lets the gateway read and change of drains."""

    def view(self, name: str) -> dict[str, Any]:
        """Describe whether a node is to be emptied, and how far it is."""
        ...

    def begin(self, name: str, *, force: bool, wait_s: int, caller: Caller) -> dict[str, Any]:
        """Have a node emptied; Forbidden where this node's role does not allow it."""
        ...

    def undo(self, name: str, caller: Caller) -> dict[str, Any]:
        """Take a drain back; Forbidden where this node's role does not allow it."""
        ...


class _Drain(msgspec.Struct, forbid_unknown_fields=True):
    force: bool = False
    wait_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_DRAIN_WAIT_S)] = DRAIN_WAIT_S


def show(drains: DrainControl, node: str) -> HttpResponse:
    """Answer `GET /mesh/v1/nodes/NODE/drain`."""
    return json_response(drains.view(node))


def begin(drains: DrainControl, http: HttpRequest, node: str) -> HttpResponse:
    """Answer `PUT /mesh/v1/nodes/NODE/drain`."""
    wish = decode_body(http, _Drain)
    return json_response(
        drains.begin(node, force=wish.force, wait_s=wish.wait_s, caller=http.caller), 202
    )


def undo(drains: DrainControl, http: HttpRequest, node: str) -> HttpResponse:
    """Answer `DELETE /mesh/v1/nodes/NODE/drain`."""
    return json_response(drains.undo(node, http.caller))


_TAG = "Mesh"
_PATH = "/mesh/v1/nodes/{node}/drain"
_OBJECT = {"type": "object"}
OPERATIONS = (
    Operation("GET", _PATH, "How far a node is drained", _TAG, answer=_OBJECT),
    Operation("PUT", _PATH, "Drain a node", _TAG, Scope.ADMIN, _Drain, _OBJECT, 202),
    Operation("DELETE", _PATH, "Take a drain back", _TAG, Scope.ADMIN, answer=_OBJECT),
)
"""What the routes do whose answers are here."""
