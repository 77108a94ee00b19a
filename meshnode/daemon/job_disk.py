"""The disk of jobs, off the event loop: one thread, so that what was asked first is done first."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from meshnode.errors import NotFound, NotServing
from meshnode.jobs.store import JobStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from meshnode.jobs.job import Job, JobState
    from meshnode.types import Buffer

_P = ParamSpec("_P")
_T = TypeVar("_T")


class JobDisk:
    """A `JobStore` behind a thread; opened on demand."""

    def __init__(self, path: Path) -> None:
        """Use this file; it is not opened yet."""
        self._path = path
        self._thread: ThreadPoolExecutor | None = None
        self._store: JobStore | None = None

    def __repr__(self) -> str:
        return f"<JobDisk {self._path}>"

    @property
    def exists(self) -> bool:
        """Whether there were jobs before."""
        return self._path.exists()

    async def open(self) -> list[tuple[Job, JobState]]:
        """Open it and return what it has; NotServing if it cannot be opened."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "jobs")
        self._store = await self._in_thread(JobStore, self._path)
        return await self._in_thread(self._store.all)

    async def keep(self, job: Job, state: JobState, body: Buffer) -> None:
        """Write a job with the body of its call; see `JobStore.keep`."""
        await self._in_thread(self._opened.keep, job, state, body)

    async def keep_result(self, job_id: str, sha256: bytes, body: Buffer) -> None:
        """Write the body of a result; see `JobStore.keep_result`."""
        await self._in_thread(self._opened.keep_result, job_id, sha256, body)

    async def write(self, states: Sequence[tuple[str, JobState]], dropped: Sequence[str]) -> None:
        """Write states and forget jobs; see `JobStore.write`."""
        await self._in_thread(self._opened.write, states, dropped)

    async def body(self, job_id: str, sha256: bytes) -> bytes:
        """Return a body.

        Raises:
            NotFound: if it is not here any more.
            NotServing: if it cannot be read, or is not what was written.
        """
        if not sha256:
            return b""
        found = await self._in_thread(_intact, self._opened, job_id, sha256)
        if found is None:
            raise NotFound(f"this node does not keep what belongs to job {job_id} any more")
        return found

    async def close(self) -> None:
        """Close the file, after all that was asked."""
        if self._store is not None:
            await self._in_thread(self._store.close)
            self._store = None
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    @property
    def _opened(self) -> JobStore:
        assert self._store is not None, "no job is here before the disk was opened"
        return self._store

    async def _in_thread(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        assert not kwargs
        assert self._thread is not None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, call, *args)


def _intact(store: JobStore, job_id: str, sha256: bytes) -> bytes | None:
    found = store.body(job_id, sha256)
    if found is not None and hashlib.sha256(found).digest() != sha256:
        raise NotServing(
            f"what belongs to job {job_id} is damaged on this node's disk; another may have it"
        )
    return found
