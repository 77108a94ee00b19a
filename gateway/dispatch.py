"""Which handler answers a path, without a web framework.

The server asks `match` with a request's method and path before it reads a body: unknown paths,
wrong methods and callers without the match's scope are refused then. It calls the match with the
whole request later; the answer comes at once where it can, and as an awaitable where it must.

| path | method | scope | |
|---|---|---|---|
| `/v2/...` | | | Open Inference Protocol: `oip_routes` |
| `/ping`, `/predictions/M`, `/models/...` | | | TorchServe: `torchserve_routes` |
| `/inference/M`, `/predict` | POST | infer | a document, values or a file: `endpoint_routes` |
| `/v1/...` | | | OpenAI and TensorFlow Serving: `openai_routes`, `tfserving_routes` |
| `/mesh/v1/...` | | | `mesh_routes` |
| `/healthz`, `/readyz`, `/metrics` | GET | infer | for supervisors and Prometheus |

Any other path is looked up among those at which models are offered (`deploy --path`) and the routes that they
bring (`meshnode.models.routes`); they need `infer`.

HEAD is answered as GET is; the server leaves the body out.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from meshnode.gateway import torchserve_routes
from meshnode.gateway.docs_page import DocsPage
from meshnode.gateway.endpoint_routes import EndpointRoutes
from meshnode.gateway.event_streams import EventStreams
from meshnode.gateway.feedback_api import FeedbackRoutes
from meshnode.gateway.inference import Inference
from meshnode.gateway.jobs_api import prefers_later
from meshnode.gateway.jobs_routes import JobsRoutes
from meshnode.gateway.matching import (
    Handler,
    Match,
    Methods,
    Reply,
    RouteSet,
    by_method,
)
from meshnode.gateway.mesh_routes import MeshRoutes
from meshnode.gateway.model_calls import ModelCalls
from meshnode.gateway.native_routes import NativeRoutes
from meshnode.gateway.oip_repository_routes import OipRepositoryRoutes
from meshnode.gateway.oip_routes import OipRoutes
from meshnode.gateway.openai_routes import OpenAIRoutes
from meshnode.gateway.protocols import native
from meshnode.gateway.protocols.event_ids import LAST_EVENT_ID
from meshnode.gateway.protocols.status import CODED, PLAIN, ErrorForm, HttpRefusal
from meshnode.gateway.tfserving_routes import TensorFlowServingRoutes, v1_error_form
from meshnode.limits import MAX_REMEMBERED_PATHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.operations import Operation
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.protocols.http import HttpRequest

_ERROR_FORMS: Final[tuple[tuple[str, Callable[[str], ErrorForm]], ...]] = (
    ("/mesh/v1/models/", lambda _path: native.ERRORS),
    ("/mesh/", lambda _path: CODED),
    ("/predictions/", torchserve_routes.error_form),
    ("/explanations/", torchserve_routes.error_form),
    ("/models", torchserve_routes.error_form),
    ("/ping", torchserve_routes.error_form),
    ("/v1/", v1_error_form),
)
"""How errors are told below the beginning of a path, given the path; `PLAIN` elsewhere."""


class Dispatcher:
    """The routes of a node, the same at every entrance.

    Attributes:
        operations: What the routes do, for the description of the API.
        streams: Answers that are being streamed, for whoever closes the entrances.
        oip: The Open Inference Protocol's part.
        respond_later: Makes a job of an inference (`Prefer: respond-async`); None as long as nothing does.
        answer_once: Answers a POST that has an `Idempotency-Key`; None as long as nothing does.
    """

    def __init__(
        self, pipeline: Pipeline, control: MeshControl, metrics: GatewayMetrics, *more: RouteSet
    ) -> None:
        """Answer from these, and from parts that the daemon brings."""
        self.inference = Inference(pipeline, metrics)
        calls = ModelCalls(self.inference)
        self._endpoint = EndpointRoutes(self.inference, calls, lambda: self.respond_later)
        self.operations: tuple[Operation, ...] = ()
        self.streams = EventStreams()
        self.respond_later: Handler | None = None
        self.answer_once: Callable[[Match, HttpRequest, str], Reply] | None = None
        self._fixed: dict[str, Methods] = {}
        self._below: dict[str, Callable[[str], Methods]] = {}
        self._worth_remembering: frozenset[str] = frozenset()
        self._remembered: dict[tuple[str, str], Match] = {}
        self.oip = OipRoutes(self.inference, control)
        self.add(self.oip.routes())
        self.add(OipRepositoryRoutes(control).routes())
        decoded = self._endpoint.decoded
        self.add(torchserve_routes.TorchServeRoutes(self.inference, control, decoded).routes())
        self.add(self._endpoint.routes())
        self.add(MeshRoutes(control, metrics).routes())
        self.add(NativeRoutes(self.inference, control, self.streams).routes())
        self.add(FeedbackRoutes(pipeline).routes())
        self.add(
            DocsPage(lambda: self.operations, lambda: pipeline.table, self.error_form).routes()
        )
        self.add(OpenAIRoutes(self.inference).routes())
        self.add(TensorFlowServingRoutes(self.inference, control).routes())
        jobs = JobsRoutes(control, calls.offered_at)
        self.add(jobs.routes())
        self.respond_later = jobs.respond_later
        for part in more:
            self.add(part)

    def __repr__(self) -> str:
        return f"<Dispatcher of {len(self._fixed) // 2} paths and {len(self._below)} folders>"

    def add(self, part: RouteSet) -> None:
        """Answer the routes of one more part."""
        for path, methods in part.fixed.items():
            self._fixed[path] = self._fixed[f"{path}/"] = {**self._fixed.get(path, {}), **methods}
        below = dict(self._below)
        for prefix, routes in part.below.items():
            below[prefix] = partial(_either, below[prefix], routes) if prefix in below else routes
        self._below = {prefix: below[prefix] for prefix in sorted(below, key=len, reverse=True)}
        self._worth_remembering |= part.remembered
        self.operations += part.operations

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
            return by_method(routes, method)
        prefix = next((prefix for prefix in self._below if path.startswith(prefix)), None)
        if prefix is None:
            return by_method(self._endpoint.of_models(path), method)
        found = by_method(self._below[prefix](path), method)
        if prefix not in self._worth_remembering:
            return found
        if len(self._remembered) >= MAX_REMEMBERED_PATHS:
            self._remembered.clear()
        self._remembered[method, path] = found
        return found

    def answer(self, match: Match, http: HttpRequest, request_id: str) -> Reply:
        """Answer a request by its match, whatever its headers ask for besides."""
        headers = http.headers
        if http.method == "POST" and not (match.goes_on and LAST_EVENT_ID in headers):
            if match.infers and self.respond_later is not None and prefers_later(headers):
                return self.respond_later(http, request_id)
            once = self.answer_once
            if once is not None and "idempotency-key" in headers and not match.answers_once:
                return once(match, http, request_id)
        return match.answer(http, request_id)

    def error_form(self, path: str) -> ErrorForm:
        """Return how errors are told at a path, known or not."""
        for prefix, form in _ERROR_FORMS:
            if path.startswith(prefix):
                return form(path)
        return PLAIN


def _either(one: Callable[[str], Methods], other: Callable[[str], Methods], path: str) -> Methods:
    """Return the routes that two parts have below the same beginning of a path.

    Raises:
        HttpRefusal: if neither has any.
    """
    try:
        found = one(path)
    except HttpRefusal:
        return other(path)
    try:
        return {**found, **other(path)}
    except HttpRefusal:
        return found
