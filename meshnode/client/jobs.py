"""Jobs: inferences whose answers are fetched later, as flows of calls.

Every node answers for every job, so all of these may be asked at any gateway, also when the one that took the job is
gone. Making a job carries an idempotency key, which counts in the whole mesh: made again, it is the same job.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec

from meshnode.client.calls import (
    Call,
    Flow,
    Message,
    Pause,
    StreamFlow,
    ask,
    get_document,
    names_of,
    quoted_name,
    with_key,
)
from meshnode.client.event_stream import MEDIA_TYPE
from meshnode.client.infer import InferResult, MetadataCache, encoded_for
from meshnode.client.native import (
    PlainResult,
    exact_result,
    native_call,
    native_document,
    native_inputs,
    plain_result,
    read_answer,
)
from meshnode.client.results import read_as, reply_as
from meshnode.client.streaming import follow
from meshnode.errors import DeadlineExceeded, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.client.calls import Reply
    from meshnode.client.event_stream import ServerEvent
    from meshnode.types import Scalar

JOBS_PATH: Final = "/mesh/v1/jobs"

FIRST_LOOK_S: Final = 0.1
"""After which a job is looked at for the second time; doubled with each look."""

LATER_LOOK_S: Final = 2.0
"""Between two looks at a long job: what takes minutes may be noticed two seconds late."""

_ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed: a sentence, the error's code, and the HTTP status of it."""

    error: str
    code: str = ""
    status: int = 0


class JobWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of a job's end, and whether they were: `waiting`, `delivered` or `failed`."""

    url: str
    state: str = ""


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A job.

    Attributes:
        id: Its id.
        status: `queued`, `running`, `succeeded`, `failed` or `cancelled`.
        progress: From 0 to 1, if the model tells it.
        model: The model that runs.
        created_at: When it was taken, in RFC 3339; so are the other times.
        started_at: When it began to run; None before.
        finished_at: When it ended; None before.
        expires_at: When it and its result are forgotten; None if that is not known yet.
        attempt: How often it was begun.
        node: The node that runs it, or ran it; None before.
        error: Why it failed; None unless it did.
        webhook: Who is told of its end; None for nobody.
        webhook_secret: What the webhook's calls are signed with; told once, to who made the job. Never shown.
    """

    id: str
    status: str
    progress: float | None = None
    model: str = ""
    created_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = None
    attempt: int = 0
    node: str | None = None
    error: JobError | None = None
    webhook: JobWebhook | None = None
    webhook_secret: str = ""

    def __repr__(self) -> str:
        """Tell it without the secret."""
        progress = "" if self.progress is None else f", {self.progress:.0%}"
        return f"<JobInfo {self.id} of {self.model}: {self.status}{progress}>"

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in _ENDED


class _Page(msgspec.Struct):
    jobs: list[JobInfo]
    next: str | None = None


class Webhook(msgspec.Struct, frozen=True):
    """Where the mesh tells that a job has ended.

    Attributes:
        url: It is sent a POST, with the job as JSON.
        secret: What it is signed with; empty: the mesh makes one, told in `JobInfo.webhook_secret`.
    """

    url: str
    secret: str = ""

    def headers(self) -> dict[str, str]:
        """Return what says so in a request.

        Raises:
            InvalidRequest: if it cannot be a header.
        """
        found = {"Mesh-Webhook": self.url}
        if self.secret:
            found["Mesh-Webhook-Secret"] = self.secret
        for name, value in found.items():
            if not value.isascii() or not value.isprintable():
                raise InvalidRequest(f"the {name} must be printable ASCII")
        return found

    def __repr__(self) -> str:
        """Name it without its secret."""
        return f"<Webhook {self.url}>"


def infer_later(cache: MetadataCache, model: str, inputs: object, **more: Any) -> Flow[JobInfo]:
    """Make a job of arrays; `MeshClient.infer_later` says the rest."""
    version: int | None = more.get("version")
    encoded = yield from encoded_for(cache, model, version, inputs)
    return (yield from predict_later(model, native_inputs(encoded), exact=True, **more))


def predict_later(
    model: str,
    inputs: Mapping[str, Any],
    *,
    version: int | None,
    outputs: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
    request_id: str | None,
    webhook: Webhook | str | None,
    idempotency_key: str,
    run_timeout_s: float | None,
    exact: bool = False,
) -> Flow[JobInfo]:
    """Make a job of plain values; `MeshClient.predict_later` says the rest."""
    document = native_document(inputs, outputs, parameters, exact=exact)
    if run_timeout_s is not None:
        document["timeout_s"] = run_timeout_s
    headers: dict[str, str] = {}
    if webhook is not None:
        told = Webhook(webhook) if isinstance(webhook, str) else webhook
        headers |= told.headers()
    call = native_call(
        model,
        "jobs",
        document,
        version=version,
        request_id=request_id,
        headers=headers,
        is_timed=False,
    )
    # The key counts in the whole mesh, so any gateway may be asked again.
    keyed = replace(call, message=with_key(call.message, idempotency_key), repeatable=True)
    return reply_as(JobInfo, (yield from ask(keyed)))


def job(job_id: str) -> Flow[JobInfo]:
    """Describe one job."""
    return read_as(JobInfo, (yield from get_document(_path(job_id))))


def jobs(statuses: Sequence[str], limit: int) -> Flow[list[JobInfo]]:
    """List jobs, page by page."""
    found: list[JobInfo] = []
    query: dict[str, str | int] = {}
    wanted = names_of("status", statuses)
    if wanted:
        query["status"] = ",".join(wanted)
    while len(found) < limit:
        asked = urlencode({**query, "limit": limit - len(found)})
        page = read_as(_Page, (yield from get_document(f"{JOBS_PATH}?{asked}")))
        found += page.jobs
        if not page.next or not page.jobs:
            break
        query["after"] = page.next
    return found[:limit]


def cancel_job(job_id: str) -> Flow[JobInfo]:
    """Cancel a job; a second time changes nothing."""
    return reply_as(JobInfo, (yield from ask(Call("DELETE", _path(job_id)))))


def job_result(job_id: str) -> Flow[InferResult]:
    """Fetch a job's result as arrays."""
    reply = yield from _result(job_id)
    return exact_result(read_answer(reply.document(), reply.url), reply)


def job_prediction(job_id: str) -> Flow[PlainResult]:
    """Fetch a job's result as plain values."""
    return plain_result((yield from _result(job_id)))


def _result(job_id: str) -> Flow[Reply]:
    return (yield from ask(Call("GET", f"{_path(job_id)}/result")))


def wait_job(
    job_id: str,
    progress: Callable[[JobInfo], object],
    clock: Callable[[], float],
    wait_s: float,
) -> Flow[JobInfo]:
    """Look at a job until it has ended.

    Args:
        job_id: Which.
        progress: Told of every change.
        clock: Monotonic seconds.
        wait_s: How long to wait.

    Raises:
        DeadlineExceeded: if it has not ended then; it goes on.
    """
    deadline = clock() + wait_s
    pause_s = FIRST_LOOK_S
    seen: JobInfo | None = None
    while True:
        found = yield from job(job_id)
        if found != seen:
            seen = found
            progress(found)
        if found.has_ended:
            return found
        left_s = deadline - clock()
        if left_s <= 0:
            raise DeadlineExceeded(
                f"job {job_id} is {found.status} after {wait_s:.3g} s; it goes on: wait again, or cancel it"
            )
        yield Pause(min(pause_s, left_s))
        pause_s = min(2 * pause_s, LATER_LOOK_S)


def watch_job(job_id: str) -> StreamFlow[JobInfo]:
    """Emit a job at every change, until it has ended."""
    ended = False

    def read(event: ServerEvent, _head: Reply) -> JobInfo | None:
        nonlocal ended
        if event.kind != "job":
            return None
        found = read_as(JobInfo, event.document())
        ended = found.has_ended
        return found

    def message(_remaining_s: float) -> Message:
        return Message({"Accept": MEDIA_TYPE})

    yield from follow(
        Call("GET", f"{_path(job_id)}/events", message), read, lambda: ended, anywhere=True
    )


def ignore(_: JobInfo) -> None:
    """Watch no progress."""


def _path(job_id: str) -> str:
    return f"{JOBS_PATH}/{quoted_name(job_id)}"
