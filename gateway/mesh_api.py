"""`/mesh/v1`: what the command line, the client library and people ask of a node.

| path | method | answer |
|---|---|---|
| `/mesh/v1/status` | GET | this node |
| `/mesh/v1/nodes` | GET | all members |
| `/mesh/v1/models`, `/mesh/v1/models/NAME` | GET | models and their replicas |
| `/mesh/v1/invites` | POST `{"ttl_s"}` | `{"invite", "expires_at"}` |
| `/mesh/v1/deployments` | POST `{"path", "name", "replicas", "on"}` | 202 and the model's entry |
| `/mesh/v1/deployments/NAME` | DELETE | `{"name"}` |

The last three change something: they work on the control socket only, whose file permissions are
its owner's. Errors are `{"error": sentence, "code": word}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import msgspec

from meshnode.config import MAX_INVITE_TTL_S, MAX_MEMBERS
from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.models.manifest import Manifest, check_model_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.metrics import Metric

_DAY_S = 24 * 3600
DEFAULT_INVITE_TTL_S = _DAY_S
"""Long enough to walk to the next device, short enough to forget."""


class MeshControl(Protocol):
    """What the daemon lets the gateway read and change.

    Entries are plain dictionaries in the shapes that docs/ documents for `/mesh/v1`.
    """

    def status(self) -> dict[str, Any]:
        """Describe this node."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Say whether the node is in its mesh, and if not, why."""
        ...

    def nodes(self) -> list[dict[str, Any]]:
        """Describe all members, this node included."""
        ...

    def models(self) -> list[dict[str, Any]]:
        """Describe all models of the mesh."""
        ...

    def model(self, name: str) -> dict[str, Any]:
        """Describe one model; ModelNotFound if there is none."""
        ...

    def manifest(self, model: str, version: int | None) -> Manifest:
        """Return what a model version (None: the newest ready) is; ModelNotFound if none is."""
        ...

    def is_model_ready(self, model: str, version: int | None) -> bool:
        """Say whether any replica is ready; ModelNotFound if there is no such model."""
        ...

    def create_invite(self, ttl_s: int) -> dict[str, Any]:
        """Make an invite that is valid for so many seconds."""
        ...

    async def deploy(
        self, path: str, name: str | None, replicas: int | None, on: list[str]
    ) -> dict[str, Any]:
        """Deploy a model from a path of this machine and return its entry."""
        ...

    async def undeploy(self, name: str) -> None:
        """Withdraw a deployment; ModelNotFound if there is none."""
        ...

    def metrics(self) -> Iterable[Metric]:
        """Everything that other parts of the node count."""
        ...


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Invite(msgspec.Struct):
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_INVITE_TTL_S)] = DEFAULT_INVITE_TTL_S


class _Deployment(msgspec.Struct):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]  # PATH_MAX of Linux
    name: _Name | None = None
    replicas: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)] | None = None
    on: Annotated[list[_Name], msgspec.Meta(max_length=MAX_MEMBERS)] = []


_T = TypeVar("_T")


def _decode(http: HttpRequest, kind: type[_T]) -> _T:
    """Read a JSON body, which may be empty where every field has a default."""
    try:
        return msgspec.json.decode(http.body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not what {http.path} takes: {error}") from error


def create_invite(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/invites`."""
    return json_response(control.create_invite(_decode(http, _Invite).ttl_s))


async def deploy(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/deployments`: accepted, not yet ready."""
    wish = _decode(http, _Deployment)
    if "\0" in wish.path:
        raise InvalidRequest("the path contains a NUL character")
    if wish.name is not None:
        check_model_name(wish.name)
    return json_response(await control.deploy(wish.path, wish.name, wish.replicas, wish.on), 202)


async def undeploy(control: MeshControl, name: str) -> HttpResponse:
    """Answer `DELETE /mesh/v1/deployments/NAME`."""
    await control.undeploy(check_model_name(name))
    return json_response({"name": name})
