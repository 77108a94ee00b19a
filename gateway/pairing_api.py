"""The part of `/mesh/v1` about devices that ask this node to be admitted without an invite.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/join-requests` | GET | admin | a list of `{"node", "name", "address", "asked_at", "expires_at"}` |
| `/mesh/v1/join-requests/approve` | POST `{"code", "role"?, "region"?}` | admin | the admitted device as in the list, with `"role"`, `"region"` and `"invite_id"` |

A device waits at the node that it asked, so these are answered by this node and never by another. The
list does not show the codes: they are read on the device, which is how it is known to be the right one.
Admitting as an `admin` takes the node of an admin. Too many wrong codes are refused (429).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from meshnode.errors import ConfigError, InvalidRequest
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import MAX_NAME_LENGTH
from meshnode.options import check_name
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.caller import Caller


class JoinDeskControl(Protocol):
    """What the daemon lets the gateway see and approve of the devices that ask."""

    def view(self) -> list[dict[str, Any]]:
        """Describe the devices that wait."""
        ...

    def approve(self, text: str, role: Role, region: str, caller: Caller) -> dict[str, Any]:
        """Admit the device whose code this is."""
        ...


class _Approval(msgspec.Struct, forbid_unknown_fields=True):
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    role: Role = Role.OPERATOR
    region: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)] = ""


def approve(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/join-requests/approve`."""
    wish = decode_body(http, _Approval)
    if wish.region:
        try:
            check_name("the region", wish.region)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
    return json_response(control.join_desk.approve(wish.code, wish.role, wish.region, http.caller))


_TAG = "Trust"
OPERATIONS = (
    Operation(
        "GET", "/mesh/v1/join-requests", "Devices that ask to join", _TAG, Scope.ADMIN,
        answer={"type": "array"},
    ),
    Operation(
        "POST", "/mesh/v1/join-requests/approve", "Admit a device", _TAG, Scope.ADMIN, _Approval,
        {"type": "object"},
    ),
)  # fmt: skip
"""What the routes do whose answers are here."""
