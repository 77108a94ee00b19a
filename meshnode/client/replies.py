"""What a gateway's answer means: a result, an error, or a reason to ask another gateway. Pure."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from meshnode.client.plan import Failure, Fault, GiveUp
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    GatewayUnavailable,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    NoReplica,
    PeerError,
    ProtocolError,
    Saturated,
    TooLarge,
    Unauthenticated,
    error_of,
)
from meshnode.limits import MAX_SENTENCE_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.client.calls import Reply
    from meshnode.client.endpoints import Endpoint

ERROR_HEADER: Final = "mesh-error"
"""Header with the code of an error, for dialects whose bodies have none."""

_TRY_ELSEWHERE: Final = frozenset({429, 502, 503})
_NOTHING_RAN: Final = frozenset({"saturated", "no_replica", "not_serving"})
_FINAL: Final = frozenset({"deadline", "cancelled"})
"""Codes that another gateway cannot mend, whatever status they come with."""

_THROTTLED: Final = "throttled"
"""The code of a key whose rate is used up: it may ask again when the gateway says so, if it says so."""

_BY_STATUS: Final[dict[int, type[MeshError]]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: ModelNotFound,
    413: TooLarge,
    429: Saturated,
    503: NoReplica,
    504: DeadlineExceeded,
}  # for answers without a code: those of a proxy, or of another server of the same protocol


def failure_of(reply: Reply) -> Failure | None:
    """Return why another gateway should be asked instead; None if this answer counts."""
    if reply.status not in _TRY_ELSEWHERE:
        return None
    error = error_of_reply(reply)
    retry_after_s = _retry_after_s(reply.headers)
    if error.code in _FINAL or (error.code == _THROTTLED and retry_after_s is None):
        return None
    nothing_ran = reply.status == 429 or _code_of(reply) in _NOTHING_RAN
    return Failure(
        reply.gateway,
        Fault.REFUSED if nothing_ran else Fault.UNWELL,
        str(error),
        retry_after_s,
        error,
    )


def error_of_reply(reply: Reply) -> MeshError:
    """Return an answer of status 300 or more as the project's own error."""
    sentence = f"{reply.url} answered with HTTP status {reply.status}"
    document = _document(reply)
    told = document.get("error")
    if isinstance(told, str) and told:
        sentence = told[:MAX_SENTENCE_LENGTH]
    elif location := reply.headers.get("location"):
        sentence += f", a redirection to {location[:200]!r}, which is not followed; use that URL"
    code = _code_of(reply)
    if reply.status == 404 and not code and not told:
        return ProtocolError(
            f"{sentence}: it is no meshnode gateway, or the URL has a path too many"
        )
    kind = _BY_STATUS.get(reply.status, PeerError)
    error = error_of(code, sentence) if code else kind(sentence)
    error.mesh_route = reply.headers.get("mesh-route", "")
    error.gateway = reply.url
    return error


def error_document(reply: Reply) -> dict[str, object]:
    """Return an error's JSON object, empty if there is none; it may hold more than the sentence."""
    return _document(reply)


def error_of_end(
    end: GiveUp, endpoints: Sequence[Endpoint], timeout_s: float, call: str
) -> MeshError:
    """Return the error for a call that was given up, with each gateway and why.

    Args:
        end: Why it was.
        endpoints: The client's gateways.
        timeout_s: The time that the call had.
        call: The call, such as `POST /mesh/v1/deployments`.
    """
    answered = [failure for failure in end.failures if failure.error is not None]
    last = end.failures[-1] if end.failures else None
    if last is None:
        return DeadlineExceeded(
            f"the time was over before {call} could be sent; give the call a longer timeout_s"
        )
    told = _told(end.failures, endpoints)
    if all(failure.fault is Fault.UNTRUSTED for failure in end.failures):
        return ConfigError("; ".join(told))
    if answered and end.cause != "unrepeatable":
        kind = answered[-1].error
        assert kind is not None
        if len(told) > 1:
            sentence = f"{kind}; tried {'; '.join(told)}"
            error = error_of(kind.code, sentence)
        else:
            error = kind
        error.gateway, error.mesh_route = kind.gateway, kind.mesh_route
        return error
    reasons = "; ".join(told)
    if end.cause == "unrepeatable":
        sentence = (
            f"{reasons}. The call {call} may have been carried out: look before you repeat it"
        )
    elif end.cause == "deadline":
        # What is left of a short time limit when the call begins is not what the caller wrote.
        shown = f"{timeout_s:.2g}" if timeout_s < 1 else f"{timeout_s:.3g}"
        return DeadlineExceeded(f"no answer within {shown} s: {reasons}")
    else:
        sentence = reasons if len(told) == 1 else f"no gateway can be used: {reasons}"
    return GatewayUnavailable(sentence)


def _told(failures: Sequence[Failure], endpoints: Sequence[Endpoint]) -> list[str]:
    """Return a clause for each gateway, with its last failure."""
    by_gateway = {failure.gateway: failure for failure in failures}
    return [f"{endpoints[each]}: {failure.reason}" for each, failure in by_gateway.items()]


def _code_of(reply: Reply) -> str:
    code = _document(reply).get("code") or reply.headers.get(ERROR_HEADER)
    return code if isinstance(code, str) else ""


def _document(reply: Reply) -> dict[str, object]:
    if len(reply.body) > 64 * MAX_SENTENCE_LENGTH:
        return {}  # no error is so long
    try:
        document = json.loads(bytes(reply.body))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `Retry-After`: seconds, or a date, which counts from the answer's own `Date`: no clock of this machine."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else None
    try:
        then, now = (parsedate_to_datetime(each) for each in (text, headers.get("date", "")))
        return max((then - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):  # no dates, or one of them without a zone
        return None
