"""The routes of Triton's system shared memory: status, register and unregister, for programs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import Forbidden
from meshnode.gateway.matching import Match, Methods, RouteSet, unknown
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import oip_schemas as schemas
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.caller import LOCAL
from meshnode.gateway.protocols.http import json_response
from meshnode.gateway.shared_memory import NOT_HERE, OFF
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.gateway.shared_memory import SharedMemory

_BASE: Final = "/v2/systemsharedmemory"
_TAG: Final = "Open Inference Protocol"


class _Registration(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class OipSharedMemoryRoutes:
    """Answers below `/v2/systemsharedmemory`."""

    def __init__(self, memory: SharedMemory) -> None:
        """Answer from these regions."""
        self._memory = memory

    def __repr__(self) -> str:
        return f"<OipSharedMemoryRoutes of {self._memory!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed = {
            f"{_BASE}/status": {"GET": Match(lambda http, _id: self._status(http), Scope.INFER)},
            f"{_BASE}/unregister": {
                "POST": Match(lambda http, _id: self._unregister(http), Scope.INFER)
            },
        }
        return RouteSet(fixed, {f"{_BASE}/region/": self._region}, operations=_OPERATIONS)

    def _region(self, path: str) -> Methods:
        name, _, action = path.removeprefix(f"{_BASE}/region/").rpartition("/")
        if not name:
            raise unknown(path)
        match action:
            case "status":
                return {"GET": Match(lambda http, _id: self._status(http, name), Scope.INFER)}
            case "register":
                register = Match(
                    lambda http, _id: self._register(http, name), Scope.INFER, takes_body=True
                )
                return {"POST": register}
            case "unregister":
                return {"POST": Match(lambda http, _id: self._unregister(http, name), Scope.INFER)}
        raise unknown(path)

    def _status(self, http: HttpRequest, name: str = "") -> HttpResponse:
        self._require_here(http)
        return json_response([_told(each) for each in self._memory.status(name)])

    def _register(self, http: HttpRequest, name: str) -> HttpResponse:
        self._require_here(http)
        wish = decode_body(http, _Registration)
        self._memory.register(name, wish.key, wish.offset, wish.byte_size)
        return json_response({})

    def _unregister(self, http: HttpRequest, name: str = "") -> HttpResponse:
        self._require_here(http)
        self._memory.unregister(name)
        return json_response({})

    def _require_here(self, http: HttpRequest) -> None:
        if not self._memory.is_on:
            raise Forbidden(OFF)
        if http.caller != LOCAL:
            raise Forbidden(NOT_HERE)


def _told(region: Any) -> dict[str, Any]:
    return {
        "name": region.name,
        "key": region.key,
        "offset": region.offset,
        "byte_size": region.size_bytes,
    }


_OPERATIONS: Final = (
    Operation(
        "GET", f"{_BASE}/status", "The shared memory that is registered", _TAG, answer=schemas.REGIONS
    ),
    Operation("POST", f"{_BASE}/unregister", "Forget all shared memory", _TAG, answer=schemas.OBJECT),
    Operation(
        "GET", f"{_BASE}/region/{{region}}/status", "One registered region", _TAG, answer=schemas.REGIONS
    ),
    Operation(
        "POST", f"{_BASE}/region/{{region}}/register",
        "Let requests name a part of a shared memory object of this machine", _TAG,
        body=_Registration, answer=schemas.OBJECT,
    ),
    Operation(
        "POST", f"{_BASE}/region/{{region}}/unregister", "Forget a region", _TAG, answer=schemas.OBJECT
    ),
)  # fmt: skip
