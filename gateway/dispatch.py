"""Which handler answers a path, without a web framework.

The server asks `match` with a request's method and path before it reads a body: unknown paths,
and wrong methods are refused then. It calls the match with the whole request
later; the answer comes at once where it can, and as an awaitable where it must.

| path | method | |
|---|---|---|
| `/v2`, `/v2/health/live`, `/v2/health/ready` | GET | Open Inference Protocol: the server |
| `/v2/models/M[/versions/N][/ready, /config]` | GET | Open Inference Protocol: a model |
| `/v2/models/M[/versions/N]/infer` | POST | Open Inference Protocol: inference |
| `/mesh/v1/...` | | `mesh_api` |
| `/healthz`, `/readyz`, `/metrics` | GET | for supervisors and Prometheus |

HEAD is answered as GET is; the server leaves the body out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from meshnode import __version__
from meshnode.errors import Forbidden, InvalidRequest, MeshError
from meshnode.gateway import mesh_api
from meshnode.gateway.metrics import CONTENT_TYPE, OTHER, GatewayMetrics, exposition
from meshnode.gateway.pipeline import Answered
from meshnode.gateway.protocols import oip, oip_metadata
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.gateway.protocols.status import HttpRefusal

if TYPE_CHECKING:
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.pipeline import Pipeline

Reply = HttpResponse | Awaitable[HttpResponse]
Handler = Callable[[HttpRequest, str], Reply]

_MODELS = "/v2/models/"
_MESH_MODELS = "/mesh/v1/models/"
_DEPLOYMENTS = "/mesh/v1/deployments/"
_MAX_REMEMBERED = 1024  # matches of model paths; a mesh that asks for more forgets and goes on


class Match(NamedTuple):
    """What answers a request: `answer(http, request_id)`.

    `takes_body` is false where a body, if there is one, is not worth reading.
    """

    answer: Handler
    takes_body: bool = False


class Dispatcher:
    """The routes of one entrance: the TCP gateway, or the control socket."""

    def __init__(
        self, pipeline: Pipeline, control: MeshControl, metrics: GatewayMetrics, *, privileged: bool
    ) -> None:
        """`privileged` allows changes; it belongs behind file permissions."""
        self._pipeline = pipeline
        self._control = control
        self._metrics = metrics
        self._privileged = privileged
        self._fixed = self._fixed_routes()
        self._remembered: dict[tuple[str, str], Match] = {}

    def __repr__(self) -> str:
        return f"<Dispatcher, {'privileged' if self._privileged else 'read and infer only'}>"

    def match(self, method: str, path: str) -> Match:
        """Return what answers a request; `path` is as sent, without its query.

        Raises:
            HttpRefusal: 404 for an unknown path, 405 for a wrong method.
            InvalidRequest: for a version that is no number.
        """
        known = self._remembered.get((method, path))
        if known is not None:
            return known
        if method == "HEAD":
            method = "GET"
        routes = self._fixed.get(path)
        if routes is not None:
            return _by_method(routes, method)
        found = _by_method(self._named_routes(path), method)
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[method, path] = found
        return found

    def _fixed_routes(self) -> dict[str, Mapping[str, Match]]:
        control = self._control
        routes: dict[str, Mapping[str, Match]] = {
            "/v2": _get(lambda: oip_metadata.server_metadata(__version__)),
            "/v2/health/live": _get(oip_metadata.live),
            "/v2/health/ready": _get(lambda: oip_metadata.ready(control.ready()[0])),
            "/healthz": _get(lambda: json_response({"status": "ok"})),
            "/readyz": _get(self._readyz),
            "/metrics": _get(self._expose),
            "/mesh/v1/status": _get(lambda: json_response(control.status())),
            "/mesh/v1/nodes": _get(lambda: json_response(control.nodes())),
            "/mesh/v1/models": _get(lambda: json_response(control.models())),
            "/mesh/v1/invites": self._change(
                "POST", lambda http, _: mesh_api.create_invite(control, http)
            ),
            "/mesh/v1/deployments": self._change(
                "POST", lambda http, _: mesh_api.deploy(control, http)
            ),
        }
        return routes | {f"{path}/": found for path, found in routes.items()}

    def _named_routes(self, path: str) -> Mapping[str, Match]:
        if path.startswith(_MODELS):
            return self._model_routes(path)
        if path.startswith(_MESH_MODELS):
            name = _segment(path.removeprefix(_MESH_MODELS), path)
            return _get(lambda: json_response(self._control.model(name)))
        if path.startswith(_DEPLOYMENTS):
            name = _segment(path.removeprefix(_DEPLOYMENTS), path)
            return self._change("DELETE", lambda _http, _: mesh_api.undeploy(self._control, name))
        raise _unknown(path)

    def _model_routes(self, path: str) -> Mapping[str, Match]:
        name, _, rest = path.removeprefix(_MODELS).partition("/")
        name = _segment(name, path)
        version: int | None = None
        if rest.startswith("versions/"):
            text, _, rest = rest.removeprefix("versions/").partition("/")
            version = _version(text)
        match rest:
            case "infer":
                return {"POST": Match(partial(self._infer, name, version), takes_body=True)}
            case "":
                return _get(lambda: self._model_metadata(name, version))
            case "ready":
                control = self._control
                return _get(
                    lambda: oip_metadata.model_ready(name, control.is_model_ready(name, version))
                )
            case "config":
                control = self._control
                return _get(lambda: oip_metadata.model_config(control.manifest(name, version)))
        raise _unknown(path)

    def _change(self, method: str, handler: Handler) -> Mapping[str, Match]:
        if self._privileged:
            return {method: Match(handler, takes_body=True)}
        return {method: _FORBIDDEN}

    # Handlers.

    def _infer(self, model: str, version: int | None, http: HttpRequest, request_id: str) -> Reply:
        pipeline = self._pipeline
        label = OTHER
        try:
            target = pipeline.resolve(model, version)
            manifest = target.manifest
            label = manifest.model
            request, form = oip.decode_infer(http, manifest, manifest.version, request_id)
        except MeshError as error:
            self._metrics.failed(label, error.code)
            raise
        answered = pipeline.answer(request, target)
        if not isinstance(answered, Answered):
            return _infer_later(answered, form)
        part = answered.response.single
        assert part is not None  # what is answered at once is complete
        response = oip.encode_infer(answered.response, part, form)
        return _routed(response, answered)

    def _model_metadata(self, name: str, version: int | None) -> HttpResponse:
        control = self._control
        manifest = control.manifest(name, version)
        if version is not None:
            return oip_metadata.model_metadata(manifest, ())
        versions = control.model(name)["versions"]
        ready = [number for number in versions if control.is_model_ready(name, number)]
        return oip_metadata.model_metadata(manifest, ready)

    def _readyz(self) -> HttpResponse:
        is_ready, reason = self._control.ready()
        body = {"ready": is_ready} if is_ready else {"ready": is_ready, "reason": reason}
        return json_response(body, 200 if is_ready else 503)

    def _expose(self) -> HttpResponse:
        body = exposition(chain(self._metrics, self._control.metrics()))
        return HttpResponse(200, {"Content-Type": CONTENT_TYPE}, body)


def _forbid(_http: HttpRequest, _request_id: str) -> HttpResponse:
    raise Forbidden(
        "changes are not made through this gateway: use the meshnode command on its machine"
    )


_FORBIDDEN = Match(_forbid)


def _get(handler: Callable[[], Reply]) -> Mapping[str, Match]:
    return {"GET": Match(lambda _http, _request_id: handler())}


def _by_method(routes: Mapping[str, Match], method: str) -> Match:
    found = routes.get(method)
    if found is None:
        allowed = ", ".join(["GET", "HEAD"] if "GET" in routes else routes)
        raise HttpRefusal(405, f"this path takes {allowed}, not {method[:20]}", {"Allow": allowed})
    return found


def _segment(text: str, path: str) -> str:
    """Return a path segment decoded, such as a model's name; an empty or deeper one is unknown."""
    if not text or "/" in text:
        raise _unknown(path)
    return unquote(text)


def _version(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest(
            f"{text[:40]!r} is not a model version; versions are positive integers"
        )
    return int(text)


def _unknown(path: str) -> HttpRefusal:
    return HttpRefusal(404, f"nothing is served at {path[:100]!r}")


def _routed(response: HttpResponse, answered: Answered) -> HttpResponse:
    headers = {**response.headers, "Mesh-Route": answered.route_header}
    return HttpResponse(response.status, headers, response.body)


async def _infer_later(answer: Awaitable[Answered], form: oip.AnswerForm) -> HttpResponse:
    answered = await answer
    response = answered.response
    part = response.single or await oip.only_part(response)
    return _routed(oip.encode_infer(response, part, form), answered)
