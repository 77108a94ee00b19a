"""The routes of the Open Inference Protocol (KServe v2) with Triton's extensions, over REST.

| path | method | |
|---|---|---|
| `/v2`, `/v2/health/live`, `/v2/health/ready` | GET | the server |
| `/v2/models/M[/versions/N]`, `…/ready`, `…/config`, `…/stats` | GET | a model |
| `…/infer`, `…/generate`, `…/generate_stream` | POST | run it |
| `/v2/models/stats` | GET | statistics of all models |
| `/v2/repository/…` | POST | `oip_repository_routes` |
| `/v2/logging`, `/v2/trace/setting`, `/v2/models/M/trace/setting` | GET | settings; POST is refused (501) |
| `/v2/cudasharedmemory/…/status`, `…/unregister` | GET, POST | there is none; register is refused (501) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from meshnode import __version__
from meshnode.gateway.matching import (
    Match,
    Methods,
    RouteSet,
    get,
    infer,
    segment,
    unknown,
    version_of,
)
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import (
    oip,
    oip_config,
    oip_generate,
    oip_metadata,
    oip_settings,
    oip_statistics,
)
from meshnode.gateway.protocols import oip_schemas as schemas
from meshnode.gateway.protocols.caller import LOCAL
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.inference import Inference
    from meshnode.gateway.matching import Handler, Reply
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.dialect import Dialect
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.gateway.shared_memory import SharedMemory

_MODELS: Final = "/v2/models/"
_CUDA: Final = "/v2/cudasharedmemory"
_TAG: Final = "Open Inference Protocol"
_DIALECTS: Final[dict[str, Dialect]] = {
    "infer": oip,
    "generate": oip_generate.ONCE,
    "generate_stream": oip_generate.STREAM,
}
"""What answers each way of running a model, by the end of the path."""


class OipRoutes:
    """Answers below `/v2`, but for the model repository.

    Attributes:
        shared_memory: What programs on this machine may hand over by name; None as long as nothing may be.
    """

    def __init__(self, inference: Inference, control: MeshControl) -> None:
        """Answer from these."""
        self._inference = inference
        self._control = control
        self.shared_memory: SharedMemory | None = None

    def __repr__(self) -> str:
        return f"<OipRoutes of {self._inference!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        control = self._control
        fixed: dict[str, Methods] = {
            "/v2": {"GET": Match(lambda http, _id: self._server(http), Scope.INFER)},
            "/v2/health/live": get(oip_metadata.live),
            "/v2/health/ready": get(lambda: oip_metadata.ready(control.ready()[0])),
            "/v2/models/stats": get(lambda: self._statistics(None, None)),
            "/v2/logging": _settings(oip_settings.logging, _refuse_logging),
            "/v2/trace/setting": _settings(oip_settings.trace_setting, _refuse_tracing),
            f"{_CUDA}/status": get(oip_settings.no_regions),
            f"{_CUDA}/unregister": _FORGET_CUDA,
        }
        below = {_MODELS: self._model, f"{_CUDA}/region/": _cuda_region}
        return RouteSet(fixed, below, frozenset({_MODELS}), _OPERATIONS)

    def _server(self, http: HttpRequest) -> HttpResponse:
        memory = self.shared_memory
        shares = memory is not None and memory.is_on and http.caller == LOCAL
        return oip_metadata.server_metadata(
            __version__, ("system_shared_memory",) if shares else ()
        )

    def _model(self, path: str) -> Methods:
        name, _, rest = path.removeprefix(_MODELS).partition("/")
        name = segment(name, path)
        version: int | None = None
        if rest.startswith("versions/"):
            text, _, rest = rest.removeprefix("versions/").partition("/")
            version = version_of(text)
        dialect = _DIALECTS.get(rest)
        if dialect is not None:
            return infer(
                lambda http, request_id: self._infer(dialect, name, version, http, request_id)
            )
        control = self._control
        match rest:
            case "":
                return get(lambda: self._metadata(name, version))
            case "ready":
                return get(
                    lambda: oip_metadata.model_ready(name, control.is_model_ready(name, version))
                )
            case "config":
                return get(lambda: oip_config.model_config(control.manifest(name, version)))
            case "stats":
                return get(lambda: self._statistics(name, version))
            case "trace/setting" if version is None:
                return _settings(lambda: self._trace_setting(name), _refuse_tracing)
        raise unknown(path)

    def _infer(
        self, dialect: Dialect, model: str, version: int | None, http: HttpRequest, request_id: str
    ) -> Reply:
        memory = self.shared_memory
        if memory is not None and memory.is_on and dialect is oip and http.caller == LOCAL:
            from meshnode.gateway.protocols.oip_shared import REGION, SharedOip

            if REGION.encode() in bytes(http.body):
                dialect = SharedOip(memory)
        return self._inference.answer(dialect, Asked(http, model, version), request_id)

    def _metadata(self, name: str, version: int | None) -> HttpResponse:
        control = self._control
        manifest = control.manifest(name, version)
        if version is not None:
            return oip_metadata.model_metadata(manifest, ())
        versions = control.model(name)["versions"]
        ready = [number for number in versions if control.is_model_ready(name, number)]
        return oip_metadata.model_metadata(manifest, ready)

    async def _statistics(self, name: str | None, version: int | None) -> HttpResponse:
        return oip_statistics.model_statistics(await self._control.statistics(name, version))

    def _trace_setting(self, name: str) -> HttpResponse:
        self._control.model(name)  # ModelNotFound for one that is unknown
        return oip_settings.trace_setting()


def _settings(read: Callable[[], HttpResponse], refuse: Handler) -> Methods:
    return {**get(read), "POST": Match(refuse, Scope.INFER)}


def _refuse_logging(_http: HttpRequest, _request_id: str) -> NoReturn:
    raise oip_settings.not_set_here(
        "what a node logs", "its owner sets it: meshnode join --log-level"
    )


def _refuse_tracing(_http: HttpRequest, _request_id: str) -> NoReturn:
    raise oip_settings.not_set_here(
        "tracing", "send a W3C traceparent header along, and every node logs the request under it"
    )


def _cuda_region(path: str) -> Methods:
    """Return what is done with a region of CUDA shared memory: none is registered here, and none can be."""
    match path.removeprefix(f"{_CUDA}/region/").rpartition("/")[2]:
        case "status":
            return get(oip_settings.no_regions)
        case "register":
            return {"POST": Match(_refuse_cuda, Scope.INFER, takes_body=True)}
        case "unregister":
            return _FORGET_CUDA
    raise unknown(path)


def _refuse_cuda(_http: HttpRequest, _request_id: str) -> NoReturn:
    raise HttpRefusal(
        501,
        "CUDA shared memory cannot be registered: models are served by any node of the mesh, which cannot reach this "
        "machine's GPU; use system shared memory, or send tensors as binary data",
    )


_FORGET_CUDA: Final[Methods] = {
    "POST": Match(lambda _http, _id: oip_settings.forgotten(), Scope.INFER)
}
"""Triton's examples begin with this, whether or not anything was registered."""


_BODIES: Final = ("application/json", "application/octet-stream")
_BINARY: Final = (
    ("Inference-Header-Content-Length", "The length of the JSON, where tensors' bytes follow it."),
)


def _model_operations() -> tuple[Operation, ...]:
    """Return what is done with a model; each also with `/versions/{version}` in the path."""
    found = []
    for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        of = " version" if at.endswith("}/versions/{version}") else ""
        found += [
            Operation("GET", at, f"A model{of}'s metadata", _TAG, answer=schemas.METADATA),
            Operation(
                "GET", f"{at}/ready", f"Whether a model{of} is ready", _TAG, answer=schemas.READY, also=(400,)
            ),
            Operation("GET", f"{at}/config", f"A model{of}'s configuration", _TAG, answer=schemas.CONFIG),
            Operation(
                "GET", f"{at}/stats", f"What a model{of} has done on the whole mesh", _TAG, answer=schemas.STATISTICS
            ),
            Operation(
                "POST", f"{at}/infer", f"Run a model{of}", _TAG, body=schemas.INFER, answer=schemas.INFERRED,
                body_types=_BODIES, media_types=_BODIES, headers=_BINARY, infers=True,
            ),
            Operation(
                "POST", f"{at}/generate", f"Run a model{of} on plain JSON", _TAG, body=schemas.GENERATE,
                answer=schemas.GENERATED, infers=True,
            ),
            Operation(
                "POST", f"{at}/generate_stream", f"Run a model{of} on plain JSON, with an event per part of its answer",
                _TAG, body=schemas.GENERATE, media_types=("text/event-stream",), infers=True,
            ),
        ]  # fmt: skip
    return tuple(found)


_OPERATIONS: Final = (
    Operation("GET", "/v2", "Server metadata", _TAG, answer=schemas.SERVER),
    Operation("GET", "/v2/health/live", "Whether the gateway answers", _TAG, answer=schemas.LIVE),
    Operation(
        "GET",
        "/v2/health/ready",
        "Whether the node is in its mesh",
        _TAG,
        answer=schemas.SERVER_READY,
        also=(400,),
    ),
    Operation(
        "GET",
        "/v2/models/stats",
        "What all models have done on the whole mesh",
        _TAG,
        answer=schemas.STATISTICS,
    ),
    *_model_operations(),
    Operation("GET", "/v2/logging", "What the node logs", _TAG, answer=schemas.OBJECT),
    Operation("POST", "/v2/logging", "Refused: a node's owner sets it", _TAG, errors=(501,)),
    Operation("GET", "/v2/trace/setting", "How requests are traced", _TAG, answer=schemas.OBJECT),
    Operation("POST", "/v2/trace/setting", "Refused: use traceparent", _TAG, errors=(501,)),
    Operation(
        "GET",
        "/v2/models/{model}/trace/setting",
        "How a model's requests are traced",
        _TAG,
        answer=schemas.OBJECT,
    ),
    Operation(
        "POST",
        "/v2/models/{model}/trace/setting",
        "Refused: use traceparent",
        _TAG,
        errors=(501,),
    ),
    Operation("GET", f"{_CUDA}/status", "The GPU memory that is registered: none", _TAG),
    Operation("POST", f"{_CUDA}/unregister", "Forget all GPU memory: there is none", _TAG),
    Operation("GET", f"{_CUDA}/region/{{region}}/status", "One region of GPU memory: none", _TAG),
    Operation(
        "POST",
        f"{_CUDA}/region/{{region}}/register",
        "Refused: a mesh has no GPU memory in common with its clients",
        _TAG,
        errors=(501,),
    ),
    Operation(
        "POST", f"{_CUDA}/region/{{region}}/unregister", "Forget GPU memory: there is none", _TAG
    ),
)
