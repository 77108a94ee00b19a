"""The routes of `/mesh/v1` (`mesh_api`), and those for supervisors and Prometheus."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import unquote

from meshnode.gateway import (
    artifacts_api,
    deployments_api,
    drain_api,
    explain_api,
    mesh_api,
    pairing_api,
    rollout_api,
    trust_api,
)
from meshnode.gateway.matching import (
    Handler,
    Match,
    Methods,
    RouteSet,
    change,
    get,
    segment,
    unknown,
)
from meshnode.gateway.metrics import GatewayMetrics, exposition
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.matching import Reply
    from meshnode.gateway.mesh_api import MeshControl

_MODELS = "/mesh/v1/models/"
_DEPLOYMENTS = "/mesh/v1/deployments/"
_ARTIFACTS = "/mesh/v1/artifacts/"
_KEYS = "/mesh/v1/keys/"
_ROLES = "/mesh/v1/roles/"
_UPLOADS = "/mesh/v1/uploads/"
_NODES = "/mesh/v1/nodes/"
_DRAIN = "/drain"
_EXPLAIN = "/explain"


class MeshRoutes:
    """Answers what the node and the mesh are asked."""

    def __init__(self, control: MeshControl, metrics: GatewayMetrics) -> None:
        """Answer from these."""
        self._control = control
        self._metrics = metrics

    def __repr__(self) -> str:
        return "<MeshRoutes>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        below = {
            _MODELS: self._model,
            _DEPLOYMENTS: self._deployment,
            _ARTIFACTS: self._artifact,
            _KEYS: self._key,
            _ROLES: self._role,
            _UPLOADS: self._upload,
            _NODES: self._drain,
        }
        operations = (
            *_OPERATIONS,
            *mesh_api.OPERATIONS,
            *artifacts_api.OPERATIONS,
            *deployments_api.OPERATIONS,
            *rollout_api.OPERATIONS,
            *drain_api.OPERATIONS,
            *explain_api.OPERATIONS,
            *pairing_api.OPERATIONS,
            *trust_api.OPERATIONS,
        )
        return RouteSet(self._fixed(), below, operations=operations)

    def _fixed(self) -> dict[str, Methods]:
        control = self._control
        return {
            "/healthz": get(lambda: json_response({"status": control.health()})),
            "/readyz": get(self._readyz),
            "/metrics": {"GET": Match(self._expose, Scope.INFER)},
            "/mesh/v1/status": {
                "GET": Match(
                    lambda http, _: json_response(mesh_api.status(control, http.caller)),
                    Scope.INFER,
                )
            },
            "/mesh/v1/nodes": get(lambda: json_response(control.nodes())),
            "/mesh/v1/rtt": {
                "GET": Match(lambda http, _: mesh_api.rtt(control, http), Scope.INFER)
            },
            "/mesh/v1/decisions": {
                "GET": change(Scope.ADMIN, lambda _: explain_api.decisions(control.routing))
            },
            "/mesh/v1/models": get(lambda: json_response(control.models())),
            "/mesh/v1/deployments": {
                "GET": Match(
                    lambda http, _: json_response(control.definitions.all(http.caller)), Scope.INFER
                ),
                "POST": _elsewhere_too(Scope.DEPLOY, partial(mesh_api.deploy, control)),
            },
            "/mesh/v1/artifacts": {
                "GET": Match(lambda _http, _id: json_response(control.artifacts()), Scope.INFER),
                "POST": _elsewhere_too(Scope.DEPLOY, partial(artifacts_api.publish, control)),
            },
            "/mesh/v1/uploads": {
                "GET": change(Scope.ADMIN, lambda _: json_response(control.uploads())),
                "POST": self._shared(
                    Scope.DEPLOY, lambda http: mesh_api.begin_upload(control, http)
                ),
            },
            "/mesh/v1/keys": {
                "GET": change(Scope.ADMIN, lambda _: json_response(control.keys())),
                "POST": self._shared(Scope.ADMIN, lambda http: mesh_api.create_key(control, http)),
            },
            "/mesh/v1/invites": {
                "POST": _elsewhere_too(Scope.ADMIN, partial(trust_api.create_invite, control))
            },
            "/mesh/v1/join-requests": {
                "GET": change(Scope.ADMIN, lambda _: json_response(control.join_desk.view()))
            },
            "/mesh/v1/join-requests/approve": {
                "POST": change(Scope.ADMIN, lambda http: pairing_api.approve(control, http))
            },
            "/mesh/v1/evictions": {
                "POST": self._shared(
                    Scope.ADMIN, lambda http: trust_api.evict(control, http), Role.ADMIN
                )
            },
            "/mesh/v1/trust": {
                "GET": change(Scope.ADMIN, lambda _: json_response(control.trust.view()))
            },
            "/mesh/v1/trust/rotate": {
                "POST": change(Scope.OWNER, lambda _: json_response(control.trust.rotate(), 202))
            },
            "/mesh/v1/trust/seal": {
                "POST": change(Scope.OWNER, lambda _: json_response(control.trust.seal()))
            },
            "/mesh/v1/doctor": {
                "POST": change(Scope.ADMIN, lambda http: mesh_api.examine(control, http))
            },
            "/mesh/v1/shutdown": {
                "POST": change(Scope.OWNER, lambda http: mesh_api.shutdown(control, http))
            },
        }

    def _model(self, path: str) -> Methods:
        if path.endswith(_EXPLAIN):
            model = segment(path.removeprefix(_MODELS).removesuffix(_EXPLAIN), path)
            routing = self._control.routing
            return {
                "GET": Match(lambda http, _: explain_api.explain(routing, http, model), Scope.INFER)
            }
        name = segment(path.removeprefix(_MODELS), path)
        return get(lambda: json_response(self._control.model(name)))

    def _deployment(self, path: str) -> Methods:
        control, definitions = self._control, self._control.definitions
        place, _, what = path.removeprefix(_DEPLOYMENTS).partition("/")
        name = segment(place, path)
        if what == "history":
            return get(lambda: json_response(definitions.history(name)))
        if what == "diff":
            return {
                "GET": Match(
                    lambda http, _: deployments_api.diff(definitions, http, name), Scope.INFER
                )
            }
        if what == "rollout":
            rollouts = control.rollouts
            return {
                **get(lambda: rollout_api.show(rollouts, name)),
                "POST": self._shared(
                    Scope.DEPLOY, lambda http: rollout_api.ask(rollouts, http, name)
                ),
            }
        if what == "rollback":
            return {
                "POST": self._shared(
                    Scope.DEPLOY, lambda http: deployments_api.rollback(definitions, http, name)
                )
            }
        if what:
            raise unknown(path)
        return {
            "GET": Match(
                lambda http, _: deployments_api.show(definitions, http, name), Scope.INFER
            ),
            "PUT": _elsewhere_too(
                Scope.DEPLOY,
                lambda http, request_id: deployments_api.apply(control, http, request_id, name),
            ),
            "PATCH": self._shared(
                Scope.DEPLOY, lambda http: deployments_api.change(definitions, http, name)
            ),
            "DELETE": self._shared(
                Scope.DEPLOY, lambda http: deployments_api.remove(definitions, http, name)
            ),
        }

    def _artifact(self, path: str) -> Methods:
        place = unquote(path.removeprefix(_ARTIFACTS))
        if place.count("/") != 1:
            raise unknown(path)
        return {
            "DELETE": self._shared(
                Scope.DEPLOY, lambda http: artifacts_api.withdraw(self._control, http, place)
            )
        }

    def _key(self, path: str) -> Methods:
        key = segment(path.removeprefix(_KEYS), path)
        return {
            "PUT": self._shared(
                Scope.ADMIN, lambda http: mesh_api.limit_key(self._control, http, key)
            ),
            "DELETE": self._shared(
                Scope.ADMIN, lambda http: json_response(self._control.revoke_key(key, http.caller))
            ),
        }

    def _role(self, path: str) -> Methods:
        node = segment(path.removeprefix(_ROLES), path)
        return {
            "PUT": self._shared(
                Scope.ADMIN, lambda http: trust_api.set_role(self._control, http, node), Role.ADMIN
            )
        }

    def _drain(self, path: str) -> Methods:
        if not path.endswith(_DRAIN):
            raise unknown(path)
        node = segment(path.removeprefix(_NODES).removesuffix(_DRAIN), path)
        drains = self._control.drains
        return {
            "GET": Match(lambda _http, _id: drain_api.show(drains, node), Scope.INFER),
            "PUT": self._shared(Scope.ADMIN, lambda http: drain_api.begin(drains, http, node)),
            "DELETE": self._shared(Scope.ADMIN, lambda http: drain_api.undo(drains, http, node)),
        }

    def _upload(self, path: str) -> Methods:
        control = self._control
        upload, slash, index = path.removeprefix(_UPLOADS).partition("/")
        upload = segment(upload, path)
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

    def _readyz(self) -> HttpResponse:
        is_ready, reason = self._control.ready()
        body = {"ready": is_ready} if is_ready else {"ready": is_ready, "reason": reason}
        return json_response(body, 200 if is_ready else 503)

    def _expose(self, http: HttpRequest, _request_id: str) -> HttpResponse:
        metrics = chain(self._metrics, self._control.metrics())
        body, content_type = exposition(metrics, http.headers.get("accept", ""))
        return HttpResponse(200, {"Content-Type": content_type}, body)


def _elsewhere_too(scope: Scope, answer: Handler) -> Match:
    """Return a change whose handler finds out by itself whether another node has to make it."""
    return Match(answer, scope, takes_body=True, forwarded=True)


def _file_number(text: str, path: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise unknown(path)
    return int(text)


_TAG = "Supervisors"
_OPERATIONS = (
    Operation("GET", "/healthz", "Whether the gateway answers", _TAG, answer={"type": "object"}),
    Operation("GET", "/readyz", "Whether the node is in its mesh", _TAG, answer={"type": "object"}, also=(503,)),
    Operation(
        "GET", "/metrics", "Metrics for Prometheus", _TAG,
        media_types=("text/plain", "application/openmetrics-text"),
    ),
)  # fmt: skip
