"""What people say of answers, and where a new version answers otherwise.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/feedback` | POST `{"request", "metrics"?, "label"?}` | infer | `{"request", "model", "version", "counted", "agreed", "note"}` |
| `/mesh/v1/deployments/NAME/rollout/disagreements` | GET | deploy | `{"model", "version", "compared", "disagreed", "no_reference", "reason", "clusters", "examples", "silent"}` |

`request` is the `X-Request-Id` of an answer of a model in a release, and the caller that of the request: the same API key,
or any where it came without one. Any gateway takes it: one that did not give the answer asks those that may have. 404 means
that none remembers it. Examples show what clients sent, so they need the scope `deploy`; `silent` has the names of gateways
that did not say what they saw. `no_reference` counts answers for which there was nothing to compare them with, `reason`
says why, of the last one; `version` is the new version of the release that all of this is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.gateway.disagreements import Seen, joined
from meshnode.gateway.feedback import Counted, Feedback, read_feedback, unknown_answer
from meshnode.gateway.matching import Match, Methods, RouteSet, segment, unknown
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.models.manifest import check_model_name
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.pipeline import Pipeline

_DEPLOYMENTS = "/mesh/v1/deployments/"
_DISAGREEMENTS = "rollout/disagreements"


class FeedbackRoutes:
    """Answers what people say of answers."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Answer from what this gateway's pipeline remembers."""
        self._releasing = pipeline.releasing

    def __repr__(self) -> str:
        return f"<FeedbackRoutes of {self._releasing!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed: dict[str, Methods] = {
            "/mesh/v1/feedback": {"POST": Match(self._feedback, Scope.INFER, takes_body=True)}
        }
        return RouteSet(fixed, {_DEPLOYMENTS: self._deployment}, operations=_OPERATIONS)

    def _deployment(self, path: str) -> Methods:
        place, _, what = path.removeprefix(_DEPLOYMENTS).partition("/")
        if what != _DISAGREEMENTS:
            raise unknown(path)
        name = segment(place, path)
        return {"GET": Match(lambda _http, _id: self._disagreements(name), Scope.DEPLOY)}

    async def _feedback(self, http: HttpRequest, _request_id: str) -> HttpResponse:
        feedback = read_feedback(http.body)
        caller = http.caller.key_id
        counted = self._releasing.tell(feedback, caller)
        if counted is None and self._releasing.others is not None:
            counted = await self._releasing.others.tell(feedback, caller)
        if counted is None:
            raise unknown_answer(feedback.request)
        return json_response(counted)

    async def _disagreements(self, name: str) -> HttpResponse:
        model = check_model_name(name)
        view = self._releasing.mirroring.disagreements.view(model)
        views = [] if view is None else [view]
        seen = (
            Seen()
            if self._releasing.others is None
            else await self._releasing.others.disagreements(model)
        )
        found = joined([*views, *seen.views], self._releasing.live(model))
        return json_response({"model": model, **found, "silent": list(seen.silent)})


_OBJECT: dict[str, Any] = {"type": "object"}
_LIST: dict[str, Any] = {"type": "array", "items": _OBJECT}
_COUNT: dict[str, Any] = {"type": "integer"}

_OPERATIONS = (
    Operation(
        "POST", "/mesh/v1/feedback", "Say how good an answer was, or what would have been right", "Inference",
        body=Feedback, answer=Counted, errors=(404,),
    ),
    Operation(
        "GET", "/mesh/v1/deployments/{model}/rollout/disagreements",
        "Where its new version answers otherwise", "Models and deployments", Scope.DEPLOY,
        answer={
            "type": "object",
            "required": [
                "model", "version", "compared", "disagreed", "no_reference", "reason", "clusters", "examples", "silent",
            ],
            "properties": {
                "model": {"type": "string"}, "version": _COUNT, "compared": _COUNT, "disagreed": _COUNT,
                "no_reference": _COUNT, "reason": {"type": "string"}, "clusters": _LIST, "examples": _LIST,
                "silent": {"type": "array", "items": {"type": "string"}},
            },
        },
    ),
)  # fmt: skip
