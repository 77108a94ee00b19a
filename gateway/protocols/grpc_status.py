"""Which gRPC status an error has.

| code | errors |
|---|---|
| 1 CANCELLED | `Cancelled` |
| 3 INVALID_ARGUMENT | everything else that the caller did wrong |
| 4 DEADLINE_EXCEEDED | `DeadlineExceeded` |
| 5 NOT_FOUND | `ModelNotFound`, `NotFound` |
| 7 PERMISSION_DENIED | `Forbidden` |
| 8 RESOURCE_EXHAUSTED | `TooLarge`, `Throttled` |
| 12 UNIMPLEMENTED | what is answered with 501 or 405 over HTTP |
| 13 INTERNAL | a model or a peer misbehaved |
| 14 UNAVAILABLE | the mesh cannot now: no replica, queues full, link lost |
| 16 UNAUTHENTICATED | `Unauthenticated` |

A full queue is UNAVAILABLE, as in Triton; `grpc-retry-pushback-ms` says how long to wait where waiting helps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    MeshError,
    ModelNotFound,
    NotFound,
    SequenceLost,
    Throttled,
    TooLarge,
    Unauthenticated,
)
from meshnode.gateway.protocols.status import HttpRefusal, error_response, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
ABORTED: Final = 10
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16

NAMES: Final = {
    0: "OK", 1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND",
    7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 10: "ABORTED", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}  # fmt: skip
"""The codes that are answered with, by their numbers."""

_CODES: Final[tuple[tuple[type[MeshError] | tuple[type[MeshError], ...], int], ...]] = (
    ((ModelNotFound, NotFound), NOT_FOUND),
    ((TooLarge, Throttled), RESOURCE_EXHAUSTED),
    (Unauthenticated, UNAUTHENTICATED),
    (Forbidden, PERMISSION_DENIED),
    (DeadlineExceeded, DEADLINE_EXCEEDED),
    (Cancelled, CANCELLED),
    # As gRPC has it: no use in sending this call again, but in what it is a part of from the beginning.
    (SequenceLost, ABORTED),
)
_OF_HTTP: Final = {
    400: INVALID_ARGUMENT, 401: UNAUTHENTICATED, 403: PERMISSION_DENIED, 404: NOT_FOUND, 405: UNIMPLEMENTED,
    413: RESOURCE_EXHAUSTED, 429: RESOURCE_EXHAUSTED, 501: UNIMPLEMENTED, 503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}  # fmt: skip


class Status(NamedTuple):
    """How a call ends that failed.

    Attributes:
        code: The status code.
        sentence: For people.
        metadata: Trailing metadata, keys in lower case.
    """

    code: int
    sentence: str
    metadata: tuple[tuple[str, str], ...] = ()


def code_of(error: MeshError) -> int:
    """Return the status code of an error."""
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return code
    return code_of_http(status_of(error))


def code_of_http(status: int) -> int:
    """Return the status code that says what an HTTP status says."""
    known = _OF_HTTP.get(status)
    if known is not None:
        return known
    return INVALID_ARGUMENT if 400 <= status < 500 else INTERNAL


def status_from(error: MeshError) -> Status:
    """Return how a call ends with an error; its code is in the metadata `mesh-error`, as over HTTP."""
    told = error_response(error)
    return Status(
        code_of(error), str(error) or f"the request failed ({error.code})", metadata(told.headers)
    )


def status_from_refusal(refusal: HttpRefusal) -> Status:
    """Return how a call ends that a REST path refuses for its form."""
    return Status(code_of_http(refusal.status), str(refusal), metadata(refusal.headers))


_TOLD = frozenset({"age", "idempotent-replayed", "retry-after"})
"""Headers that are told as they are, besides ours."""


def metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what the headers of an answer say, as metadata: ours, and how long to wait."""
    told = [
        (name.lower(), value)
        for name, value in headers.items()
        if name.lower().startswith("mesh-") or name.lower() in _TOLD
    ]
    wait = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    if wait.isdigit():
        told.append(("grpc-retry-pushback-ms", str(1000 * int(wait))))
    return tuple(told)
