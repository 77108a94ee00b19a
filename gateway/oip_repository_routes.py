"""The routes of Triton's model repository extension: index, load and unload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.gateway.matching import Match, Methods, RouteSet, segment, unknown
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import oip_repository
from meshnode.gateway.protocols import oip_schemas as schemas
from meshnode.gateway.protocols.http import json_response
from meshnode.gateway.repository_api import Load
from meshnode.models.manifest import check_model_name
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshnode.gateway.matching import Reply
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.gateway.repository_api import IndexEntry

_INDEX: Final = "/v2/repository/index"
_MODELS: Final = "/v2/repository/models/"
_TAG: Final = "Open Inference Protocol"


class OipRepositoryRoutes:
    """Answers below `/v2/repository`."""

    def __init__(self, control: MeshControl) -> None:
        """Answer from a daemon."""
        self._control = control

    def __repr__(self) -> str:
        return "<OipRepositoryRoutes>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        index = Match(lambda http, _id: self._index(http), Scope.INFER, takes_body=True)
        return RouteSet({_INDEX: {"POST": index}}, {_MODELS: self._model}, operations=_OPERATIONS)

    def _index(self, http: HttpRequest) -> HttpResponse:
        only_ready = oip_repository.decode_index(http)
        entries = self._control.repository.index(only_ready=only_ready)
        return json_response([_entry(each) for each in entries])

    def _model(self, path: str) -> Methods:
        name, _, action = path.removeprefix(_MODELS).partition("/")
        name = segment(name, path)
        match action:
            case "load":
                return {"POST": shared_change(self._control, lambda http: self._load(http, name))}
            case "unload":
                return {"POST": shared_change(self._control, lambda http: self._unload(http, name))}
        raise unknown(path)

    async def _load(self, http: HttpRequest, name: str) -> HttpResponse:
        wish = oip_repository.decode_load(http)
        load = Load(wish.config, wish.files, replicas=wish.replicas)
        await self._control.repository.load(check_model_name(name), load, http.caller)
        return json_response({})

    async def _unload(self, http: HttpRequest, name: str) -> HttpResponse:
        dependents = oip_repository.decode_unload(http)
        await self._control.repository.unload(
            check_model_name(name), http.caller, dependents=dependents
        )
        return json_response({})


def shared_change(
    control: MeshControl, handler: Callable[[HttpRequest], Awaitable[HttpResponse]]
) -> Match:
    """Return a change of what the mesh serves: made here if this node's role allows it, else at another node."""

    def answer(http: HttpRequest, request_id: str) -> Reply:
        elsewhere = control.forward(Role.OPERATOR, http, request_id)
        return handler(http) if elsewhere is None else elsewhere

    return Match(answer, Scope.DEPLOY, takes_body=True, forwarded=True)


def _entry(entry: IndexEntry) -> dict[str, Any]:
    told = {"name": entry.name, "version": str(entry.version), "state": entry.state}
    return {**told, "reason": entry.reason} if entry.reason else told


_OPERATIONS: Final = (
    Operation(
        "POST", _INDEX, "The models of the mesh's repository, and where they stand", _TAG,
        body=schemas.INDEX, answer=schemas.INDEXED, body_optional=True,
    ),
    Operation(
        "POST", f"{_MODELS}{{model}}/load", "Deploy a model, and wait until it is ready", _TAG, Scope.DEPLOY,
        schemas.LOAD, schemas.OBJECT, errors=(409, 500, 507), body_optional=True,
    ),
    Operation(
        "POST", f"{_MODELS}{{model}}/unload", "Withdraw a model's deployment, keeping its versions in the store", _TAG,
        Scope.DEPLOY, schemas.UNLOAD, schemas.OBJECT, errors=(500, 501), body_optional=True,
    ),
)  # fmt: skip
