"""What nodes ask each other about jobs, over their links."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshnode.errors import LinkLost, ProtocolError
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
    read_listed,
)
from meshnode.limits import JOB_ASK_TIMEOUT_S, JOB_SEND_TIMEOUT_S, MAX_PART_BYTES
from meshnode.net.one_answer import OneAnswer, answer_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import msgspec

    from meshnode.daemon.forwarding import Reach
    from meshnode.jobs.job import Job, JobState
    from meshnode.types import Buffer, NodeId
    from meshnode.wire.codec import Message


class JobLinks:
    """Asks other nodes."""

    def __init__(self, reach: Reach) -> None:
        """Ask over these links, and those that it can make."""
        self._reach = reach

    def __repr__(self) -> str:
        return "<JobLinks>"

    async def send(
        self, node: NodeId, job: Job, state: JobState, body: Callable[[bytes], Awaitable[Buffer]]
    ) -> None:
        """Let a node have a job as it is; return when it is on its disk.

        Args:
            node: Who shall have it.
            job: It.
            state: How it fares.
            body: Reads the body of its call, or of its result, by its SHA-256.

        Raises:
            MeshError: if it does not get there.
        """
        wants = await self._tell(node, job, state, b"")
        if wants == WANTS_JOB:
            wants = await self._keep(node, job, state, body)
        end = state.outcome
        if wants == WANTS_RESULT and end is not None:
            wants = await self._tell(node, job, state, await body(end.result_sha256))
        if wants != WANTS_NOTHING:
            raise ProtocolError("a peer wants of a job what it was just given")

    async def ask(
        self, node: NodeId, job_id: str, *, with_result: bool = False
    ) -> tuple[JobTold, Buffer]:
        """Return what a node knows of a job; NotFound if it keeps none of this id."""
        limit_s = JOB_SEND_TIMEOUT_S if with_result else JOB_ASK_TIMEOUT_S
        message, data = await self._asked(node, AskJob(job_id, with_result), [], limit_s)
        if not isinstance(message, JobTold) or message.job.id != job_id:
            raise ProtocolError("a peer answered about a job in an unknown form")
        return message, data

    async def cancel(self, node: NodeId, job_id: str) -> JobTold:
        """Have a node cancel a job; return how it fares then."""
        message, _ = await self._asked(node, CancelJob(job_id), [], JOB_ASK_TIMEOUT_S)
        if not isinstance(message, JobTold) or message.job.id != job_id:
            raise ProtocolError("a peer answered about a job in an unknown form")
        return message

    async def withdraw(self, node: NodeId, job_id: str) -> None:
        """Have a node forget a job that this one did not accept after all."""
        await self._asked(node, CancelJob(job_id, withdrawn=True), [], JOB_ASK_TIMEOUT_S)

    async def listed(self, node: NodeId, ask: ListJobs) -> list[tuple[Job, JobState]]:
        """Return the jobs that a node keeps."""
        message, data = await self._asked(node, ask, [], JOB_ASK_TIMEOUT_S)
        if not isinstance(message, JobsListed):
            raise ProtocolError("a peer listed its jobs in an unknown form")
        return read_listed(memoryview(data))

    async def _keep(
        self, node: NodeId, job: Job, state: JobState, body: Callable[[bytes], Awaitable[Buffer]]
    ) -> int:
        """Send a job with its body, and with its result where both fit into one part."""
        end = state.outcome
        data = [await body(job.body_sha256)]
        if (
            end is not None
            and end.result_bytes
            and job.body_bytes + end.result_bytes <= MAX_PART_BYTES
        ):
            data.append(await body(end.result_sha256))
        message, _ = await self._asked(node, KeepJob(job, state), data, JOB_SEND_TIMEOUT_S)
        if not isinstance(message, JobKept):
            raise ProtocolError("a peer answered to a job in an unknown form")
        return message.wants

    async def _tell(self, node: NodeId, job: Job, state: JobState, data: Buffer) -> int:
        job_id, fingerprint = job.id, job.fingerprint
        limit_s = JOB_SEND_TIMEOUT_S if data else JOB_ASK_TIMEOUT_S
        message, _ = await self._asked(node, TellJob(job_id, state, fingerprint), [data], limit_s)
        if not isinstance(message, JobKept):
            raise ProtocolError("a peer answered to a job in an unknown form")
        return message.wants

    async def _asked(
        self, node: NodeId, ask: Message, data: list[Buffer], limit_s: float
    ) -> tuple[msgspec.Struct, Buffer]:
        call = OneAnswer(_answer_of)
        try:
            async with asyncio.timeout(limit_s):
                connection = self._reach.linked(node) or await self._reach.link(node)
                if connection is None:
                    raise LinkLost(f"{node} cannot be reached")
                stream = connection.open(JOBS.encode(ask), data, call)
                try:
                    return await call.answer
                finally:
                    connection.cancel(stream)
        except TimeoutError:
            raise LinkLost(f"{node} did not answer within {limit_s:g} s") from None


def _answer_of(meta: bytes, data: memoryview, end: bool) -> tuple[msgspec.Struct, Buffer]:
    message = answer_message(meta, JOBS)
    if message is None or not end:
        raise ProtocolError("a peer answered about jobs in an unknown form")
    return message, bytes(data)
