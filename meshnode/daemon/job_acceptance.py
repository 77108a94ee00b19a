"""Accepting jobs: a caller is told 202 when two live nodes have theirs on disk, and 503 if it is forgotten again.

A job is proposed: this node has it on disk, sends it to those that should keep it, and does not run it. When a second
node has it, it is confirmed. Otherwise it is withdrawn, here and from whoever it was sent to, and the same call may come
again as if it had never been.

Where the job's id comes from an idempotency key, another gateway may be proposing another call with the same id at this
moment. So the node that ranks first must be one of the two: it takes the first that comes, and refuses the other.

A caller is told that a job was withdrawn when all have heard so that could be told, and the same id is proposed here again
no sooner: whoever comes again must not meet a copy that is about to go.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from meshnode.errors import IdempotencyKeyReused, MeshError, NotServing
from meshnode.limits import JOB_ACCEPT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meshnode.daemon.jobs import Jobs
    from meshnode.jobs.job import Job
    from meshnode.types import Buffer, NodeId

log = logging.getLogger(__name__)


class JobAcceptance:
    """Proposes jobs for their callers."""

    def __init__(self, jobs: Jobs) -> None:
        """Propose them here; none waits yet."""
        self._jobs = jobs
        self._waiting: dict[str, _Proposal] = {}
        self._withdrawals: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<JobAcceptance: {len(self._waiting)} wait>"

    def changed(self, job_id: str | None = None) -> None:
        """Look again whether a job (or any) may be accepted: something has become known of it."""
        for waits in [job_id] if job_id is not None else list(self._waiting):
            proposal = self._waiting.get(waits)
            if proposal is not None:
                proposal.changed.set()

    def sent(self, job_id: str, node: NodeId) -> None:
        """A job is on its way to a node: if it is withdrawn, that is told there too."""
        proposal = self._waiting.get(job_id)
        if proposal is not None:
            proposal.sent_to.add(node)

    async def free(self, job_id: str) -> None:
        """Return when no proposal of this id is being withdrawn: after `JOB_ASK_TIMEOUT_S` at the latest."""
        withdrawal = self._withdrawals.get(job_id)
        if withdrawal is not None:
            await asyncio.wait([withdrawal])

    async def accept(self, job: Job, body: Buffer, *, has_key: bool) -> None:
        """Return when a job is accepted.

        Args:
            job: It; nothing of it is here, and nobody else proposes it here.
            body: Of its call.
            has_key: Whether its id comes from an idempotency key.

        Raises:
            IdempotencyKeyReused: if another call came with the same key, elsewhere at the same time.
            NotServing: if it was withdrawn.
        """
        jobs = self._jobs
        proposal = self._waiting[job.id] = _Proposal()
        try:
            await jobs.propose(job, body)
            async with asyncio.timeout(JOB_ACCEPT_TIMEOUT_S):
                while job.id in jobs.book.held and not jobs.book.may_accept(
                    job.id, has_key=has_key
                ):
                    proposal.changed.clear()
                    await proposal.changed.wait()
            await jobs.written()
            if job.id not in jobs.book.held:  # `book.conflicted`
                raise IdempotencyKeyReused(
                    "this Idempotency-Key came with another call at the same time; a key belongs to one call"
                )
        except TimeoutError:
            self._withdraw(job.id, proposal)
            await self.free(job.id)
            raise NotServing(
                "no second node took the job in time, so it was not accepted; try again"
            ) from None
        except BaseException:  # the disk took it no more, or the caller waits no more
            self._withdraw(job.id, proposal)
            raise
        finally:
            del self._waiting[job.id]
        jobs.do(jobs.book.confirm(job.id, jobs.now_ms()))

    def _withdraw(self, job_id: str, proposal: _Proposal) -> None:
        jobs = self._jobs
        jobs.do(jobs.book.withdraw(job_id))  # which ends what is on its way
        if job_id in jobs.book.held or not proposal.sent_to:
            return  # another gateway's has come here: it goes on
        withdrawal = jobs.spawn(self._tell_all_withdrawn(proposal.sent_to, job_id))
        self._withdrawals[job_id] = withdrawal
        withdrawal.add_done_callback(lambda _: self._withdrawals.pop(job_id))

    async def _tell_all_withdrawn(self, nodes: set[NodeId], job_id: str) -> None:
        await asyncio.gather(*(self._tell_withdrawn(node, job_id) for node in nodes))

    async def _tell_withdrawn(self, node: NodeId, job_id: str) -> None:
        try:
            await self._jobs.links.withdraw(node, job_id)
        except MeshError as error:
            log.debug("job %s: %s did not hear that it was withdrawn: %s", job_id, node, error)


class _Proposal:
    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.sent_to: set[NodeId] = set()


class Locks:
    """A lock for each name; there while somebody wants it."""

    def __init__(self) -> None:
        """Begin without any."""
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def __repr__(self) -> str:
        return f"<Locks: {len(self._locks)}>"

    @asynccontextmanager
    async def of(self, name: str) -> AsyncGenerator[None, None]:
        """Be alone with a name."""
        lock, wanted = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = lock, wanted + 1
        try:
            async with lock:
                yield
        finally:
            lock, wanted = self._locks[name]
            if wanted == 1:
                del self._locks[name]
            else:
                self._locks[name] = lock, wanted - 1
