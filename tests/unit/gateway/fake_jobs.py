"""The mesh's jobs, as a gateway's tests see them: nothing runs; a test says how they fare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.errors import JobCancelled, JobUnfinished, NotFound
from meshnode.gateway.jobs_api import Asked, Listed, Wish
from meshnode.gateway.protocols.caller import LOCAL
from meshnode.jobs.job import NEW, Job, JobState, JobStatus, Outcome, Webhook, ended
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.protocols.caller import Caller

FIRST = "a" * 26


class FakeJobs:
    """Keeps what was asked; ids are letters in their order."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls
        self.wishes: list[Wish] = []
        self.jobs: dict[str, tuple[Job, JobState]] = {}
        self.bodies: dict[str, bytes] = {}
        self.silent: list[str] = []
        self.for_all = False

    async def show_to_all(self) -> None:
        """Have one job that has ended, which every caller sees."""
        self.for_all = True
        await self.submit(Wish("/p", "", (), b"", LOCAL, "", "", "", "", ""))
        self.end(FIRST, 200, (), b"")

    async def submit(self, wish: Wish) -> tuple[Job, JobState]:
        self.wishes.append(wish)
        hook = Webhook(wish.webhook, wish.secret or "whsec_made") if wish.webhook else None
        job = Job(
            chr(ord("a") + len(self.jobs)) * 26, wish.path, wish.query, wish.headers, bytes(32), len(wish.body),
            1_000_000 + len(self.jobs), "here", wish.caller.key_id, wish.caller.name, wish.model, hook, wish.request_id,
        )  # fmt: skip
        self.jobs[job.id] = (job, NEW)
        return job, NEW

    def end(
        self, job_id: str, status: int, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> None:
        job, state = self.jobs[job_id]
        word = JobStatus.SUCCEEDED if status < 400 else JobStatus.FAILED
        error = "" if status < 400 else "it went wrong"
        end = Outcome(word, 1, "there", 2_000_000, status, headers, bytes(32), len(body), error)
        self.jobs[job_id] = (job, ended(state, end))
        self.bodies[job_id] = body

    async def find(self, job_id: str, caller: Caller) -> tuple[Job, JobState]:
        found = self.jobs.get(job_id)
        if found is None or not (
            self.for_all or caller.scope.allows(Scope.ADMIN) or caller.key_id == found[0].key_id
        ):
            raise NotFound("there is no such job")
        return found

    async def result(self, job_id: str, caller: Caller) -> tuple[Job, JobState, bytes]:
        job, state = await self.find(job_id, caller)
        if state.outcome is None:
            raise JobUnfinished("the job is queued")
        if state.outcome.status is JobStatus.CANCELLED:
            raise JobCancelled("the job was cancelled")
        return job, state, self.bodies[job_id]

    async def cancel(self, job_id: str, caller: Caller) -> tuple[Job, JobState]:
        job, state = await self.find(job_id, caller)
        self.calls.append(("cancel job", job_id, caller))
        if not state.ended:
            state = ended(state, Outcome(JobStatus.CANCELLED, 0, "here", 2_000_000))
            self.jobs[job_id] = (job, state)
        return self.jobs[job_id]

    async def listed(self, asked: Asked, caller: Caller) -> Listed:
        self.calls.append(("jobs", asked, caller))
        found = [each for each in self.jobs.values() if asked.status in (None, each[1].status)]
        return Listed(found[: asked.limit], len(found) > asked.limit, self.silent)

    def name_of(self, node: str) -> str:
        return f"<{node}>"
