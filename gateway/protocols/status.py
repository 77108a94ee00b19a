"""Which HTTP status an error has, and its JSON body.

| status | errors |
|---|---|
| 400 | everything else that the caller did wrong |
| 401 | `Unauthenticated`; with WWW-Authenticate |
| 403 | `Forbidden` |
| 404 | `ModelNotFound`, `NotFound` |
| 413 | `TooLarge` |
| 429 | `Throttled`; with Retry-After |
| 503 | the mesh cannot now: no replica, queues full, link lost, deadline; with Retry-After unless the deadline passed |
| 500 | a model or a peer misbehaved |

A full queue is 503 and not 429, and so is a passed deadline: Triton spells both this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
    NotFound,
    NotServing,
    Saturated,
    Throttled,
    TooLarge,
    Unauthenticated,
    UsageError,
)
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

RETRY_AFTER_S = "1"
"""A replica returns to service, or another takes over, within about a second."""

_RETRY_LATER = (NoReplica, Saturated, NotServing, LinkLost)
_STATUS: tuple[tuple[type[MeshError] | tuple[type[MeshError], ...], int], ...] = (
    ((ModelNotFound, NotFound), 404),
    (TooLarge, 413),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (Throttled, 429),
    (UsageError, 400),
    (_RETRY_LATER, 503),
    ((DeadlineExceeded, Cancelled), 503),
    (MeshError, 500),
)


class HttpRefusal(Exception):
    """A request is refused for its HTTP form; nothing was changed.

    It never leaves the HTTP edge, so it is no `MeshError`.

    Attributes:
        status: 404, 405, 408, ...
        headers: What the answer needs besides its content type.
    """

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


def status_of(error: MeshError) -> int:
    """Return the HTTP status of an error."""
    return status_of_kind(type(error))


def status_of_kind(kind: type[MeshError]) -> int:
    """Return the HTTP status that errors of a class have."""
    return next(status for kinds, status in _STATUS if issubclass(kind, kinds))


def error_response(error: MeshError, *, with_code: bool = False) -> HttpResponse:
    """Return the JSON answer for an error: `{"error": sentence}`.

    Its code is in the header `Mesh-Error`, also where a dialect's bodies have no place for it.

    Args:
        error: What went wrong.
        with_code: Add `"code"`, the stable word for programs, as `/mesh/v1` does.
    """
    headers = {"Content-Type": "application/json", "Mesh-Error": error.code}
    if isinstance(error, _RETRY_LATER):
        headers["Retry-After"] = RETRY_AFTER_S
    elif isinstance(error, Throttled):
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="meshnode"'
    if error.mesh_route:
        headers["Mesh-Route"] = error.mesh_route
    sentence = str(error) or f"the request failed ({error.code})"
    return _response(status_of(error), sentence, error.code if with_code else "", headers)


def refusal_response(refusal: HttpRefusal, *, with_code: bool = False) -> HttpResponse:
    """Return the JSON answer for a refusal; its code is `http`."""
    headers = {"Content-Type": "application/json", **refusal.headers}
    return _response(refusal.status, str(refusal), "http" if with_code else "", headers)


def failure_response(request_id: str, *, with_code: bool = False) -> HttpResponse:
    """Return the JSON answer for a defect of ours: the details are in the log, under this id."""
    sentence = f"the gateway failed to handle this request; its log has request {request_id}"
    return _response(500, sentence, "internal" if with_code else "", dict(JSON_HEADERS))


def _response(status: int, sentence: str, code: str, headers: dict[str, str]) -> HttpResponse:
    body = {"error": sentence, "code": code} if code else {"error": sentence}
    return HttpResponse(status, headers, msgspec.json.encode(body))
