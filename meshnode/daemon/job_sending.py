"""Jobs on their way to other nodes: so many at once, and none any more that was dropped meanwhile."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meshnode.errors import IdempotencyKeyReused, InvalidRequest, MeshError
from meshnode.limits import JOB_WAITING_STREAMS

if TYPE_CHECKING:
    from meshnode.daemon.job_acceptance import JobAcceptance
    from meshnode.daemon.jobs import Jobs
    from meshnode.jobs.effects import Send
    from meshnode.types import NodeId

log = logging.getLogger(__name__)


class JobSending:
    """Sends copies of jobs; its length is the number of jobs that are on their way."""

    def __init__(self, jobs: Jobs, acceptance: JobAcceptance) -> None:
        """Send those of `jobs`, and tell `acceptance` how that goes."""
        self._jobs = jobs
        self._acceptance = acceptance
        self._sending: dict[str, set[asyncio.Task[None]]] = {}  # by job id
        self._sends = asyncio.Semaphore(JOB_WAITING_STREAMS)

    def __repr__(self) -> str:
        return f"<JobSending: {len(self)} jobs are on their way>"

    def __len__(self) -> int:
        return len(self._sending)

    def cancel(self, job_id: str) -> None:
        """Send a job no further."""
        for task in self._sending.get(job_id, ()):
            task.cancel()

    def begin(self, effect: Send) -> None:
        """Send a job to a node, in its turn."""
        job_id = effect.job_id
        task = self._jobs.spawn(self._send(effect))
        tasks = self._sending.setdefault(job_id, set())
        tasks.add(task)

        def ended(_: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not tasks and self._sending.get(job_id) is tasks:
                del self._sending[job_id]

        task.add_done_callback(ended)

    async def _send(self, effect: Send) -> None:
        job_id, node = effect.job_id, effect.to
        async with self._sends:
            held = self._jobs.book.held.get(job_id)
            if held is None:
                return
            self._acceptance.sent(job_id, node)
            try:
                await self._jobs.links.send(
                    node,
                    held.job,
                    effect.state,
                    lambda sha256: self._jobs.disk.body(job_id, sha256),
                )
            except MeshError as error:
                self._not_sent(job_id, node, error)
            else:
                self._jobs.do(
                    self._jobs.book.acked(node, job_id, effect.state, self._jobs.now_ms())
                )
            self._acceptance.changed(job_id)

    def _not_sent(self, job_id: str, node: NodeId, error: MeshError) -> None:
        log.debug("job %s did not get to %s: %s", job_id, self._jobs.name_of(node), error)
        if job_id not in self._jobs.book.held:
            return  # it was dropped meanwhile, and its body could not be read: not that node's fault
        if isinstance(error, IdempotencyKeyReused):
            log.warning(
                "job %s: %s has another call with the same Idempotency-Key", job_id, self._jobs.name_of(node)
            )  # fmt: skip
            self._jobs.do(self._jobs.book.conflicted(node, job_id))
            return
        if isinstance(error, InvalidRequest) and self._jobs.knows_no_jobs(node):
            # Only a version that knows no jobs says so, to whatever it is asked about them.
            log.warning(
                "%s knows no jobs (an earlier version), and keeps none", self._jobs.name_of(node)
            )
            self._jobs.follow_members()
        self._jobs.do(self._jobs.book.refused(node, job_id, self._jobs.now_ms()))
