"""`/mesh/v1/deployments/NAME/rollout`: how a release stands, and what operators ask of it.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/deployments/NAME/rollout` | GET | infer | how the release stands; 404 without one |
| `/mesh/v1/deployments/NAME/rollout` | POST `{"verb", "reason"?}` | deploy | 202 the same; the steward obeys within a second or two |

Verbs are `promote`, `pause`, `resume`, `abort` and `undo`; `"verbs"` in the answer has those that can be asked now, and
what came of them is in `"decisions"` (the last that the node that is asked has heard of, the oldest first). Steps are
counted from 1: 0 while the new version's replicas start, one more than there are steps once it answers everything.
Shares are 0 to 1, run times milliseconds. `"arms"` has both versions on each class of devices, `"gates"` what each gate
says of them; `"verdict"` is `pass`, `fail` or `inconclusive`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import MAX_RELEASE_REASON_LENGTH
from meshnode.models.manifest import check_model_name
from meshnode.state.release import Verb
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.protocols.caller import Caller


class RolloutControl(Protocol):
    """What the daemon lets the gateway read and ask of releases."""

    def show(self, name: str) -> dict[str, Any]:
        """Describe the release of a deployment; ModelNotFound or NotFound if there is none."""
        ...

    def ask(self, name: str, verb: Verb, reason: str, caller: Caller) -> dict[str, Any]:
        """Ask something of a release, and describe it; InvalidRequest if that cannot be asked of it."""
        ...


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    verb: Verb
    reason: Annotated[str, msgspec.Meta(max_length=MAX_RELEASE_REASON_LENGTH // 2)] = ""


def show(control: RolloutControl, name: str) -> HttpResponse:
    """Answer `GET /mesh/v1/deployments/NAME/rollout`."""
    return json_response(control.show(check_model_name(name)))


def ask(control: RolloutControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `POST /mesh/v1/deployments/NAME/rollout`."""
    wish = decode_body(http, _Order)
    return json_response(
        control.ask(check_model_name(name), wish.verb, wish.reason, http.caller), 202
    )


_TAG = "Models and deployments"
_PATH = "/mesh/v1/deployments/{model}/rollout"
_OBJECT: dict[str, Any] = {"type": "object"}

OPERATIONS = (
    Operation("GET", _PATH, "How its release stands", _TAG, answer=_OBJECT),
    Operation(
        "POST", _PATH, "Promote, pause, resume, abort or undo its release", _TAG, Scope.DEPLOY, _Order, _OBJECT, 202,
    ),
)  # fmt: skip
"""What the routes do whose answers are here."""
