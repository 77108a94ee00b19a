"""Running a job: its call is answered here as if its caller had sent it now, and waited.

What cannot be answered for the moment (no replica, no room, a lost link) is asked again until `JOB_PATIENCE_S` after the
job was accepted: nobody holds a connection for it, and between two tries it takes no place from others. So is a model that is not known, for a while: a node that has
just started has not heard of everything yet. Any other answer is the job's, whatever its status.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshnode.errors import (
    InferenceFailed,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
    NotServing,
    Saturated,
    TooLarge,
    Unauthenticated,
)
from meshnode.gateway.jobs_api import answer_headers, call_headers
from meshnode.gateway.protocols.caller import Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.status import (
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.jobs.job import Job, JobStatus, Outcome
from meshnode.limits import (
    JOB_PATIENCE_S,
    JOB_RETRY_FIRST_S,
    JOB_RETRY_MAX_S,
    JOB_UNKNOWN_S,
    MAX_JOB_FIELD_LENGTH,
    MAX_JOB_RESULT_BYTES,
    MAX_SENT_MESSAGE_LENGTH,
)
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from meshnode.clock import Clock
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.types import Buffer, NodeId

log = logging.getLogger(__name__)

_BUSY: Final = (NoReplica, Saturated, NotServing, LinkLost)
_STREAMED: Final = ("text/event-stream", "application/x-ndjson")
_LINES_LOOKED_AT: Final = 64 * 1024  # bytes of a piece in which progress is looked for


class Answer(NamedTuple):
    """What a job's call was answered.

    Attributes:
        response: The whole answer.
        error: A sentence, if it is one.
        code: A word for that.
    """

    response: HttpResponse
    error: str = ""
    code: str = ""


class Ran(NamedTuple):
    """A job's end.

    Attributes:
        outcome: How it ended.
        body: Of its result.
    """

    outcome: Outcome
    body: bytes


class Pause(NamedTuple):
    """A job cannot be answered for the moment.

    Attributes:
        pause_s: After how many seconds it is to be tried again.
    """

    pause_s: float


class _Wait(NamedTuple):
    """A job that waits: since when, and how long it pauses next."""

    since: float
    pause_s: float


class JobRuns:
    """Answers jobs' calls by this node's own routes."""

    def __init__(
        self, me: NodeId, dispatcher: Dispatcher, clock: Clock, opens: Callable[[str], bool]
    ) -> None:
        """Answer by these.

        Args:
            me: This node.
            dispatcher: The routes.
            clock: Says when.
            opens: Whether an API key, by its id, still opens anything.
        """
        self._me = me
        self._dispatcher = dispatcher
        self._clock = clock
        self._opens = opens
        self._waits: dict[str, _Wait] = {}  # by job id

    def __repr__(self) -> str:
        return f"<JobRuns of {self._me[:8]}>"

    async def run(
        self, job: Job, attempt: int, body: Buffer, progress: Callable[[float], None]
    ) -> Ran | Pause:
        """Run a job to its end, or until it is to be tried again later.

        Args:
            job: It.
            attempt: Which one this is.
            body: Of its call.
            progress: Told of how far it is, 0 to 1, where its answer says so.
        """
        answer = await self._tried(job, body, progress)
        if isinstance(answer, Pause):
            return answer
        self.forget(job.id)
        response = answer.response
        data = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        status = JobStatus.SUCCEEDED if response.status < 400 else JobStatus.FAILED
        outcome = Outcome(
            status=status,
            attempt=attempt,
            node=self._me,
            finished_at_ms=int(self._clock.wall_s() * 1000),
            http_status=response.status,
            headers=answer_headers(response.headers),
            result_sha256=hashlib.sha256(data).digest() if data else b"",
            result_bytes=len(data),
            error=(answer.error or ("" if response.status < 400 else _sentence_in(data)))[
                :MAX_SENT_MESSAGE_LENGTH
            ],
            code=answer.code or ("" if response.status < 400 else _code_of(response.headers, data)),
        )
        return Ran(outcome, data)

    def forget(self, job_id: str) -> None:
        """Wait for a job's model no more."""
        self._waits.pop(job_id, None)

    async def _tried(
        self, job: Job, body: Buffer, progress: Callable[[float], None]
    ) -> Answer | Pause:
        form = self._dispatcher.error_form(job.path)
        wait = self._waits.get(job.id, _Wait(self._clock.now(), JOB_RETRY_FIRST_S))
        waited_s = self._clock.now() - wait.since
        left_s = job.created_at_ms / 1000 + JOB_PATIENCE_S - self._clock.wall_s()
        try:
            return await self._answered(job, body, progress)
        except MeshError as error:
            is_patient = left_s > 0 if isinstance(error, _BUSY) else waited_s < JOB_UNKNOWN_S
            if not is_patient or not isinstance(error, (*_BUSY, ModelNotFound)):
                return Answer(error_response(error, form), str(error), error.code)
        except HttpRefusal as refusal:
            if refusal.status != 404 or waited_s >= JOB_UNKNOWN_S:
                return Answer(refusal_response(refusal, form), str(refusal), "http")
        except Exception:
            log.exception("job %s failed: POST %s", job.id, job.path[:200])
            failure = failure_response(job.request_id, form)
            return Answer(failure, "the gateway failed to run it", "internal")
        pause_s = wait.pause_s
        self._waits[job.id] = _Wait(wait.since, min(2 * pause_s, JOB_RETRY_MAX_S))
        return Pause(pause_s)

    async def _answered(self, job: Job, body: Buffer, progress: Callable[[float], None]) -> Answer:
        if job.key_id and not self._opens(job.key_id):
            raise Unauthenticated(
                f"the API key {job.key_name!r} that asked for this is not valid any more"
            )
        match = self._dispatcher.match("POST", job.path)
        if not match.infers:
            raise HttpRefusal(404, f"no model runs at {job.path[:100]!r}")
        caller = Caller(Scope.INFER, job.key_id, job.key_name, job=job.id)
        headers = dict(call_headers(dict(job.headers)))
        http = HttpRequest("POST", job.path, job.query, headers, body, caller)
        reply = match.answer(http, job.request_id)
        response = reply if isinstance(reply, HttpResponse) else await reply
        if isinstance(response, HttpStream):
            response = await _collected(response, progress)
        if response.size_bytes > MAX_JOB_RESULT_BYTES:
            raise _too_large()
        return Answer(response)


async def _collected(stream: HttpStream, progress: Callable[[float], None]) -> HttpResponse:
    """Return a stream's whole answer; report the progress that its events tell."""
    kind = stream.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    body = bytearray()
    parts: AsyncGenerator[Buffer, None] = stream.parts  # type: ignore[assignment]
    async with aclosing(parts):
        async for part in parts:
            body += part
            if len(body) > MAX_JOB_RESULT_BYTES:
                raise _too_large()
            if kind in _STREAMED and memoryview(part).nbytes <= _LINES_LOOKED_AT:
                found = progress_in(bytes(part))
                if found is not None:
                    progress(found)
    return HttpResponse(stream.status, stream.headers, bytes(body))


def progress_in(piece: bytes) -> float | None:
    """Return the last progress that events or lines of JSON tell: `progress` of an object, or of its `parameters`."""
    found: float | None = None
    for line in piece.splitlines():
        if b'"progress"' not in line:
            continue
        try:
            event = msgspec.json.decode(line.removeprefix(b"data:").strip())
        except msgspec.DecodeError:
            continue
        inner = event.get("parameters") if isinstance(event, dict) else None
        for place in (event, inner):
            value = place.get("progress") if isinstance(place, dict) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
                found = float(value)
    return found


def _sentence_in(body: bytes) -> str:
    """Return the sentence of an error's body, as most dialects and frameworks have it."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return "the model answered with an error; see the result"
    told = document.get("error", document.get("detail")) if isinstance(document, dict) else None
    if isinstance(told, dict):
        told = told.get("message")
    return (
        told[:2000] if isinstance(told, str) else "the model answered with an error; see the result"
    )


def _code_of(headers: Mapping[str, str], body: bytes) -> str:
    """Return the word for programs of an answer that is an error: its own, or that the model made it."""
    told = next((text for name, text in headers.items() if name.lower() == "mesh-error"), None)
    if told is None:
        try:
            document = msgspec.json.decode(body)
        except msgspec.DecodeError:
            document = None
        told = document.get("code") if isinstance(document, dict) else None
    fits = isinstance(told, str) and told.isprintable() and 0 < len(told) <= MAX_JOB_FIELD_LENGTH
    return told if fits and isinstance(told, str) else InferenceFailed.code


def _too_large() -> TooLarge:
    return TooLarge(
        f"the answer is larger than the {MAX_JOB_RESULT_BYTES} bytes that a job may have"
    )
