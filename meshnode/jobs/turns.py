"""Whose job runs next: callers take turns, and the jobs of one caller run in their order.

Else whoever asked for a thousand jobs would hold up everybody who asked after them.
"""

from __future__ import annotations

from collections import OrderedDict


class Turns:
    """Jobs that wait for a place on this node."""

    def __init__(self) -> None:
        """Begin with none."""
        self._waiting: OrderedDict[str, dict[str, None]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Turns of {len(self._waiting)} callers>"

    def __bool__(self) -> bool:
        """Whether any job waits."""
        return bool(self._waiting)

    def add(self, caller: str, job_id: str) -> None:
        """Let a caller's job wait; one that waits already keeps its place."""
        self._waiting.setdefault(caller, {})[job_id] = None

    def next(self) -> str:
        """Return the job whose turn it is, which waits no more; KeyError if none waits."""
        caller, jobs = self._waiting.popitem(last=False)
        job_id = next(iter(jobs))
        del jobs[job_id]
        if jobs:
            self._waiting[caller] = jobs  # after all others
        return job_id

    def remove(self, caller: str, job_id: str) -> None:
        """Let a job wait no more."""
        jobs = self._waiting.get(caller)
        if jobs is None:
            return
        jobs.pop(job_id, None)
        if not jobs:
            del self._waiting[caller]
