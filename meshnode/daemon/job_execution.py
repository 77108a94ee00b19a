"""The attempts of jobs that run on this node: each is a task, and its end goes into the book.

An attempt that this node cannot run (its disk lost the body, or it failed itself) is given back without an outcome, so
that another node runs the job.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meshnode.daemon.job_runs import JobRuns, Pause
from meshnode.errors import MeshError, NotFound, NotServing
from meshnode.jobs.job import Job, JobStatus, Outcome
from meshnode.limits import JOB_PROGRESS_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.daemon.jobs import Jobs

log = logging.getLogger(__name__)


class JobExecution:
    """Runs jobs.

    Attributes:
        ended: How jobs that ran here ended, by status.
    """

    def __init__(self, jobs: Jobs) -> None:
        """Run those of `jobs`, once `start` was called."""
        self._jobs = jobs
        self._runs: JobRuns | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self.ended: dict[str, int] = dict.fromkeys(("succeeded", "failed"), 0)

    def __repr__(self) -> str:
        return f"<JobExecution: {len(self._running)} run>"

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What runs now."""
        return [*self._running.values()]

    def start(self, runs: JobRuns) -> None:
        """Run by these routes from now on."""
        self._runs = runs

    def forget(self, job_id: str) -> None:
        """Keep nothing of a job that has ended or is gone."""
        if self._runs is not None:
            self._runs.forget(job_id)

    def begin(self, job: Job, attempt: int) -> None:
        """Run an attempt, instead of any that runs."""
        held = self._jobs.book.held.get(job.id)
        if held is None or held.running != attempt:
            return  # it was to be stopped before it was written that it runs
        self.end(job.id)
        task = self._running[job.id] = asyncio.ensure_future(self._run(job, attempt))
        task.add_done_callback(lambda done: self._run_ended(job.id, done))

    def end(self, job_id: str) -> None:
        """Stop what runs of a job."""
        task = self._running.pop(job_id, None)
        if task is not None:
            task.cancel()

    def _run_ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        if self._running.get(job_id) is task:
            del self._running[job_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("running job %s failed", job_id, exc_info=error)

    async def _run(self, job: Job, attempt: int) -> None:
        assert self._runs is not None
        told = _Progress(lambda value: self._jobs.do(
            self._jobs.book.progressed(job.id, attempt, value, self._jobs.now_ms())
        ))  # fmt: skip
        log.info("job %s runs (attempt %d): POST %s", job.id, attempt, job.path[:200])
        outcome: Outcome | None = None
        try:
            body = await self._jobs.disk.body(job.id, job.body_sha256)
            found = await self._runs.run(job, attempt, body, told.see)
            if isinstance(found, Pause):
                until_ms = self._jobs.now_ms() + round(1000 * found.pause_s)
                self._jobs.do(
                    self._jobs.book.paused(job.id, attempt, until_ms, self._jobs.now_ms())
                )
                return
            if found.body:
                await self._jobs.disk.keep_result(job.id, found.outcome.result_sha256, found.body)
            outcome = found.outcome
        except (NotServing, NotFound) as error:  # of the disk: what a model says is an answer
            log.error("job %s is given back, for this node cannot run it: %s", job.id, error)
        except MeshError as error:
            outcome = Outcome(
                JobStatus.FAILED, attempt, self._jobs.me, self._jobs.now_ms(), error=str(error), code=error.code
            )  # fmt: skip
        except Exception:
            log.exception("job %s is given back, for this node failed to run it", job.id)
        finally:
            told.stop()
        if outcome is not None:
            log.info("job %s %s (attempt %d)", job.id, outcome.status, attempt)
            self.ended[str(outcome.status)] += 1
        self._jobs.do(self._jobs.book.finished(job.id, attempt, outcome, self._jobs.now_ms()))


class _Progress:
    """Passes the progress of a run on, at most every `JOB_PROGRESS_S`."""

    def __init__(self, pass_on: Callable[[float], None]) -> None:
        self._pass_on = pass_on
        self._value = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def see(self, value: float) -> None:
        self._value = value
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(JOB_PROGRESS_S, self._due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        self._timer = None
        self._pass_on(self._value)
