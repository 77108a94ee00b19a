"""Answering what other nodes ask about jobs."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import InvalidRequest, MeshError, NotFound, ProtocolError
from meshnode.jobs.job import (
    JOB_ID,
    NEW,
    Job,
    JobState,
    JobStatus,
    Outcome,
    expires_at_ms,
    merge,
    without_secret,
)
from meshnode.jobs.messages import (
    JOBS,
    WANTS_JOB,
    WANTS_NOTHING,
    WANTS_RESULT,
    AskJob,
    CancelJob,
    JobKept,
    JobsListed,
    JobTold,
    KeepJob,
    ListJobs,
    TellJob,
    write_listed,
)
from meshnode.limits import (
    MAX_BODY_BYTES,
    MAX_CLOCK_SKEW_S,
    MAX_HEADER_LINE_BYTES,
    MAX_JOB_FIELD_LENGTH,
    MAX_JOB_HEADERS_BYTES,
    MAX_JOB_PASSED,
    MAX_JOB_RESULT_BYTES,
    MAX_JOBS_LISTED,
    MAX_OUTBOUND_URL_LENGTH,
    MAX_SENT_MESSAGE_LENGTH,
    MAX_WEBHOOK_SECRET_LENGTH,
)
from meshnode.types import NodeId

if TYPE_CHECKING:
    from meshnode.daemon.job_search import JobSearch
    from meshnode.daemon.jobs import Jobs
    from meshnode.jobs.job import Headers
    from meshnode.types import Buffer
    from meshnode.wire.codec import Message

log = logging.getLogger(__name__)

_ENDS: Final = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)

Answer = tuple[bytes, list["Buffer"]]
"""A message, and the data that follows it."""


class JobAnswers:
    """Answers peers about the jobs of this node.

    Attributes:
        outcomes: How that ended: `ok`, or the code of an error.
    """

    def __init__(self, jobs: Jobs, search: JobSearch) -> None:
        """Answer from these."""
        self._jobs = jobs
        self._search = search
        self.outcomes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<JobAnswers: {self.outcomes.total()}>"

    def read(self, meta: bytes) -> Message | None:
        """Return what is asked about jobs; None if it is about something else.

        Raises:
            ProtocolError: if it is a question about jobs with wrong fields.
        """
        message: Message | None = JOBS.decode(meta)
        known = isinstance(message, KeepJob | TellJob | AskJob | CancelJob | ListJobs)
        return message if known else None

    async def answer(self, peer: NodeId, ask: Message, data: memoryview) -> Answer:
        """Answer a question.

        Raises:
            NotFound: if this node keeps no such job.
            NotServing: if the disk does not take it.
            Saturated: if there is no room.
            IdempotencyKeyReused: if another call has the same id here.
            ProtocolError: if it is no job that may be kept.
        """
        try:
            answer = await self._answer(peer, ask, data)
        except InvalidRequest as error:  # which would tell that this version knows no jobs
            self.outcomes[ProtocolError.code] += 1
            raise ProtocolError(str(error)) from error
        except MeshError as error:
            self.outcomes[error.code] += 1
            raise
        self.outcomes["ok"] += 1
        return answer

    async def _answer(self, peer: NodeId, ask: Message, data: memoryview) -> Answer:
        match ask:
            case KeepJob(job, state):
                return await self._keep(peer, job, state, data)
            case TellJob(job_id, state, fingerprint):
                return await self._tell(peer, job_id, state, fingerprint, data)
            case AskJob(job_id, with_result):
                self._accepted(job_id)
                self._check_asker(peer, job_id)
                return await self._show(job_id, with_result=with_result)
            case CancelJob(job_id, withdrawn=True):
                await self._jobs.withdrawn(peer, job_id)
                return JOBS.encode(JobKept()), []
            case CancelJob(job_id):
                self._check_asker(peer, job_id)
                await self._jobs.cancel_here(job_id)
                return await self._show(job_id, with_result=False)
            case ListJobs():
                limit = min(ask.limit, MAX_JOBS_LISTED + 1)
                accepted_by = ask.accepted_by if self._jobs.sees_all(peer) else str(peer)
                found = self._search.page(
                    msgspec.structs.replace(ask, limit=limit, accepted_by=accepted_by)
                )
                return JOBS.encode(JobsListed(len(found))), [write_listed(found)]
        raise InvalidRequest("this node does not know what is asked")

    async def _keep(self, peer: NodeId, job: Job, state: JobState, data: memoryview) -> Answer:
        jobs = self._jobs
        check_job(job)
        check_state(state, jobs.now_ms())
        body, result = data[: job.body_bytes], data[job.body_bytes :]
        if len(body) != job.body_bytes or hashlib.sha256(body).digest() != job.body_sha256:
            raise ProtocolError("a peer sent a job whose body is another one")
        await jobs.open()
        now_ms = jobs.now_ms()
        if expires_at_ms(job, state) <= now_ms:
            raise NotFound("the job has expired")
        jobs.book.check(job, now_ms)
        end = state.outcome
        lacks_result = end is not None and end.result_bytes > 0 and not len(result)
        if end is not None and not lacks_result:
            _check_result(end, result)
        held = jobs.book.held.get(job.id)
        have = (job, NEW) if held is None else (held.job, held.state)
        await self._check_source(peer, *have, state)
        known = state if not lacks_result else msgspec.structs.replace(state, outcome=None)
        await jobs.keep_from(peer, job, known, body, result)
        return JOBS.encode(JobKept(WANTS_RESULT if lacks_result else WANTS_NOTHING)), []

    async def _tell(
        self, peer: NodeId, job_id: str, state: JobState, fingerprint: bytes, data: memoryview
    ) -> Answer:
        jobs = self._jobs
        check_state(state, jobs.now_ms())
        wants = jobs.book.wants(job_id, state, fingerprint)
        if wants != WANTS_JOB:
            await self._check_source(peer, *self._held(job_id), state)
            wants = jobs.book.wants(job_id, state, fingerprint)
        if wants == WANTS_RESULT and len(data):
            end = merge(jobs.book.held[job_id].state, state).outcome
            assert end is not None
            _check_result(end, data)
            await jobs.disk.keep_result(job_id, end.result_sha256, data)
            wants = WANTS_NOTHING
        if wants == WANTS_NOTHING:
            jobs.do(jobs.book.learn(job_id, state, jobs.now_ms(), peer))
            await jobs.written()
        return JOBS.encode(JobKept(wants)), []

    def _check_asker(self, peer: NodeId, job_id: str) -> None:
        """Refuse a node that has nothing to do with a job, unless its role gives its owner a say in the mesh.

        Raises:
            NotFound: if it is to know nothing of the job.
        """
        job, state = self._held(job_id)
        book = self._jobs.book
        known = (job.accepted_by, state.node, *book.keepers(job_id), *book.keepers_now(job_id))
        if peer not in known and not self._jobs.sees_all(peer):
            raise NotFound("this node keeps no such job")

    async def _check_source(self, peer: NodeId, job: Job, known: JobState, state: JobState) -> None:
        """Refuse an outcome that would count here, and is not that of the node which is said to have ended the job so.

        It may be told by that node, or by one that has to do with the job; of anyone else's word that node is asked.
        A node can so lie about a job, as it could when it runs it, but not in the name of another. After a partition any
        node may be the one that ended it; that it has the job, it has shown by what the job asks for (`JobBook.wants`,
        `JobBook.check`): its id is not enough.

        Raises:
            ProtocolError: if that node says otherwise, or cannot be asked.
        """
        end = merge(known, state).outcome
        if end is None or end == known.outcome or end.node == peer:
            return
        jobs = self._jobs
        if peer in (job.accepted_by, *jobs.book.keepers(job.id), *jobs.book.keepers_now(job.id)):
            return
        if end.node in jobs.others():
            try:
                told, _ = await jobs.links.ask(NodeId(end.node), job.id)
            except MeshError as error:
                log.debug("job %s: %s did not say how it ended: %s", job.id, end.node, error)
            else:
                if told.state.outcome == end:
                    return
        raise ProtocolError(f"a peer told how job {job.id} ended at a node that does not say so")

    async def _show(self, job_id: str, *, with_result: bool) -> Answer:
        job, state = self._held(job_id)
        job = without_secret(job)
        data: list[Buffer] = []
        if with_result and state.outcome is not None and state.outcome.result_bytes:
            data.append(await self._jobs.disk.body(job_id, state.outcome.result_sha256))
        return JOBS.encode(JobTold(job, state)), data

    def _accepted(self, job_id: str) -> None:
        held = self._jobs.book.held.get(job_id)
        if held is not None and held.proposed:
            raise NotFound("this node has not accepted this job yet")

    def _held(self, job_id: str) -> tuple[Job, JobState]:
        held = self._jobs.book.held.get(job_id)
        if held is None:
            raise NotFound("this node keeps no such job")
        return held.job, held.state


def check_job(job: Job) -> None:
    """Refuse a job of a peer that no gateway would have made.

    Raises:
        ProtocolError: if a field breaks its limit.
    """
    names = (job.accepted_by, job.key_id, job.key_name, job.model, job.request_id)
    hook = job.webhook
    fits = (
        JOB_ID.fullmatch(job.id) is not None
        and job.path.startswith("/")
        and len(job.path) + len(job.query) <= MAX_HEADER_LINE_BYTES
        and _fit(job.headers)
        and len(job.body_sha256) == hashlib.sha256().digest_size
        and 0 <= job.body_bytes <= MAX_BODY_BYTES
        and 0 < job.created_at_ms < 2**53
        and all(len(name) <= MAX_JOB_FIELD_LENGTH for name in names)
        and (
            hook is None
            or (
                len(hook.url) <= MAX_OUTBOUND_URL_LENGTH
                and 0 < len(hook.secret) <= MAX_WEBHOOK_SECRET_LENGTH
                and len(hook.secret_digest) in (0, hashlib.sha256().digest_size)
            )
        )
    )
    if not fits:
        raise ProtocolError("a peer sent a job that no gateway makes")


def check_state(state: JobState, now_ms: int) -> None:
    """Refuse a state that no node writes.

    Raises:
        ProtocolError: if a field breaks its limit, or it ended in the future.
    """
    end = state.outcome
    latest_ms = now_ms + 1000 * MAX_CLOCK_SKEW_S
    fits = (
        0 <= state.attempt < 2**31
        and len(state.node) <= MAX_JOB_FIELD_LENGTH
        and 0 <= state.started_at_ms <= latest_ms
        and -1 <= state.progress <= 1
        and len(state.passed) <= MAX_JOB_PASSED
        and all(len(node) <= MAX_JOB_FIELD_LENGTH for node in state.passed)
    )
    if fits and end is not None:
        fits = (
            end.status in _ENDS
            and 0 <= end.attempt < 2**31
            and len(end.node) <= MAX_JOB_FIELD_LENGTH
            and 0 < end.finished_at_ms <= latest_ms
            and (end.http_status == 0 or 200 <= end.http_status <= 599)
            and (end.status is not JobStatus.SUCCEEDED or _is_success(end))
            and _fit(end.headers)
            and 0 <= end.result_bytes <= MAX_JOB_RESULT_BYTES
            and len(end.result_sha256) == (hashlib.sha256().digest_size if end.result_bytes else 0)
            and len(end.error) <= MAX_SENT_MESSAGE_LENGTH
            and len(end.code) <= MAX_JOB_FIELD_LENGTH
        )
    if not fits:
        raise ProtocolError("a peer told of a job what no node tells")


def _is_success(end: Outcome) -> bool:
    """Whether somebody ran it, and it was answered without an error."""
    return end.attempt > 0 and 200 <= end.http_status < 400


def _fit(headers: Headers) -> bool:
    size = sum(len(name) + len(value) for name, value in headers)
    return size <= MAX_JOB_HEADERS_BYTES and all(
        each.isprintable() for header in headers for each in header
    )


def _check_result(end: Outcome, data: memoryview) -> None:
    digest = hashlib.sha256(data).digest() if len(data) else b""
    if len(data) != end.result_bytes or digest != end.result_sha256:
        raise ProtocolError("a peer sent a job's result that is another one")
