"""Jobs as the gateway sees them: what a call asks for, and what is shown of a job.

`JobsControl` is what keeps and runs them (`meshnode.daemon.jobs`); any node answers for any job of the mesh.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

import msgspec

from meshnode.errors import InvalidRequest, TooLarge
from meshnode.jobs.job import Headers, Job, JobState, JobStatus, Told, expires_at_ms
from meshnode.limits import (
    MAX_IDEMPOTENCY_KEY_LENGTH,
    MAX_JOB_HEADERS_BYTES,
    MAX_MODEL_NAME_LENGTH,
)
from meshnode.trust.records import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.types import Buffer

JOBS: Final = "/mesh/v1/jobs"

_CALL_HEADERS: Final = frozenset(
    {
        "accept",
        "cache-control",
        "content-encoding",
        "content-type",
        "inference-header-content-length",
    }
    | {"traceparent", "tracestate"}
)
"""Headers of a call that matter for its answer; `mesh-*` as well."""

ANSWER_HEADERS: Final = frozenset(
    {
        "cache-control",
        "content-type",
        "content-encoding",
        "content-disposition",
        "inference-header-content-length",
        "retry-after",
    }
)
"""Headers of an answer that are kept with it; `mesh-*` as well."""

_WEBHOOK: Final = "mesh-webhook"
_WEBHOOK_SECRET: Final = "mesh-webhook-secret"  # noqa: S105 - a header's name
_MODEL_IN_BODY: Final = "/v1/"
_MODEL_IN_PATH: Final = re.compile(r"/(?:models|inference|predictions)/([^/:]+)")


_RESPOND_LATER: Final = "respond-async"
_QUOTED: Final = re.compile(r'"(?:\\.|[^"\\])*(?:"|$)')


class _Named(msgspec.Struct):
    model: str = ""


class Wish(NamedTuple):
    """A call that is to be made a job.

    Attributes:
        path: Of the call, as sent.
        query: Likewise.
        headers: Those that matter for its answer.
        body: Of the call.
        caller: Who asks.
        model: The model that its path names, or its body in the API of OpenAI; empty if neither does.
        webhook: Where its end is told; empty for nowhere.
        secret: Signs that; empty to have one made.
        key: The caller's idempotency key; empty without one.
        request_id: Of the call.
    """

    path: str
    query: str
    headers: Headers
    body: Buffer
    caller: Caller
    model: str
    webhook: str
    secret: str
    key: str
    request_id: str


class Asked(NamedTuple):
    """Which jobs a list is to show.

    Attributes:
        status: Only those that are so; None for all.
        limit: At most so many.
        before_ms: Only those made before this moment, or
        after: at this moment, with a greater id than this.
    """

    status: JobStatus | None
    limit: int
    before_ms: int
    after: str


class Listed(NamedTuple):
    """A page of jobs: the newest first.

    Attributes:
        jobs: Each with how it fares.
        more: Whether there are others after the last of these.
        silent: Names of nodes that may keep others, and did not answer.
    """

    jobs: list[tuple[Job, JobState]]
    more: bool
    silent: list[str]


class JobsControl(Protocol):
    """What keeps and runs jobs."""

    async def submit(self, wish: Wish) -> tuple[Job, JobState]:
        """Accept a job: two live nodes have it on disk, where there are two.

        Raises:
            IdempotencyKeyReused: if the caller's key came with another call before.
            Forbidden: if the webhook leads to where it may not.
            NotServing: if it cannot be kept; it will not run then.
            Saturated: likewise, for want of room.
        """
        ...

    async def find(self, job_id: str, caller: Caller) -> tuple[Job, JobState]:
        """Return a job; NotFound if this caller has none of this id, NotServing if nobody knows for now."""
        ...

    async def result(self, job_id: str, caller: Caller) -> tuple[Job, JobState, Buffer]:
        """Return a job that has ended, with the body of its result; errors as `find`, and those of no result."""
        ...

    async def cancel(self, job_id: str, caller: Caller) -> tuple[Job, JobState]:
        """Cancel a job unless it has ended; errors as `find`."""
        ...

    async def listed(self, asked: Asked, caller: Caller) -> Listed:
        """Return the caller's jobs on the whole mesh; those of all callers for an admin."""
        ...

    def name_of(self, node: str) -> str:
        """Return a node's name, or its id if it is not known any more."""
        ...


def wish_of(http: HttpRequest, request_id: str, path: str | None = None) -> Wish:
    """Return the job that a call asks for.

    Args:
        http: The call.
        request_id: Its id.
        path: The path that runs the model, where that is another than the call's.

    Raises:
        InvalidRequest: if its idempotency key is none.
        TooLarge: if its headers are too large to be kept.
    """
    headers = call_headers(http.headers)
    key = http.headers.get("idempotency-key", "")
    if not key and "idempotency-key" in http.headers:
        raise InvalidRequest("the Idempotency-Key is empty; send one of your own, or none")
    if len(key) > MAX_IDEMPOTENCY_KEY_LENGTH or not key.isprintable():
        raise InvalidRequest(
            f"an Idempotency-Key has at most {MAX_IDEMPOTENCY_KEY_LENGTH} printable characters"
        )
    path = http.path if path is None else path
    found = _MODEL_IN_PATH.search(path)
    return Wish(
        path=path,
        query=http.query,
        headers=headers,
        body=http.body,
        caller=http.caller,
        model=found[1][:MAX_MODEL_NAME_LENGTH] if found else _named(path, http),
        webhook=http.headers.get(_WEBHOOK, ""),
        secret=http.headers.get(_WEBHOOK_SECRET, ""),
        key=key,
        request_id=request_id,
    )


def answer_headers(headers: Mapping[str, str]) -> Headers:
    """Return the headers of an answer that are kept with it; TooLarge if they are too large."""
    return kept_headers(headers, ANSWER_HEADERS)


def prefers_later(headers: Mapping[str, str]) -> bool:
    """Whether a call asks for a job: `Prefer: respond-async`, among other preferences (RFC 7240).

    How long its caller would wait for an answer (`wait`) is not observed, as any preference may be.
    """
    listed = headers.get("prefer")
    if listed is None:
        return False
    for each in _QUOTED.sub('""', listed).split(","):
        name, _, value = each.partition(";")[0].partition("=")
        if name.strip().lower() == _RESPOND_LATER and value.strip() in ("", '""'):
            return True
    return False


def _named(path: str, http: HttpRequest) -> str:
    """Return the model that the body of a call of OpenAI's API names, or another's query; empty if it names none."""
    if not path.startswith(_MODEL_IN_BODY) or "content-encoding" in http.headers:
        return dict(parse_qsl(http.query)).get("model", "")[:MAX_MODEL_NAME_LENGTH]
    try:
        return msgspec.json.decode(http.body, type=_Named).model[:MAX_MODEL_NAME_LENGTH]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""  # the call itself says what is wrong with it


def call_headers(headers: Mapping[str, str]) -> Headers:
    """Return the headers of a call that are kept with it; TooLarge if they are too large."""
    return kept_headers(headers, _CALL_HEADERS)


def kept_headers(headers: Mapping[str, str], names: frozenset[str]) -> Headers:
    """Return headers in lower case: the named ones, and `mesh-*` except those about webhooks.

    Raises:
        TooLarge: if they are too large to be kept.
    """
    found = tuple(
        (name.lower(), value)
        for name, value in headers.items()
        if name.lower() in names
        or (name.lower().startswith("mesh-") and not name.lower().startswith(_WEBHOOK))
    )
    if sum(len(name) + len(value) for name, value in found) > MAX_JOB_HEADERS_BYTES:
        raise TooLarge(f"a job's headers have at most {MAX_JOB_HEADERS_BYTES} bytes")
    return found


def document(job: Job, state: JobState, control: JobsControl) -> dict[str, Any]:
    """Return a job as it is shown."""
    end = state.outcome
    url = f"{JOBS}/{job.id}"
    failed = end is not None and end.status is JobStatus.FAILED
    node = state.node if end is None else end.node
    return {
        "id": job.id,
        "status": str(state.status),
        "progress": _progress(state),
        "model": job.model,
        "path": job.path,
        "created_at": _time(job.created_at_ms),
        "started_at": _time(state.started_at_ms),
        "finished_at": None if end is None else _time(end.finished_at_ms),
        "expires_at": _time(expires_at_ms(job, state)),
        "attempt": state.attempt,
        "node": control.name_of(node) if node else None,
        "error": (
            {"error": end.error, "code": end.code, "status": end.http_status or None}
            if end is not None and failed
            else None
        ),
        "webhook": None if job.webhook is None else _webhook(job.webhook.url, state),
        "url": url,
        "result_url": f"{url}/result",
        "events_url": f"{url}/events",
    }


def _progress(state: JobState) -> float | None:
    if state.status is JobStatus.SUCCEEDED:
        return 1.0
    return round(state.progress, 4) if state.progress >= 0 else None


def _webhook(url: str, state: JobState) -> dict[str, str]:
    words = {Told.WAITING: "waiting", Told.GIVEN_UP: "failed", Told.DELIVERED: "delivered"}
    return {"url": url.partition("?")[0], "state": words[state.told]}


def _time(moment_ms: int) -> str | None:
    return rfc3339(moment_ms / 1000) if moment_ms else None
