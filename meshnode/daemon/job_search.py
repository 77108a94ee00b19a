"""Finding jobs on the mesh: any node answers for any of them.

The nodes that rank first for a job are asked, and what they say is merged. Where none of them has it (members have
just come or gone, and copies are on their way) the others are asked too.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from meshnode.daemon.job_answers import check_state
from meshnode.errors import MeshError, NotFound, NotServing
from meshnode.gateway.jobs_api import Listed
from meshnode.jobs.job import JOB_ID, Job, JobState, merge, older, without_secret
from meshnode.jobs.messages import ListJobs
from meshnode.limits import JOB_FIRST_ASKED, MAX_JOB_NODES_ASKED
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.daemon.jobs import Jobs
    from meshnode.gateway.jobs_api import Asked
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.jobs.job import Outcome
    from meshnode.types import Buffer, NodeId


class JobSearch:
    """Asks the nodes of the mesh for jobs."""

    def __init__(self, jobs: Jobs) -> None:
        """Ask for this node."""
        self._jobs = jobs

    def __repr__(self) -> str:
        return f"<JobSearch for {self._jobs!r}>"

    async def find(self, job_id: str, caller: Caller) -> tuple[Job, JobState, list[NodeId]]:
        """Return a job of a caller, and the other nodes that keep it.

        Raises:
            NotFound: if this caller has none of this id.
            NotServing: if a node that may keep it cannot be reached, and no other has it.
        """
        try:
            found = await self._find(job_id)
        except NotFound:
            raise self._none() from None
        job = found[0]
        is_own = caller.key_id == job.key_id and (caller.key_id or not self._is_owner(caller))
        sees_it = self._sees_all(caller) or is_own
        if not sees_it and not (self._is_owner(caller) and job.accepted_by == self._jobs.me):
            raise self._none()
        return found

    def _is_owner(self, caller: Caller) -> bool:
        return caller.scope.allows(Scope.ADMIN) and not caller.key_id

    def _sees_all(self, caller: Caller) -> bool:
        """Whether a caller sees everybody's jobs: not by owning a device that has no say in the mesh."""
        is_trusted = bool(caller.key_id) or self._jobs.sees_all(self._jobs.me)
        return caller.scope.allows(Scope.ADMIN) and is_trusted

    def _none(self) -> NotFound:
        if self._jobs.sees_all(self._jobs.me):
            return _no_such_job()
        return NotFound(
            "there is no such job here; this node is a plain member of the mesh, and answers by itself for the jobs "
            "that it has accepted. Show the API key of the job, ask the gateway that made it, or one on an operator's "
            "node"
        )

    async def known(self, job_id: str) -> tuple[Job, JobState] | None:
        """Return a job, whoever asked for it, or None if nobody who can be asked has it."""
        try:
            job, state, _ = await self._find(job_id)
        except MeshError:
            return None
        return job, state

    async def result_body(self, job: Job, end: Outcome, nodes: Sequence[NodeId]) -> Buffer:
        """Return the body of a result.

        Raises:
            NotServing: if no node that has it can be reached.
        """
        if not end.result_bytes:
            return b""
        held = self._jobs.book.held.get(job.id)
        if held is not None and held.state.outcome == end:
            return await self._jobs.disk.body(job.id, end.result_sha256)
        for node in nodes:
            try:
                told, data = await self._jobs.links.ask(node, job.id, with_result=True)
            except MeshError:
                continue
            if told.state.outcome == end and hashlib.sha256(data).digest() == end.result_sha256:
                return data
        raise NotServing("the nodes that keep the job's result cannot be reached now; try again")

    async def listed(self, asked: Asked, caller: Caller) -> Listed:
        """Return a caller's jobs on the whole mesh, the newest first; everybody's for an admin."""
        jobs = self._jobs
        everybody = self._sees_all(caller)
        of_here = self._is_owner(caller) and not everybody
        # Programs without a key see what was asked here: they are not one caller over all machines.
        accepted_by = "" if everybody or caller.key_id else str(jobs.me)
        ask = ListJobs(
            caller.key_id, everybody or of_here, asked.status or "", asked.limit + 1, asked.before_ms, asked.after, accepted_by
        )  # fmt: skip
        room = asyncio.Semaphore(MAX_JOB_NODES_ASKED)

        async def of(node: NodeId) -> list[tuple[Job, JobState]] | None:
            async with room:
                try:
                    found = await jobs.links.listed(node, ask)
                    for _, state in found:
                        check_state(state, jobs.now_ms())
                    return found
                except MeshError:
                    return None

        others = sorted(jobs.others())
        answers = await asyncio.gather(*map(of, others))
        silent = [
            jobs.name_of(node)
            for node, answer in zip(others, answers, strict=True)
            if answer is None
        ]
        found = {job.id: (job, state) for job, state in self.page(ask)}
        for job, state in (each for answer in answers if answer for each in answer):
            known = found.get(job.id)
            found[job.id] = (
                (job, state) if known is None else (older(known[0], job), merge(known[1], state))
            )
        left = [each for each in found.values() if ask.status in ("", each[1].status)]
        left.sort(key=_newest_first)
        return Listed(left[: asked.limit], len(left) > asked.limit, silent)

    def page(self, ask: ListJobs) -> list[tuple[Job, JobState]]:
        """Return what this node has of a list."""
        own = self._jobs.own(
            everybody=ask.everybody, key_id=ask.key_id, accepted_by=ask.accepted_by
        )
        found = [
            (without_secret(job), state)
            for job, state in own
            if ask.status in ("", state.status)
            and (
                job.created_at_ms < ask.before_ms
                or (job.created_at_ms == ask.before_ms and job.id > ask.after)
            )
        ]
        found.sort(key=_newest_first)
        return found[: max(0, ask.limit)]

    async def _find(self, job_id: str) -> tuple[Job, JobState, list[NodeId]]:
        if not JOB_ID.fullmatch(job_id):
            raise _no_such_job()
        jobs = self._jobs
        held = jobs.book.held.get(job_id)
        if held is not None and (held.state.ended or held.running):
            return without_secret(held.job), held.state, []
        others = jobs.others()
        first = [node for node in jobs.book.keepers(job_id, JOB_FIRST_ASKED) if node in others]
        if not first and others and held is None:
            first = sorted(others)[:JOB_FIRST_ASKED]
        found, silent = await self._ask(job_id, first)
        if not found and held is None:
            left = sorted(others - set(first))
            for begin in range(0, len(left), MAX_JOB_NODES_ASKED):
                found, _ = await self._ask(job_id, left[begin : begin + MAX_JOB_NODES_ASKED])
                if found:
                    break
        if held is not None:
            found[jobs.me] = (without_secret(held.job), held.state)
        if not found:
            if silent:
                raise NotServing("a node that may keep this job cannot be reached now; try again")
            raise _no_such_job()
        job, state = _merged(found.values())
        return job, state, [node for node in found if node != jobs.me]

    async def _ask(
        self, job_id: str, nodes: Sequence[NodeId]
    ) -> tuple[dict[NodeId, tuple[Job, JobState]], bool]:
        """Ask nodes for a job at once; return what they have, and whether one did not answer."""
        answers = await asyncio.gather(
            *(self._told(node, job_id) for node in nodes), return_exceptions=True
        )
        found: dict[NodeId, tuple[Job, JobState]] = {}
        silent = False
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, tuple):
                found[node] = answer
            elif not isinstance(answer, MeshError):
                raise answer
            elif not isinstance(answer, NotFound):
                silent = True
        return found, silent

    async def _told(self, node: NodeId, job_id: str) -> tuple[Job, JobState]:
        told, _ = await self._jobs.links.ask(node, job_id)
        check_state(told.state, self._jobs.now_ms())
        return told.job, told.state


def _merged(found: Iterable[tuple[Job, JobState]]) -> tuple[Job, JobState]:
    (job, state), *others = found
    for other, fares in others:
        job, state = older(job, other), merge(state, fares)
    return job, state


def _newest_first(each: tuple[Job, JobState]) -> tuple[int, str]:
    return -each[0].created_at_ms, each[0].id


def _no_such_job() -> NotFound:
    return NotFound("there is no such job; it may have expired. See: meshnode jobs list")
