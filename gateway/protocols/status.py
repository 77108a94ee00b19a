"""Which HTTP status an error has, and its JSON body.

| status | errors |
|---|---|
| 400 | everything else that the caller did wrong |
| 401 | `Unauthenticated`; with WWW-Authenticate |
| 403 | `Forbidden` |
| 404 | `ModelNotFound`, `NotFound` |
| 409 | `JobUnfinished`, `JobCancelled`, `StaleRevision` |
| 413 | `TooLarge` |
| 415 | `UnsupportedMedia` |
| 422 | `IdempotencyKeyReused` |
| 429 | `Throttled`; with Retry-After |
| 504 | `NotCached`, as RFC 9111 has it |
| 503 | the mesh cannot now: no replica, queues full, link lost, deadline; with Retry-After unless the deadline passed |
| 500 | a model or a peer misbehaved |

A full queue is 503 and not 429, and so is a passed deadline: Triton spells both this way. Its Retry-After is when the
backlog should be worked off, that of the others a second.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    IdempotencyKeyReused,
    JobCancelled,
    JobUnfinished,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
    NotCached,
    NotFound,
    NotServing,
    Saturated,
    SequenceMoved,
    StaleRevision,
    Throttled,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
    UsageError,
)
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse
from meshnode.limits import MAX_RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RETRY_AFTER_S = "1"
"""A replica returns to service, or another takes over, within about a second."""

_RETRY_LATER = (NoReplica, Saturated, NotServing, LinkLost, SequenceMoved)
_STATUS: tuple[tuple[type[MeshError] | tuple[type[MeshError], ...], int], ...] = (
    ((ModelNotFound, NotFound), 404),
    (NotCached, 504),
    ((JobUnfinished, JobCancelled, StaleRevision), 409),
    (IdempotencyKeyReused, 422),
    (TooLarge, 413),
    (UnsupportedMedia, 415),
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


class ErrorForm(NamedTuple):
    """How a dialect tells errors.

    Attributes:
        document: Returns the JSON body for a status, a sentence for people, and a word for programs (the
            error's code; `http` for what is refused for its HTTP form; `internal` for a defect).
        status: Returns the status of an error.
        detailed: Completes a document with what only the error itself knows, such as the member that is wrong.
    """

    document: Callable[[int, str, str], object]
    status: Callable[[MeshError], int] = status_of
    detailed: Callable[[object, MeshError], object] | None = None


def _plain(_status: int, sentence: str, _code: str) -> dict[str, str]:
    return {"error": sentence}


def _coded(_status: int, sentence: str, code: str) -> dict[str, str]:
    return {"error": sentence, "code": code}


PLAIN: Final = ErrorForm(_plain)
"""`{"error": sentence}`: the Open Inference Protocol's body, and that of paths without a dialect."""

CODED: Final = ErrorForm(_coded)
"""`{"error": sentence, "code": word}`, as `/mesh/v1` has it."""


def retry_after(wait_s: float) -> str:
    """Return `Retry-After` for a wait that was worked out, in seconds: whole ones, 1 to `MAX_RETRY_AFTER_S`."""
    return str(math.ceil(min(max(wait_s, 1.0), MAX_RETRY_AFTER_S)))


def error_response(error: MeshError, form: ErrorForm = PLAIN) -> HttpResponse:
    """Return the JSON answer for an error.

    Its code is in the header `Mesh-Error`, also where a dialect's bodies have no place for it.

    Args:
        error: What went wrong.
        form: How the dialect of the path tells it.
    """
    headers = {"Content-Type": "application/json", "Mesh-Error": error.code}
    if isinstance(error, Saturated):
        headers["Retry-After"] = retry_after(error.retry_after_s)
    elif isinstance(error, _RETRY_LATER):
        headers["Retry-After"] = RETRY_AFTER_S
    elif isinstance(error, Throttled):
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="meshnode"'
    if error.mesh_route:
        headers["Mesh-Route"] = error.mesh_route
    sentence = str(error) or f"the request failed ({error.code})"
    status = form.status(error)
    document = form.document(status, sentence, error.code)
    if form.detailed is not None:
        document = form.detailed(document, error)
    return HttpResponse(status, headers, msgspec.json.encode(document))


def refusal_response(refusal: HttpRefusal, form: ErrorForm = PLAIN) -> HttpResponse:
    """Return the JSON answer for a refusal; its code is `http`."""
    headers = {"Content-Type": "application/json", **refusal.headers}
    return _response(form, refusal.status, str(refusal), "http", headers)


def failure_response(request_id: str, form: ErrorForm = PLAIN) -> HttpResponse:
    """Return the JSON answer for a defect of ours: the details are in the log, under this id."""
    sentence = f"the gateway failed to handle this request; its log has request {request_id}"
    return _response(form, 500, sentence, "internal", dict(JSON_HEADERS))


def _response(
    form: ErrorForm, status: int, sentence: str, code: str, headers: dict[str, str]
) -> HttpResponse:
    body = msgspec.json.encode(form.document(status, sentence, code))
    return HttpResponse(status, headers, body)
