"""The routes of jobs: inferences whose callers do not wait.

| path | method | scope | |
|---|---|---|---|
| `/mesh/v1/models/M[/versions/N]/jobs` | POST | infer | body as for `…/infer` -> 202, the job |
| any path that runs a model, with `Prefer: respond-async` | POST | infer | likewise |
| `/mesh/v1/jobs?status=&limit=&after=` | GET | infer | the caller's jobs, the newest first |
| `/mesh/v1/jobs/ID` | GET, DELETE | infer | a job; cancel it |
| `/mesh/v1/jobs/ID/result` | GET | infer | the answer, as the path would have given it |
| `/mesh/v1/jobs/ID/events` | GET | infer | the job at each change, as server-sent events |

`Mesh-Webhook: URL` (and `Mesh-Webhook-Secret`) on the call that makes a job names where its end is told. What a caller
may see is their own: of the same API key, or without one.

A node whose role does not let it see every job asks an operator's for those that it does not see, with the caller's
key (`MeshControl.forward`), so that every gateway answers for every job of a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from meshnode.errors import InvalidRequest, MeshError, NotFound, NotServing, Saturated
from meshnode.gateway.jobs_api import JOBS, Asked, answer_headers, document, prefers_later, wish_of
from meshnode.gateway.matching import Match, Methods, RouteSet, segment, unknown, version_of
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import native
from meshnode.gateway.protocols.endpoint import GUARDS
from meshnode.gateway.protocols.http import HttpResponse, HttpStream, json_response
from meshnode.jobs.job import JOB_ID, JobStatus
from meshnode.limits import (
    JOB_EVENTS_ELSEWHERE_POLL_S,
    JOB_EVENTS_POLL_S,
    JOB_HEARTBEAT_S,
    MAX_JOB_WATCHERS,
    MAX_JOB_WATCHERS_PER_CALLER,
    MAX_JOBS_LISTED,
)
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from meshnode.gateway.jobs_api import JobsControl, Wish
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.jobs.job import Job, JobState

_MODELS: Final = "/mesh/v1/models/"
_BELOW: Final = JOBS + "/"
_DEFAULT_LISTED: Final = 100
_EVENT_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
_NEVER_MS: Final = 2**62
_MODEL_AT: Final = re.compile(
    r"/(?:mesh/v1/models|v1/models|v2/models|inference|predictions)/([^/:]+)"
)
"""Paths of this gateway that name the model which they run."""


class _Moment(NamedTuple):
    """A job as it is at a moment.

    Attributes:
        shown: Its document.
        has_ended: Whether it changes no more.
        is_elsewhere: Whether another node was asked for it.
    """

    shown: bytes
    has_ended: bool
    is_elsewhere: bool

    @property
    def event_id(self) -> str:
        """What names the moment, at every gateway: equal ids are equal documents."""
        return hashlib.sha256(self.shown).hexdigest()[:24]


class JobsRoutes:
    """Answers what clients ask about jobs."""

    def __init__(self, control: MeshControl, model_at: Callable[[str], str | None]) -> None:
        """Answer from this.

        Args:
            control: The mesh.
            model_at: Returns the model that is offered at a path (`deploy --path`).
        """
        self._control = control
        self._model_at = model_at
        self._watchers: Counter[str] = Counter()  # by API key

    def __repr__(self) -> str:
        return f"<JobsRoutes: {self._watchers.total()} clients follow jobs>"

    @property
    def _jobs(self) -> JobsControl:
        return self._control.jobs

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed: dict[str, Methods] = {JOBS: {"GET": Match(self._list, Scope.INFER, forwarded=True)}}
        return RouteSet(fixed, {_BELOW: self._one, _MODELS: self._of_model}, operations=_OPERATIONS)

    async def respond_later(self, http: HttpRequest, request_id: str) -> HttpResponse:
        """Make a job of a call to any path that runs a model; say so if it was a preference (RFC 7240)."""
        named = _MODEL_AT.match(http.path)
        if named is not None:  # what nobody knows fails at once, as the path itself does
            self._control.manifest(unquote(named[1]), None)
        applied = {"Preference-Applied": "respond-async"} if prefers_later(http.headers) else {}
        wish = wish_of(http, request_id)
        if not wish.model:
            wish = wish._replace(model=self._model_at(unquote(http.path)) or "")
        return await self._submit(wish, applied)

    # Making

    def _of_model(self, path: str) -> Methods:
        name, _, rest = path.removeprefix(_MODELS).partition("/")
        version: int | None = None
        if rest.startswith("versions/"):
            text, _, rest = rest.removeprefix("versions/").partition("/")
            version = version_of(text)
        if rest != "jobs":
            raise unknown(path)
        make = partial(self._make, segment(name, path), version)
        return {"POST": Match(make, Scope.INFER, takes_body=True, answers_once=True)}

    async def _make(
        self, model: str, version: int | None, http: HttpRequest, request_id: str
    ) -> HttpResponse:
        body = native.read_body(http)  # what no model can take is refused now, not in an hour
        self._control.manifest(model, version if version is not None else body.version)
        path = http.path.rstrip("/").removesuffix("jobs") + "infer"
        return await self._submit(wish_of(http, request_id, path), {})

    async def _submit(self, wish: Wish, headers: dict[str, str]) -> HttpResponse:
        job, state = await self._jobs.submit(wish)
        shown = document(job, state, self._jobs)
        if job.webhook is not None and job.webhook.secret and not wish.secret:
            shown["webhook_secret"] = job.webhook.secret
        response = json_response(shown, 202)
        return HttpResponse(
            202, {**response.headers, **headers, "Location": shown["url"]}, response.body
        )

    # Reading

    def _one(self, path: str) -> Methods:
        job_id, _, rest = path.removeprefix(_BELOW).partition("/")
        if not job_id or rest not in ("", "result", "events"):
            raise unknown(path)
        return self._methods(job_id if JOB_ID.fullmatch(job_id) else "", rest)

    def _methods(self, job_id: str, rest: str) -> Methods:
        if rest == "result":
            return {"GET": Match(partial(self._result, job_id), Scope.INFER, forwarded=True)}
        if rest == "events":
            return {"GET": Match(partial(self._events, job_id), Scope.INFER)}
        return {
            "GET": Match(partial(self._show, job_id), Scope.INFER, forwarded=True),
            "DELETE": Match(partial(self._cancel, job_id), Scope.INFER, forwarded=True),
        }

    def _elsewhere(self, http: HttpRequest, request_id: str) -> Awaitable[HttpResponse] | None:
        """Have an operator's node answer for the holder of a key; None if this node's own answer is the mesh's."""
        return (
            self._control.forward(Role.OPERATOR, http, request_id) if http.caller.key_id else None
        )

    async def _here_or_elsewhere(
        self, here: Awaitable[HttpResponse], http: HttpRequest, request_id: str
    ) -> HttpResponse:
        try:
            return await here
        except (NotFound, NotServing):  # nobody else is asked as long as this node sees the job
            elsewhere = self._elsewhere(http, request_id)
            if elsewhere is None:
                raise
        return await elsewhere

    async def _show(self, job_id: str, http: HttpRequest, request_id: str) -> HttpResponse:
        found = self._jobs.find(_known(job_id), http.caller)
        return await self._here_or_elsewhere(self._shown(found), http, request_id)

    async def _cancel(self, job_id: str, http: HttpRequest, request_id: str) -> HttpResponse:
        cancelled = self._jobs.cancel(_known(job_id), http.caller)
        return await self._here_or_elsewhere(self._shown(cancelled), http, request_id)

    async def _shown(self, found: Awaitable[tuple[Job, JobState]]) -> HttpResponse:
        return json_response(document(*await found, self._jobs))

    async def _result(self, job_id: str, http: HttpRequest, request_id: str) -> HttpResponse:
        here = self._result_here(_known(job_id), http)
        response = await self._here_or_elsewhere(here, http, request_id)
        return HttpResponse(response.status, {**response.headers, **GUARDS}, response.body)

    async def _result_here(self, job_id: str, http: HttpRequest) -> HttpResponse:
        _, state, body = await self._jobs.result(job_id, http.caller)
        end = state.outcome
        assert end is not None  # else `result` had raised
        # What a node told of the answer is not taken at its word: a model's page gets no rights here by it.
        headers = {
            **{name.title(): value for name, value in answer_headers(dict(end.headers))},
            **GUARDS,
            "Mesh-Job": str(end.status),
        }
        if not end.http_status:  # nobody ran it
            told = {"error": end.error, "code": end.code}
            return HttpResponse(
                503, {**headers, **json_response(None).headers}, msgspec.json.encode(told)
            )
        return HttpResponse(end.http_status, headers, [body])

    async def _list(self, http: HttpRequest, request_id: str) -> HttpResponse:
        asked = _asked(http.query)
        elsewhere = self._elsewhere(http, request_id)
        if elsewhere is not None:
            return await elsewhere
        listed = await self._jobs.listed(asked, http.caller)
        last = listed.jobs[-1][0] if listed.more and listed.jobs else None
        return json_response(
            {
                "jobs": [document(*each, self._jobs) for each in listed.jobs],
                "next": None if last is None else f"{last.created_at_ms}-{last.id}",
                "incomplete": listed.silent,
            }
        )

    # Following

    async def _events(self, job_id: str, http: HttpRequest, request_id: str) -> HttpStream:
        if self._watchers.total() >= MAX_JOB_WATCHERS:
            raise Saturated("too many clients follow jobs at this gateway; ask for the job instead")
        if self._watchers[http.caller.key_id] >= MAX_JOB_WATCHERS_PER_CALLER:
            raise Saturated("you follow too many jobs at this gateway; ask for the job instead")
        # A stream is not passed on: what other nodes are asked for is the job as it is now, again and again.
        once = msgspec.structs.replace(http, path=f"{JOBS}/{_known(job_id)}", query="")
        look = partial(self._look, job_id, once, request_id)
        first = await look()
        last_id = http.headers.get("last-event-id", "")
        return HttpStream(
            200, _EVENT_HEADERS, self._changes(first, look, http.caller.key_id, last_id)
        )

    async def _look(self, job_id: str, http: HttpRequest, request_id: str) -> _Moment:
        try:
            job, state = await self._jobs.find(job_id, http.caller)
        except (NotFound, NotServing):
            elsewhere = self._elsewhere(http, request_id)
            if elsewhere is None:
                raise
        else:
            shown = msgspec.json.encode(document(job, state, self._jobs))
            return _Moment(shown, state.ended, is_elsewhere=False)
        return _told(await elsewhere)

    async def _changes(
        self,
        moment: _Moment,
        look: Callable[[], Awaitable[_Moment]],
        key_id: str,
        last_id: str,
    ) -> AsyncGenerator[bytes, None]:
        self._watchers[key_id] += 1
        silent_s = 0.0
        try:
            while True:
                if moment.event_id != last_id:
                    last_id, silent_s = moment.event_id, 0.0
                    yield _event(moment)
                if moment.has_ended:
                    return
                if silent_s >= JOB_HEARTBEAT_S:
                    silent_s = 0.0
                    yield b": waiting\n\n"
                pause_s = JOB_EVENTS_ELSEWHERE_POLL_S if moment.is_elsewhere else JOB_EVENTS_POLL_S
                await asyncio.sleep(pause_s)
                silent_s += pause_s
                try:
                    moment = await look()
                except NotFound:
                    raise
                except MeshError:
                    continue  # it is between two homes
        finally:
            self._watchers[key_id] -= 1
            if not self._watchers[key_id]:
                del self._watchers[key_id]


def _known(job_id: str) -> str:
    if not job_id:
        raise NotFound("there is no such job; see the jobs that there are at /mesh/v1/jobs")
    return job_id


class _Fares(msgspec.Struct):
    finished_at: str | None


def _told(response: HttpResponse) -> _Moment:
    """Return the job that another node's gateway showed.

    Raises:
        NotServing: if it could not show it now.
        NotFound: if it shows this caller none.
    """
    shown = b"".join(
        map(bytes, [response.body] if isinstance(response.body, bytes) else response.body)
    )
    if response.status >= 500 or response.status == 429:
        raise NotServing("the node that was asked for this job could not show it now; try again")
    try:
        if response.status == 200:
            fares = msgspec.json.decode(shown, type=_Fares)
            return _Moment(shown, fares.finished_at is not None, is_elsewhere=True)
    except msgspec.MsgspecError:
        raise NotServing("the node that was asked for this job answered with none") from None
    raise NotFound("there is no such job; see the jobs that there are at /mesh/v1/jobs")


def _event(moment: _Moment) -> bytes:
    return b"id: %b\nevent: job\ndata: %b\n\n" % (moment.event_id.encode(), moment.shown)


def _asked(query: str) -> Asked:
    fields = parse_qsl(query, keep_blank_values=True)
    asked = dict(fields)
    others = asked.keys() - {"status", "limit", "after"}
    if others or len(fields) != len(asked):
        raise InvalidRequest("jobs are chosen by ?status=STATUS&limit=NUMBER&after=CURSOR")
    status = asked.get("status")
    if status is not None and status not in tuple(JobStatus):
        raise InvalidRequest(f"status is one of {', '.join(JobStatus)}, not {status[:40]!r}")
    text = asked.get("limit", str(_DEFAULT_LISTED))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_JOBS_LISTED:
        raise InvalidRequest(f"limit is a number of 1 to {MAX_JOBS_LISTED}, not {text[:40]!r}")
    before_ms, after = _NEVER_MS, ""
    if "after" in asked:
        moment, _, after = asked["after"].partition("-")
        if (
            not moment.isascii()
            or not moment.isdigit()
            or len(moment) > 18
            or not JOB_ID.fullmatch(after)
        ):
            raise InvalidRequest("after is the `next` of the page before")
        before_ms = int(moment)
    return Asked(None if status is None else JobStatus(status), int(text), before_ms, after)


_TAG: Final = "Jobs"
_TEXT: Final = {"type": ["string", "null"]}
_JOB_SCHEMA: Final = {
    "type": "object",
    "required": ["id", "status", "url"],
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string", "enum": [str(each) for each in JobStatus]},
        "progress": {"type": ["number", "null"]},
        "model": {"type": "string"},
        "path": {"type": "string"},
        "created_at": {"type": "string"},
        "started_at": _TEXT,
        "finished_at": _TEXT,
        "expires_at": {"type": "string"},
        "attempt": {"type": "integer"},
        "node": _TEXT,
        "error": {"type": ["object", "null"]},
        "webhook": {"type": ["object", "null"]},
        "webhook_secret": {"type": "string"},
        "url": {"type": "string"},
        "result_url": {"type": "string"},
        "events_url": {"type": "string"},
    },
}
_LIST_SCHEMA: Final = {
    "type": "object",
    "required": ["jobs", "next", "incomplete"],
    "properties": {
        "jobs": {"type": "array", "items": _JOB_SCHEMA},
        "next": _TEXT,
        "incomplete": {"type": "array", "items": {"type": "string"}},
    },
}
_OPERATIONS: Final = (
    Operation(
        "POST", "/mesh/v1/models/{model}/jobs", "Run a model later", _TAG,
        body=native.NativeBody, answer=_JOB_SCHEMA, status=202, errors=(422,),
    ),
    Operation(
        "POST", "/mesh/v1/models/{model}/versions/{version}/jobs", "Run one version of a model later", _TAG,
        body=native.NativeBody, answer=_JOB_SCHEMA, status=202, errors=(422,),
    ),
    Operation(
        "GET", "/mesh/v1/jobs", "List your jobs, the newest first", _TAG, answer=_LIST_SCHEMA,
        query=(
            ("status", f"Only those that are so: {', '.join(JobStatus)}"),
            ("limit", f"At most so many; {_DEFAULT_LISTED} by default"),
            ("after", "The `next` of the page before"),
        ),
    ),
    Operation("GET", "/mesh/v1/jobs/{job}", "Show a job", _TAG, answer=_JOB_SCHEMA),
    Operation("DELETE", "/mesh/v1/jobs/{job}", "Cancel a job", _TAG, answer=_JOB_SCHEMA),
    Operation(
        "GET", "/mesh/v1/jobs/{job}/result", "Get the answer of a job, as its path would have given it", _TAG,
        media_types=("application/json", "application/octet-stream", "text/event-stream"),
        errors=(409, 422, 500, 501, 504),
    ),
    Operation(
        "GET", "/mesh/v1/jobs/{job}/events", "Follow a job until it has ended", _TAG,
        media_types=("text/event-stream",),
    ),
)  # fmt: skip
