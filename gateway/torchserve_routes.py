"""The routes of TorchServe: inference, and management of what is served.

| path | method | scope | |
|---|---|---|---|
| `/ping` | GET | infer | whether the node answers |
| `/predictions/M[/V]` | POST, PUT | infer | run a model |
| `/explanations/M[/V]` | POST, PUT | infer | refused (501) |
| `/models` | GET | infer | what is served or in the store |
| `/models` | POST | deploy | register |
| `/models/M[/V]` | GET | infer | describe; `all` for V means all versions |
| `/models/M[/V]` | PUT | deploy | scale |
| `/models/M[/V]` | DELETE | deploy | unregister |
| `/models/M/V/set-default` | PUT | deploy | let V answer who names none |

A worker of TorchServe is a replica here: one node that serves the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import parse_qsl

from meshnode.errors import InvalidRequest, ModelNotFound
from meshnode.gateway.matching import Match, Methods, RouteSet, get, segment, unknown, version_of
from meshnode.gateway.oip_repository_routes import shared_change
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import torchserve
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.gateway.protocols.status import PLAIN, ErrorForm, HttpRefusal
from meshnode.gateway.protocols.torchserve_models import described, listed, version_described
from meshnode.gateway.repository_api import Register
from meshnode.limits import MAX_DEPLOYMENT_REPLICAS, MAX_URL_LENGTH
from meshnode.models.manifest import check_model_name
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.endpoint_routes import Decoded
    from meshnode.gateway.inference import Inference
    from meshnode.gateway.matching import Reply
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.http import HttpRequest, HttpStream
    from meshnode.gateway.repository_api import IndexEntry
    from meshnode.models.manifest import Manifest

_MODELS: Final = "/models"
_PREDICTIONS: Final = "/predictions/"
_EXPLANATIONS: Final = "/explanations/"
_TAG: Final = "TorchServe"
_PROCESSING: Final = {"status": "Processing worker updates..."}


class TorchServeRoutes:
    """Answers TorchServe's clients."""

    def __init__(self, inference: Inference, control: MeshControl, decoded: Decoded) -> None:
        """Answer from these.

        Args:
            inference: Runs models.
            control: Manages them.
            decoded: Makes tensors of a request's pictures (`EndpointRoutes.decoded`).
        """
        self._decoded = decoded
        self._inference = inference
        self._control = control

    def __repr__(self) -> str:
        return f"<TorchServeRoutes of {self._inference!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed: dict[str, Methods] = {
            "/ping": get(self._ping),
            _MODELS: {
                "GET": Match(lambda http, _id: self._list(http), Scope.INFER),
                "POST": shared_change(self._control, self._register),
            },
        }
        below = {
            _PREDICTIONS: self._predictions,
            _EXPLANATIONS: lambda _path: _NO_EXPLANATIONS,
            f"{_MODELS}/": self._model,
        }
        return RouteSet(fixed, below, frozenset({_PREDICTIONS}), _OPERATIONS)

    def _ping(self) -> HttpResponse:
        is_ready = self._control.ready()[0]
        if is_ready:
            return json_response({"status": "Healthy", "health": "healthy!"})
        return json_response({"status": "Unhealthy", "health": "unhealthy!"}, 503)

    def _predictions(self, path: str) -> Methods:
        name, version, rest = _split(path, _PREDICTIONS)
        if rest:
            raise unknown(path)
        match = Match(
            lambda http, request_id: self._infer(name, version, http, request_id),
            Scope.INFER,
            takes_body=True,
            infers=True,
        )
        return {"POST": match, "PUT": match}

    def _infer(self, model: str, version: int | None, http: HttpRequest, request_id: str) -> Reply:
        manifest = self._inference.manifest(model, version)
        if manifest is not None and torchserve.has_pictures(manifest, http):
            return self._with_pictures(manifest, Asked(http, model, version), request_id)
        return self._inference.answer(torchserve, Asked(http, model, version), request_id)

    async def _with_pictures(
        self, manifest: Manifest, asked: Asked, request_id: str
    ) -> HttpResponse | HttpStream:
        decoded = await self._decoded(manifest, asked.http, torchserve.pictures)
        reply = self._inference.answer(torchserve, asked._replace(body=decoded), request_id)
        return reply if isinstance(reply, HttpResponse) else await reply

    # Management

    def _model(self, path: str) -> Methods:
        name, version, rest = _split(path, f"{_MODELS}/")
        control = self._control
        if rest == "set-default" and version is not None:
            number = version
            change = shared_change(
                control, lambda http: self._make_default(http, name, number)
            )  # fmt: skip
            return {"PUT": change}
        if rest and (rest != "all" or version is not None):
            raise unknown(path)
        methods = get(lambda: self._describe(name, version, every=rest == "all"))
        if rest:
            return methods
        return {
            **methods,
            "PUT": shared_change(control, lambda http: self._scale(http, name, version)),
            "DELETE": shared_change(control, lambda http: self._unregister(http, name, version)),
        }

    def _list(self, http: HttpRequest) -> HttpResponse:
        asked = dict(parse_qsl(http.query))
        limit = _number(asked, "limit", 100, 1, 1000)
        start = _number(asked, "next_page_token", 0, 0, 1_000_000)
        names = sorted({each.name for each in self._control.repository.index(only_ready=False)})
        return listed(names, start, limit)

    def _describe(self, name: str, version: int | None, *, every: bool) -> HttpResponse:
        entries = [
            each for each in self._control.repository.index(only_ready=False) if each.name == name
        ]
        if version is not None:
            entries = [each for each in entries if each.version == version]
        if not entries:
            number = "" if version is None else f" version {version}"
            raise ModelNotFound(f"no node of this mesh has a model {name!r}{number}")
        if not every and version is None:
            entries = [self._usual(name, entries)]
        return described([self._version(name, each.version) for each in entries])

    def _usual(self, name: str, entries: list[IndexEntry]) -> IndexEntry:
        """Return the version that answers those who name none; where none is served the newest in the store."""
        try:
            usual = self._control.manifest(name, None).version
        except ModelNotFound:
            usual = 0
        return max(entries, key=lambda each: (each.version == usual, each.version))

    def _version(self, name: str, version: int) -> dict[str, Any]:
        control = self._control
        try:
            view = control.model(name)
            manifest = control.manifest(name, version)
        except ModelNotFound:  # it is in the store, and served nowhere
            return version_described(name, version, None, None)
        return version_described(name, version, manifest, view)

    async def _register(self, http: HttpRequest) -> HttpResponse:
        asked = _asked(
            http,
            {
                "url", "model_name", "handler", "runtime", "batch_size", "max_batch_delay", "initial_workers",
                "synchronous", "response_timeout", "startup_timeout", "s3_sse_kms",
            },
        )  # fmt: skip
        for setting in ("handler", "batch_size", "max_batch_delay"):
            if asked.get(setting):
                raise InvalidRequest(
                    f"parameter {setting!r}: a model brings its own; archive it with that setting, or write it into "
                    "its config.pbtxt"
                )
        url = asked.get("url", "")
        if not url or len(url) > MAX_URL_LENGTH:
            raise InvalidRequest(
                "parameter 'url' is required: where the model's archive or file is"
            )
        name: str | None = asked.get("model_name") or None
        if name is not None:
            check_model_name(name)
        workers = _number(asked, "initial_workers", 0, 0, MAX_DEPLOYMENT_REPLICAS)
        repository = self._control.repository
        found, version = await repository.register(Register(url, name, workers), http.caller)
        told = f'Model "{found}" Version: {version} registered with {workers} initial workers'
        if not workers:
            more = "Use scale workers API to add workers for the model."
            return json_response({"status": f"{told}. {more}"})
        if not _flag(asked, "synchronous"):
            return json_response(_PROCESSING, 202)
        await repository.ready(found, version, workers)
        return json_response({"status": told})

    async def _scale(self, http: HttpRequest, name: str, version: int | None) -> HttpResponse:
        asked = _asked(http, {"min_worker", "max_worker", "number_gpu", "synchronous", "timeout"})
        least = _number(asked, "min_worker", 1, 0, MAX_DEPLOYMENT_REPLICAS)
        most = _number(asked, "max_worker", least, 0, MAX_DEPLOYMENT_REPLICAS)
        if "min_worker" in asked and most < least:
            raise InvalidRequest("max_worker cannot be lower than min_worker")
        workers = least if "min_worker" in asked or "max_worker" not in asked else most
        repository = self._control.repository
        await repository.scale(check_model_name(name), version, workers, http.caller)
        if not _flag(asked, "synchronous"):
            return json_response(_PROCESSING, 202)
        if workers:
            await repository.ready(name, version, workers)
        return json_response({"status": f"Workers scaled to {workers} for model: {name}"})

    async def _unregister(self, http: HttpRequest, name: str, version: int | None) -> HttpResponse:
        await self._control.repository.remove(check_model_name(name), version, http.caller)
        return json_response({"status": f'Model "{name}" unregistered'})

    async def _make_default(self, http: HttpRequest, name: str, version: int) -> HttpResponse:
        await self._control.repository.make_default(check_model_name(name), version, http.caller)
        told = f'Default version successfully updated for model "{name}" to "{version}"'
        return json_response({"status": told})


def error_form(path: str) -> ErrorForm:
    """Return how errors are told at a path that begins like one of TorchServe's, but may be a model's own."""
    path = path.partition("?")[0]
    is_ours = path in (_MODELS, "/ping", "/ping/") or path.startswith(
        (f"{_MODELS}/", _PREDICTIONS, _EXPLANATIONS)
    )
    return torchserve.ERRORS if is_ours else PLAIN


def _split(path: str, prefix: str) -> tuple[str, int | None, str]:
    """Return the model that a path names, its version, and what follows."""
    name, _, rest = path.removeprefix(prefix).rstrip("/").partition("/")
    name = segment(name, path)
    text, _, rest = rest.partition("/")
    if not text or (text == "all" and not rest):
        return name, None, text
    return name, version_of(text.removesuffix(".0")), rest


def _asked(http: HttpRequest, known: set[str]) -> dict[str, str]:
    asked = dict(parse_qsl(http.query, keep_blank_values=True))
    for name in asked:
        if name not in known:
            names = ", ".join(sorted(known))
            raise InvalidRequest(f"parameter {name[:40]!r} is not known here; there are {names}")
    return asked


def _number(asked: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise InvalidRequest(f"parameter {name!r} must be a number from {low} to {high}")
    return int(text)


def _flag(asked: dict[str, str], name: str) -> bool:
    text = asked.get(name, "false").lower()
    if text not in ("true", "false"):
        raise InvalidRequest(f"parameter {name!r} must be true or false")
    return text == "true"


def _refuse_explanations(_http: HttpRequest, _request_id: str) -> NoReturn:
    raise HttpRefusal(
        501, "explanations are not made here; a model may answer with them at /predictions/NAME"
    )


_NO_EXPLANATIONS: Final[Methods] = {
    method: Match(_refuse_explanations, Scope.INFER, takes_body=True) for method in ("POST", "PUT")
}


_ANYTHING: Final[dict[str, Any]] = {"description": "What the model takes, or gives."}
_STATUS: Final = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}},
}
_LISTED: Final = {
    "type": "object",
    "required": ["models"],
    "properties": {
        "models": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["modelName", "modelUrl"],
                "properties": {"modelName": {"type": "string"}, "modelUrl": {"type": "string"}},
            },
        },
        "nextPageToken": {"type": "string"},
    },
}
_DESCRIBED: Final = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["modelName", "modelVersion", "workers"],
        "properties": {
            "modelName": {"type": "string"},
            "modelVersion": {"type": "string"},
            "minWorkers": {"type": "integer"},
            "maxWorkers": {"type": "integer"},
            "batchSize": {"type": "integer"},
            "workers": {"type": "array", "items": {"type": "object"}},
        },
    },
}
_OF_CHANGES: Final = (409, 500, 507)


def _operations() -> tuple[Operation, ...]:
    whole: tuple[str, ...] = (
        "application/json", "application/octet-stream", "multipart/form-data", "image/*"
    )  # fmt: skip
    found = [
        Operation("GET", "/ping", "Whether the node answers", _TAG, answer=_STATUS, also=(503,))
    ]
    for at in ("{model}", "{model}/{version}"):
        for method in ("POST", "PUT"):
            found.append(
                Operation(
                    method,
                    f"{_PREDICTIONS}{at}",
                    "Run a model",
                    _TAG,
                    body=_ANYTHING,
                    answer=_ANYTHING,
                    media_types=("application/json", "*/*"),
                    body_types=whole,
                    errors=(415, 501),
                    infers=True,
                )
            )
            found.append(
                Operation(
                    method,
                    f"{_EXPLANATIONS}{at}",
                    "Refused: explanations are not made",
                    _TAG,
                    errors=(501,),
                )
            )
        found += [
            Operation("GET", f"{_MODELS}/{at}", "Describe a model", _TAG, answer=_DESCRIBED),
            Operation(
                "PUT",
                f"{_MODELS}/{at}",
                "Serve a model on so many nodes",
                _TAG,
                Scope.DEPLOY,
                answer=_STATUS,
                status=202,
                errors=_OF_CHANGES,
                also=(200,),
                query=(
                    ("min_worker", "On how many nodes; 0 for none."),
                    ("max_worker", "Likewise, where `min_worker` is missing."),
                    ("synchronous", "`true`: answer once it is ready."),
                ),
            ),
            Operation(
                "DELETE",
                f"{_MODELS}/{at}",
                "Serve a model no more",
                _TAG,
                Scope.DEPLOY,
                answer=_STATUS,
                errors=_OF_CHANGES,
            ),
        ]
    found += [
        Operation(
            "GET",
            f"{_MODELS}/{{model}}/all",
            "Describe all versions of a model",
            _TAG,
            answer=_DESCRIBED,
        ),
        Operation(
            "GET",
            _MODELS,
            "What is served or in the store",
            _TAG,
            answer=_LISTED,
            query=(
                ("limit", "Models per page, 1 to 1000; 100 by default."),
                ("next_page_token", "`nextPageToken` of the page before."),
            ),
        ),
        Operation(
            "POST",
            _MODELS,
            "Bring a model in, and serve it",
            _TAG,
            Scope.DEPLOY,
            answer=_STATUS,
            errors=_OF_CHANGES,
            also=(202,),
            query=(
                (
                    "url*",
                    "`https://…` of an archive or model file, or the name of a published model.",
                ),
                ("model_name", "Public name; the file's by default."),
                ("initial_workers", "On how many nodes; 0 (by default): it is only kept."),
                ("synchronous", "`true`: answer once it is ready."),
            ),
        ),
        Operation(
            "PUT",
            f"{_MODELS}/{{model}}/{{version}}/set-default",
            "Let a version answer who names none",
            _TAG,
            Scope.DEPLOY,
            answer=_STATUS,
            errors=_OF_CHANGES,
        ),
    ]
    return tuple(found)


_OPERATIONS: Final = _operations()
