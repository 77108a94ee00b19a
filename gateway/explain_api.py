"""The part of `/mesh/v1` that tells how this gateway decides.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/models/MODEL/explain?version=N&rows=N&bytes=N&tokens=N&timeout_s=N` | GET | infer | below |
| `/mesh/v1/decisions` | GET | admin | the last decisions with all that they were made from, oldest first |

All of the query may be left out. `Mesh-Region`, `Mesh-Labels` and `Mesh-Session` are read as of a request.

The explanation is `{"gateway", "model", "version", "reason", "estimated", "candidates", "excluded"}`: `reason` is that of the
likeliest candidate as in `Mesh-Route`, or empty; `estimated` says that odds were counted in draws, as of many
candidates each request looks at some. A candidate is `{"node", "name", "region", "odds", "expected_ms", "terms",
"slots", "queued", "outstanding", "report_age_s", "link", "breaker", "dropped", "later"}`, the likeliest first; `dropped` is why it cannot take
the request, `later` why others are asked first, both else empty. What is excluded is `{"name", "reason"}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.hints import hints_of
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import (
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_REQUEST_TIMEOUT_S,
    MAX_VERSION,
)
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.types import RoutingHints

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_BODY_BYTES)]


class AskedFor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request that is to be explained, as its query says.

    Attributes:
        version: The version that it insists on.
        rows: Of its first input.
        bytes: Of all its inputs.
        tokens: That it may write at most.
        timeout_s: Time that it has.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)] | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=MAX_BODY_BYTES)] = 1
    bytes: _Count = 0
    tokens: _Count = 0
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_REQUEST_TIMEOUT_S)] = (
        DEFAULT_REQUEST_TIMEOUT_S
    )


class RoutingControl(Protocol):
    """What the daemon lets the gateway tell of how it decides."""

    def explain(self, model: str, asked: AskedFor, hints: RoutingHints) -> dict[str, Any]:
        """Tell where a request would go, and why; ModelNotFound if there is no such model."""
        ...

    def decisions(self) -> Sequence[object]:
        """Return the last decisions, oldest first."""
        ...


def explain(routing: RoutingControl, http: HttpRequest, model: str) -> HttpResponse:
    """Answer `GET /mesh/v1/models/MODEL/explain`.

    Raises:
        InvalidRequest: if the query or a header is not of its form.
    """
    fields = parse_qsl(http.query, keep_blank_values=True)
    try:
        asked = msgspec.convert(dict(fields), AskedFor, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(AskedFor.__struct_fields__)
        raise InvalidRequest(f"the query: {error}; it takes {names}, each a number") from None
    return json_response(routing.explain(model, asked, hints_of(http.headers)))


def decisions(routing: RoutingControl) -> HttpResponse:
    """Answer `GET /mesh/v1/decisions`."""
    body = msgspec.json.encode(routing.decisions())
    return HttpResponse(200, {"Content-Type": "application/json"}, body)


_NUMBERS = (
    ("version", "The version that it insists on"),
    ("rows", "Rows of its first input"),
    ("bytes", "Size of its inputs"),
    ("tokens", "Tokens that it may write"),
    ("timeout_s", "Seconds that it has"),
)
_OBJECT = {"type": "object"}
_LIST = {"type": "array", "items": _OBJECT}

OPERATIONS = (
    Operation(
        "GET", "/mesh/v1/models/{model}/explain", "Where a request would go, and why", "Models",
        answer=_OBJECT, query=_NUMBERS,
    ),
    Operation(
        "GET", "/mesh/v1/decisions", "The last decisions about requests", "Mesh", Scope.ADMIN,
        answer=_LIST,
    ),
)  # fmt: skip
"""What the routes do whose answers are here."""
