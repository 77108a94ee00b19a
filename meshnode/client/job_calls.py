"""Jobs: the part of `MeshClient` for inferences whose answers are fetched later."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from meshnode.client import jobs
from meshnode.client.blocking_calls import BlockingCalls, Stream
from meshnode.client.driving import checked_timeout_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike

    from meshnode.client.infer import InferResult
    from meshnode.client.jobs import JobInfo, Webhook
    from meshnode.client.native import PlainResult
    from meshnode.client.tensors import InputTensor
    from meshnode.types import Scalar


class JobCalls(BlockingCalls):
    """Jobs, of `MeshClient`."""

    def infer_later(
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
        """Run a model later: the mesh takes the request and keeps the answer until it is fetched.

        The job survives the loss of the node that took it, and of the one that runs it; then it may run twice, but
        has one result.

        Args:
            model: Public name of the model.
            inputs: As for `infer`.
            version: A version, or None for the newest that is ready.
            outputs: Names of the outputs wanted; empty for all.
            parameters: Parameters for the model.
            run_timeout_s: Seconds that the model has, once it runs; None for the mesh's own limit.
            webhook: Where the mesh tells that the job has ended.
            idempotency_key: Text under which the same request is the same job, however often it is sent; else one
                for this call, which counts for its own repetitions.
            timeout_s: Seconds until the mesh must have taken it.
            request_id: An id for the logs of every node involved; else the gateway makes one.

        Returns:
            The job. `wait_job` waits for its end, `job_result` fetches its answer.

        Raises:
            InvalidRequest: if the inputs are not what the model takes, or cannot be sent.
            ModelNotFound: if the mesh does not know the model or the version.
            IdempotencyKeyReused: if the key was used with another request.
        """
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
        return self._ask(flow, timeout_s)

    def predict_later(
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
        """Run a model later on plain Python values, as `predict` takes them; `infer_later` says the rest.

        `job_prediction` fetches the answer.
        """
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
        return self._ask(flow, timeout_s)

    def job(self, job_id: str, *, timeout_s: float | None = None) -> JobInfo:
        """Return a job as it is now.

        Raises:
            NotFound: if there is none, it is another key's, or it is forgotten.
        """
        return self._ask(jobs.job(job_id), timeout_s)

    def jobs(
        self,
        *,
        status: Sequence[Literal["queued", "running", "succeeded", "failed", "cancelled"]] = (),
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> list[JobInfo]:
        """Return the jobs of this client's key, the newest first.

        Args:
            status: Only those that are so; empty for all.
            limit: How many at most.
            timeout_s: Seconds for the call.
        """
        return self._ask(jobs.jobs(status, limit), timeout_s)

    def cancel_job(self, job_id: str, *, timeout_s: float | None = None) -> JobInfo:
        """Cancel a job; one that has ended stays as it is.

        Raises:
            NotFound: as `job` does.
        """
        return self._ask(jobs.cancel_job(job_id), timeout_s)

    def wait_job(
        self,
        job_id: str,
        *,
        timeout_s: float = 3600.0,
        progress: Callable[[JobInfo], object] | None = None,
    ) -> JobInfo:
        """Wait until a job has ended, at whichever gateway works.

        Args:
            job_id: Which.
            timeout_s: Seconds to wait.
            progress: Called with every change, in the thread of the call.

        Raises:
            NotFound: as `job` does.
            DeadlineExceeded: if it has not ended in time; it goes on.
        """
        wait_s = checked_timeout_s(timeout_s)
        return self.run(jobs.wait_job(job_id, progress or jobs.ignore, time.monotonic, wait_s))

    def watch_job(self, job_id: str, *, total_s: float | None = None) -> Stream[JobInfo]:
        """Return a job at every change, as it happens, until it has ended.

        Args:
            job_id: Which.
            total_s: Seconds until its end; None for no limit.

        Raises, when the changes are asked for:
            NotFound: as `job` does.
            GatewayUnavailable: if no gateway can go on with it.
        """
        return Stream(self, jobs.watch_job(job_id), total_s)

    def job_result(self, job_id: str, *, timeout_s: float | None = None) -> InferResult:
        """Return the answer of a job that `infer_later` made.

        Raises:
            NotFound: as `job` does.
            JobUnfinished: if it has not ended.
            MeshError: as the job itself failed.
        """
        return self._ask(jobs.job_result(job_id), timeout_s)

    def job_prediction(self, job_id: str, *, timeout_s: float | None = None) -> PlainResult:
        """Return the answer of a job that `predict_later` made; raises as `job_result` does."""
        return self._ask(jobs.job_prediction(job_id), timeout_s)
