"""Jobs, as coroutines: the part of `AsyncMeshClient` for inferences whose answers are fetched later."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from meshnode.client import jobs
from meshnode.client.async_calls import AsyncCalls, AsyncStream
from meshnode.client.driving import checked_timeout_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike

    from meshnode.client.infer import InferResult
    from meshnode.client.jobs import JobInfo, Webhook
    from meshnode.client.native import PlainResult
    from meshnode.client.tensors import InputTensor
    from meshnode.types import Scalar


class AsyncJobCalls(AsyncCalls):
    """Jobs, of `AsyncMeshClient`."""

    async def infer_later(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike | InputTensor] | ArrayLike | InputTensor,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        run_timeout_s: float | None = None,
        webhook: Webhook | str | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> JobInfo:
        """Run a model later; arguments, result and errors are those of `MeshClient.infer_later`."""
        flow = jobs.infer_later(
            self._cache,
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            webhook=webhook,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
            run_timeout_s=run_timeout_s,
        )
        return await self._ask(flow, timeout_s)

    async def predict_later(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        run_timeout_s: float | None = None,
        webhook: Webhook | str | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> JobInfo:
        """Run a model later on plain Python values, as `MeshClient.predict_later` does."""
        flow = jobs.predict_later(
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            webhook=webhook,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
            run_timeout_s=run_timeout_s,
        )
        return await self._ask(flow, timeout_s)

    async def job(self, job_id: str, *, timeout_s: float | None = None) -> JobInfo:
        """Return a job as it is now; raises as `MeshClient.job` does."""
        return await self._ask(jobs.job(job_id), timeout_s)

    async def jobs(
        self,
        *,
        status: Sequence[Literal["queued", "running", "succeeded", "failed", "cancelled"]] = (),
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> list[JobInfo]:
        """Return the jobs of this client's key; arguments are those of `MeshClient.jobs`."""
        return await self._ask(jobs.jobs(status, limit), timeout_s)

    async def cancel_job(self, job_id: str, *, timeout_s: float | None = None) -> JobInfo:
        """Cancel a job; raises as `MeshClient.cancel_job` does."""
        return await self._ask(jobs.cancel_job(job_id), timeout_s)

    async def wait_job(
        self,
        job_id: str,
        *,
        timeout_s: float = 3600.0,
        progress: Callable[[JobInfo], object] | None = None,
    ) -> JobInfo:
        """Wait until a job has ended; arguments and errors are those of `MeshClient.wait_job`."""
        wait_s = checked_timeout_s(timeout_s)
        return await self.run(
            jobs.wait_job(job_id, progress or jobs.ignore, time.monotonic, wait_s)
        )

    def watch_job(self, job_id: str, *, total_s: float | None = None) -> AsyncStream[JobInfo]:
        """Return a job at every change, for `async for`, as `MeshClient.watch_job` does."""
        return AsyncStream(self, jobs.watch_job(job_id), total_s)

    async def job_result(self, job_id: str, *, timeout_s: float | None = None) -> InferResult:
        """Return the answer of a job that `infer_later` made; raises as `MeshClient.job_result` does."""
        return await self._ask(jobs.job_result(job_id), timeout_s)

    async def job_prediction(self, job_id: str, *, timeout_s: float | None = None) -> PlainResult:
        """Return the answer of a job that `predict_later` made; raises as `MeshClient.job_result` does."""
        return await self._ask(jobs.job_prediction(job_id), timeout_s)
