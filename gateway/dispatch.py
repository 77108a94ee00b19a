"""Which handler answers a path, without a web framework.

The server asks `match` with a request's method and path before it reads a body: unknown paths,
wrong methods and callers without the match's scope are refused then. It calls the match with the
whole request later; the answer comes at once where it can, and as an awaitable where it must.

| path | method | scope | |
|---|---|---|---|
| `/v2`, `/v2/health/live`, `/v2/health/ready` | GET | infer | Open Inference Protocol: the server |
| `/v2/models/M[/versions/N][/ready, /config]` | GET | infer | Open Inference Protocol: a model |
| `/v2/models/M[/versions/N]/infer` | POST | infer | Open Inference Protocol: inference |
| `/mesh/v1/...` | | | `mesh_api` |
| `/healthz`, `/readyz`, `/metrics` | GET | infer | for supervisors and Prometheus |

HEAD is answered as GET is; the server leaves the body out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from meshnode import __version__
from meshnode.errors import InvalidRequest, MeshError
from meshnode.gateway import mesh_api, pairing_api, trust_api
from meshnode.gateway.metrics import OTHER, GatewayMetrics, exposition
from meshnode.gateway.pipeline import Answered
from meshnode.gateway.protocols import oip, oip_metadata
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import MAX_REMEMBERED_PATHS
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.pipeline import Pipeline

Reply = HttpResponse | Awaitable[HttpResponse]
Handler = Callable[[HttpRequest, str], Reply]

_MODELS = "/v2/models/"
_MESH_MODELS = "/mesh/v1/models/"
_DEPLOYMENTS = "/mesh/v1/deployments/"
_KEYS = "/mesh/v1/keys/"
_ROLES = "/mesh/v1/roles/"
_UPLOADS = "/mesh/v1/uploads/"
_TRACEPARENT = "traceparent"


class Match(NamedTuple):
    """What answers a request: `answer(http, request_id)`, for callers with this scope.

    `takes_body` is false where a body, if there is one, is not worth reading. `forwarded` is whether
    the request may come from another node's gateway, whose own role does not allow it.
    """

    answer: Handler
    scope: Scope
    takes_body: bool = False
    forwarded: bool = False


class Dispatcher:
    """The routes of a node, the same at every entrance."""

    def __init__(self, pipeline: Pipeline, control: MeshControl, metrics: GatewayMetrics) -> None:
        """Answer from these."""
        self._pipeline = pipeline
        self._control = control
        self._metrics = metrics
        self._fixed = self._fixed_routes()
        self._named: dict[str, Callable[[str], Mapping[str, Match]]] = {
            _MODELS: self._model_routes,
            _MESH_MODELS: self._mesh_model_routes,
            _DEPLOYMENTS: self._deployment_routes,
            _KEYS: self._key_routes,
            _ROLES: self._role_routes,
            _UPLOADS: self._upload_routes,
        }
        self._remembered: dict[tuple[str, str], Match] = {}

    def __repr__(self) -> str:
        return f"<Dispatcher of {len(self._fixed) // 2} paths and {len(self._named)} folders>"

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
        prefix = next((prefix for prefix in self._named if path.startswith(prefix)), None)
        if prefix is None:
            raise _unknown(path)
        found = _by_method(self._named[prefix](path), method)
        if prefix is not _MODELS:
            return found
        if len(self._remembered) >= MAX_REMEMBERED_PATHS:
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
            "/metrics": {"GET": Match(self._expose, Scope.INFER)},
            "/mesh/v1/status": {
                "GET": Match(
                    lambda http, _: json_response(mesh_api.status(control, http.caller)),
                    Scope.INFER,
                )
            },
            "/mesh/v1/nodes": _get(lambda: json_response(control.nodes())),
            "/mesh/v1/rtt": {
                "GET": Match(lambda http, _: mesh_api.rtt(control, http), Scope.INFER)
            },
            "/mesh/v1/models": _get(lambda: json_response(control.models())),
            "/mesh/v1/deployments": {
                "POST": _elsewhere_too(Scope.DEPLOY, partial(mesh_api.deploy, control))
            },
            "/mesh/v1/uploads": {
                "GET": _change(Scope.ADMIN, lambda _: json_response(control.uploads())),
                "POST": self._shared(
                    Scope.DEPLOY, lambda http: mesh_api.begin_upload(control, http)
                ),
            },
            "/mesh/v1/keys": {
                "GET": _change(Scope.ADMIN, lambda _: json_response(control.keys())),
                "POST": self._shared(Scope.ADMIN, lambda http: mesh_api.create_key(control, http)),
            },
            "/mesh/v1/invites": {
                "POST": _elsewhere_too(Scope.ADMIN, partial(trust_api.create_invite, control))
            },
            "/mesh/v1/join-requests": {
                "GET": _change(Scope.ADMIN, lambda _: json_response(control.join_desk.view()))
            },
            "/mesh/v1/join-requests/approve": {
                "POST": _change(Scope.ADMIN, lambda http: pairing_api.approve(control, http))
            },
            "/mesh/v1/evictions": {
                "POST": self._shared(
                    Scope.ADMIN, lambda http: trust_api.evict(control, http), Role.ADMIN
                )
            },
            "/mesh/v1/trust": {
                "GET": _change(Scope.ADMIN, lambda _: json_response(control.trust.view()))
            },
            "/mesh/v1/trust/rotate": {
                "POST": _change(Scope.OWNER, lambda _: json_response(control.trust.rotate(), 202))
            },
            "/mesh/v1/trust/seal": {
                "POST": _change(Scope.OWNER, lambda _: json_response(control.trust.seal()))
            },
            "/mesh/v1/doctor": {
                "POST": _change(Scope.ADMIN, lambda http: mesh_api.examine(control, http))
            },
            "/mesh/v1/shutdown": {
                "POST": _change(Scope.OWNER, lambda http: mesh_api.shutdown(control, http))
            },
        }
        return routes | {f"{path}/": found for path, found in routes.items()}

    def _mesh_model_routes(self, path: str) -> Mapping[str, Match]:
        name = _segment(path.removeprefix(_MESH_MODELS), path)
        return _get(lambda: json_response(self._control.model(name)))

    def _deployment_routes(self, path: str) -> Mapping[str, Match]:
        name = _segment(path.removeprefix(_DEPLOYMENTS), path)
        return {
            "DELETE": self._shared(
                Scope.DEPLOY, lambda http: mesh_api.undeploy(self._control, http, name)
            )
        }

    def _key_routes(self, path: str) -> Mapping[str, Match]:
        key = _segment(path.removeprefix(_KEYS), path)
        return {
            "DELETE": self._shared(
                Scope.ADMIN, lambda http: json_response(self._control.revoke_key(key, http.caller))
            )
        }

    def _role_routes(self, path: str) -> Mapping[str, Match]:
        node = _segment(path.removeprefix(_ROLES), path)
        return {
            "PUT": self._shared(
                Scope.ADMIN, lambda http: trust_api.set_role(self._control, http, node), Role.ADMIN
            )
        }

    def _upload_routes(self, path: str) -> Mapping[str, Match]:
        control = self._control
        upload, slash, index = path.removeprefix(_UPLOADS).partition("/")
        upload = _segment(upload, path)
        if slash:
            number = _file_number(index, path)
            return {
                "PUT": self._shared(
                    Scope.DEPLOY,
                    lambda http: mesh_api.take_piece(control, http, upload, number),
                    upload=upload,
                )
            }
        return {
            "GET": self._shared(
                Scope.DEPLOY,
                lambda http: json_response(control.upload(upload, http.caller)),
                upload=upload,
            ),
            "DELETE": self._shared(
                Scope.DEPLOY,
                lambda http: mesh_api.drop_upload(control, http, upload),
                upload=upload,
            ),
        }

    def _model_routes(self, path: str) -> Mapping[str, Match]:
        name, _, rest = path.removeprefix(_MODELS).partition("/")
        name = _segment(name, path)
        version: int | None = None
        if rest.startswith("versions/"):
            text, _, rest = rest.removeprefix("versions/").partition("/")
            version = _version(text)
        match rest:
            case "infer":
                answer = partial(self._infer, name, version)
                return {"POST": Match(answer, Scope.INFER, takes_body=True)}
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

    def _shared(
        self,
        scope: Scope,
        handler: Callable[[HttpRequest], Reply],
        needed: Role = Role.OPERATOR,
        upload: str | None = None,
    ) -> Match:
        """Return what changes the mesh: here if this node's role allows it, else at another node.

        Args:
            scope: What the caller needs.
            handler: Makes the change here.
            needed: The role that the node needs.
            upload: The upload that it is about.
        """

        def answer(http: HttpRequest, request_id: str) -> Reply:
            elsewhere = self._control.forward(needed, http, request_id, upload)
            return handler(http) if elsewhere is None else elsewhere

        return Match(answer, scope, takes_body=True, forwarded=True)

    # Handlers.

    def _infer(self, model: str, version: int | None, http: HttpRequest, request_id: str) -> Reply:
        pipeline = self._pipeline
        label = OTHER
        parent = http.headers.get(_TRACEPARENT)
        trace = None if parent is None else pipeline.request_log.traces.join(parent)
        try:
            target = pipeline.resolve(model, version)
            manifest = target.manifest
            label = manifest.model
            request, form = oip.decode_infer(http, manifest, manifest.version, request_id, trace)
        except MeshError as error:
            self._metrics.failed(label, error.code)
            pipeline.request_log.failed(model, request_id, trace, error)
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

    def _expose(self, http: HttpRequest, _request_id: str) -> HttpResponse:
        metrics = chain(self._metrics, self._control.metrics())
        body, content_type = exposition(metrics, http.headers.get("accept", ""))
        return HttpResponse(200, {"Content-Type": content_type}, body)


def _get(handler: Callable[[], Reply]) -> Mapping[str, Match]:
    """Return the routes of what everybody may read who may infer."""
    return {"GET": Match(lambda _http, _request_id: handler(), Scope.INFER)}


def _change(scope: Scope, handler: Callable[[HttpRequest], Reply]) -> Match:
    return Match(lambda http, _request_id: handler(http), scope, takes_body=True)


def _elsewhere_too(scope: Scope, answer: Handler) -> Match:
    """Return a change whose handler finds out by itself whether another node has to make it."""
    return Match(answer, scope, takes_body=True, forwarded=True)


def _by_method(routes: Mapping[str, Match], method: str) -> Match:
    found = routes.get(method)
    if found is None:
        allowed = ", ".join(
            each for name in routes for each in (("GET", "HEAD") if name == "GET" else (name,))
        )
        raise HttpRefusal(405, f"this path takes {allowed}, not {method[:20]}", {"Allow": allowed})
    return found


def _segment(text: str, path: str) -> str:
    """Return a path segment decoded, such as a model's name; an empty or deeper one is unknown."""
    if not text or "/" in text:
        raise _unknown(path)
    return unquote(text)


def _file_number(text: str, path: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise _unknown(path)
    return int(text)


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
