"""How many jobs, and how much of them, one node keeps: in all, and for each caller."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from meshnode.errors import Saturated
from meshnode.limits import MAX_JOBS, MAX_JOBS_BYTES, MAX_JOBS_PER_CALLER

if TYPE_CHECKING:
    from meshnode.jobs.effects import Held
    from meshnode.jobs.job import Job


class JobRoom:
    """Counts the jobs of one node.

    Attributes:
        size_bytes: What the bodies of all of them take.
    """

    def __init__(self, max_jobs: int = MAX_JOBS, max_bytes: int = MAX_JOBS_BYTES) -> None:
        """Begin empty."""
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._count = 0
        self._by_caller: Counter[str] = Counter()
        self.size_bytes = 0

    def __repr__(self) -> str:
        return f"<JobRoom: {self._count} jobs, {self.size_bytes} bytes>"

    def check(self, job: Job) -> None:
        """Refuse a job for which there is none.

        Raises:
            Saturated: if it would be too many, or too much.
        """
        if self._count >= self._max_jobs:
            raise Saturated(f"this node keeps {self._count} jobs already; try again later")
        if self.size_bytes + job.body_bytes > self._max_bytes:
            raise Saturated("this node keeps as many bytes of jobs as it may; try again later")
        if self._by_caller[job.key_id] >= MAX_JOBS_PER_CALLER:
            raise Saturated(
                f"this caller has {MAX_JOBS_PER_CALLER} jobs on a node already; try again later"
            )

    def add(self, held: Held) -> None:
        """Count a job that is kept from now on."""
        self._count += 1
        self._by_caller[held.job.key_id] += 1
        self.size_bytes += held.size_bytes

    def remove(self, held: Held) -> None:
        """Count a job no more."""
        caller = held.job.key_id
        self._count -= 1
        self.size_bytes -= held.size_bytes
        self._by_caller[caller] -= 1
        if not self._by_caller[caller]:
            del self._by_caller[caller]

    def resized(self, former_bytes: int, held: Held) -> None:
        """A job takes as much as it says now, instead of `former_bytes`."""
        self.size_bytes += held.size_bytes - former_bytes
