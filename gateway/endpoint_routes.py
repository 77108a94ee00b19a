"""Endpoint style over HTTP: `/inference/NAME`, `/predict`, and the paths that deployers choose.

| path | method | |
|---|---|---|
| `/inference/NAME` | POST | runs a model: `meshnode.gateway.protocols.endpoint` |
| `/predict?model=NAME` | POST | the same; a form's `file` is for the only input that takes files |
| `/predict/async?model=NAME` | POST | the same as a job: 202 `{"task_id", "status": "processing", "url"}` |
| what `deploy --path` says | POST | the same, with or without a slash at its end |

A model may have a route `/predict` of its own: it is asked where no model is named.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, quote, unquote

import msgspec

from meshnode.errors import InvalidRequest, MeshError
from meshnode.gateway.matching import Match, Methods, Reply, RouteSet, infer, segment, unknown
from meshnode.gateway.operations import Operation
from meshnode.gateway.picture_turns import PictureTurns
from meshnode.gateway.protocols import endpoint
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream, json_response
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.models.execution import Interface
from meshnode.models.exposure import PREDICT_LATER
from meshnode.models.media_types import EVENTS, LINES
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshnode.gateway.inference import Inference
    from meshnode.gateway.matching import Handler
    from meshnode.gateway.model_calls import ModelCalls
    from meshnode.models.manifest import Manifest
    from meshnode.models.uploads import Upload
    from meshnode.types import Tensor

    FindPictures = Callable[[Manifest, HttpRequest], list[tuple[Upload, bytes]]]
    Decoded = Callable[
        [Manifest, HttpRequest, FindPictures], Awaitable[dict[str, Tensor] | MeshError]
    ]

INFERENCE: Final = "/inference/"
PREDICT: Final = "/predict"

_TAG: Final = "Endpoint style"
_BODIES: Final = ("application/json", "multipart/form-data", "application/octet-stream", "image/*")
_ANSWERS: Final = ("application/json", LINES, EVENTS, "*/*")
_MODEL: Final = (("model*", "the model's name"),)
_ANYTHING: Final[dict[str, Any]] = {
    "description": "What the model takes: its document, or the values of its inputs by their names."
}
_ANSWER: Final[dict[str, Any]] = {
    "description": "What the model answers: its document, or the values of its outputs by their names."
}
_TASK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["task_id", "status"],
    "properties": {
        "task_id": {"type": "string"},
        "status": {"const": "processing"},
        "url": {"type": "string", "description": "The job, where it stands and its result."},
    },
}


class EndpointRoutes:
    """Runs models that are asked by their names or by paths of their deployers' choice."""

    def __init__(
        self,
        inference: Inference,
        calls: ModelCalls,
        respond_later: Callable[[], Handler | None],
    ) -> None:
        """Run them through these.

        Args:
            inference: Runs models that take tensors.
            calls: Runs models that take documents.
            respond_later: Returns what makes a job of a request, or None as long as nothing does.
        """
        self._inference = inference
        self._calls = calls
        self._respond_later = respond_later
        # One large picture at a time: it takes up to 200 MB while it is decoded.
        self._decoding = PictureTurns()

    def __repr__(self) -> str:
        return f"<EndpointRoutes over {self._calls!r}>"

    def routes(self) -> RouteSet:
        """Return the routes, but for those at the paths of models' choice (`of_models`)."""
        return RouteSet(
            {},
            {INFERENCE: self._named, PREDICT: self._predict},
            operations=(
                Operation(
                    "POST", "/inference/{model}", "Run a model with a document, values or a file", _TAG,
                    body=_ANYTHING, answer=_ANSWER, media_types=_ANSWERS, body_types=_BODIES, errors=(415,),
                    infers=True,
                ),
                Operation(
                    "POST", PREDICT, "Run a model that the query names", _TAG, body=_ANYTHING, answer=_ANSWER,
                    query=_MODEL, media_types=_ANSWERS, body_types=_BODIES, errors=(415,),
                    schema_path="/predict?model={model}", infers=True,
                ),
                Operation(
                    "POST", PREDICT_LATER, "Make a job of it", _TAG, body=_ANYTHING, answer=_TASK, status=202,
                    query=_MODEL, body_types=_BODIES, errors=(501,), schema_path="/predict/async?model={model}",
                ),
            ),
        )  # fmt: skip

    def of_models(self, path: str) -> Methods:
        """Return the routes of a path that models have: of their own, or by their deployers' choice.

        Raises:
            HttpRefusal: if no model has it.
        """
        methods = dict(self._calls.methods(path))
        model = self._calls.offered_at(unquote(path))
        if model is not None:
            methods.update(infer(partial(self.ask, model)))
        if not methods:
            raise unknown(path)
        return methods

    def ask(self, model: str, http: HttpRequest, request_id: str) -> Reply:
        """Run a model by its name.

        Raises:
            MeshError: as `Inference.answer`; at once, or when awaited.
        """
        manifest = self._inference.manifest(model)
        if manifest is None or manifest.execution.interface is not Interface.TENSORS:
            return self._calls.ask(model, http, request_id)
        if endpoint.has_pictures(manifest, http):
            return self._with_pictures(manifest, http, request_id)
        return self._inference.answer(endpoint, Asked(http, model), request_id)

    async def _with_pictures(
        self, manifest: Manifest, http: HttpRequest, request_id: str
    ) -> HttpResponse | HttpStream:
        decoded = await self.decoded(manifest, http, endpoint.pictures)
        asked = Asked(http, manifest.model, None, decoded)
        reply = self._inference.answer(endpoint, asked, request_id)
        return reply if isinstance(reply, HttpResponse) else await reply

    async def decoded(
        self, manifest: Manifest, http: HttpRequest, pictures: FindPictures
    ) -> dict[str, Tensor] | MeshError:
        """Return the tensors of a request's pictures by the names of their inputs, or why they are none.

        Args:
            manifest: The model version that will answer.
            http: The request.
            pictures: Finds its pictures; a thread calls it.

        Raises:
            Saturated, DeadlineExceeded: as `PictureTurns.run`.
        """
        found = await asyncio.to_thread(_pictures, manifest, http, pictures)
        if isinstance(found, MeshError):
            return found
        caller = http.caller.key_id or http.caller.via_id
        pixels = sum(each.pixels for each in found)
        return await self._decoding.run(caller, pixels, partial(_decoded, manifest, found))

    def _named(self, path: str) -> Methods:
        return infer(
            partial(self.ask, segment(path.removeprefix(INFERENCE).removesuffix("/"), path))
        )

    def _predict(self, path: str) -> Methods:
        match path.rstrip("/"):
            case "/predict":
                of_models = self._calls.methods(path)
                own = of_models.get("POST") or next(iter(self._offered(path).values()), None)
                return {**of_models, **infer(partial(self._predicted, own))}
            case "/predict/async":
                later = Match(self._task, Scope.INFER, takes_body=True, answers_once=True)
                return {**self._calls.methods(path), "POST": later}
        return self.of_models(path)

    def _offered(self, path: str) -> Methods:
        model = self._calls.offered_at(unquote(path))
        return {} if model is None else infer(partial(self.ask, model))

    def _predicted(self, own: Match | None, http: HttpRequest, request_id: str) -> Reply:
        model = _asked_model(http)
        if model:
            return self.ask(model, http, request_id)
        if own is not None:
            return own.answer(http, request_id)
        raise _unnamed()

    async def _task(self, http: HttpRequest, request_id: str) -> HttpResponse | HttpStream:
        model = _asked_model(http)
        if not model:
            raise _unnamed()
        later = self._respond_later()
        if later is None:
            raise HttpRefusal(
                501, "this node keeps no jobs, so it cannot answer later; ask /predict"
            )
        # What is wrong is told now, not by a job that fails.
        manifest = self._inference.pipeline.resolve(model, None).manifest
        if endpoint.has_pictures(manifest, http):
            await asyncio.to_thread(endpoint.check, manifest, http)
        else:
            endpoint.check(manifest, http)
        path = INFERENCE + quote(model, safe="")
        reply = later(msgspec.structs.replace(http, path=path, query=""), request_id)
        response = reply if isinstance(reply, HttpResponse) else await reply
        if isinstance(response, HttpStream) or response.status != 202:
            return response
        job = msgspec.json.decode(b"".join(map(bytes, _pieces(response))))
        task = {"task_id": job["id"], "status": "processing", "url": job.get("url")}
        if "webhook_secret" in job:  # told only now
            task["webhook_secret"] = job["webhook_secret"]
        headers = {key: value for key, value in response.headers.items() if key != "Content-Type"}
        made = json_response(task, 202)
        return HttpResponse(202, {**headers, **made.headers}, made.body)


def _pieces(response: HttpResponse) -> list[Any]:
    return [response.body] if isinstance(response.body, bytes) else response.body


def _asked_model(http: HttpRequest) -> str:
    """Return the model that a query names; empty if it names none, or several."""
    found = parse_qs(http.query).get("model", [])
    return found[0] if len(found) == 1 else ""


def _unnamed() -> InvalidRequest:
    return InvalidRequest("which model is meant is said by the query: /predict?model=NAME")


class _Picture(NamedTuple):
    """A picture of a request: for which input, its file and how many pixels it says that it has."""

    name: str
    data: bytes
    pixels: int


def _pictures(
    manifest: Manifest, http: HttpRequest, pictures: FindPictures
) -> list[_Picture] | MeshError:
    """Return a request's pictures, none of them decoded, or why they cannot be."""
    from meshnode.models.images import pixels_of  # with Pillow: only where a picture comes

    try:
        return [
            _Picture(upload.name, data, pixels_of(data))
            for upload, data in pictures(manifest, http)
        ]
    except MeshError as error:
        return error


def _decoded(manifest: Manifest, found: list[_Picture]) -> dict[str, Tensor] | MeshError:
    """Return pictures as tensors, by the names of their inputs, or why they are none."""
    from meshnode.models.images import image_to_tensor

    specs = {spec.name: spec for spec in manifest.inputs}
    try:
        return {each.name: image_to_tensor(each.data, specs[each.name]) for each in found}
    except MeshError as error:
        return error
