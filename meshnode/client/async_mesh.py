"""`AsyncMeshClient`: a mesh from a program with an event loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from meshnode.client import deploying, flows, native, publishing, streaming
from meshnode.client.async_administration import AsyncAdministration
from meshnode.client.async_calls import AsyncStream
from meshnode.client.async_deployment_calls import AsyncDeploymentCalls
from meshnode.client.async_feedback_calls import AsyncFeedbackCalls
from meshnode.client.async_job_calls import AsyncJobCalls
from meshnode.client.calls import (
    Flow,
    names_of,
)
from meshnode.client.driving import checked_timeout_s
from meshnode.client.infer import InferResult, get_metadata, infer
from meshnode.client.results import ModelInfo, read_as

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from meshnode.client.hints import Hints
    from meshnode.client.native import PlainResult
    from meshnode.client.results import (
        DeployProgress,
        MeshEvent,
        ModelMetadata,
        NodeInfo,
        NodeStatus,
    )
    from meshnode.client.tensors import InputTensor
    from meshnode.types import Scalar

T = TypeVar("T")


class AsyncMeshClient(AsyncJobCalls, AsyncDeploymentCalls, AsyncFeedbackCalls, AsyncAdministration):
    """A mesh, through any of its gateways, from coroutines.

    As `MeshClient`, method by method, with the same arguments, results and errors. A client belongs to
    the event loop in which it is first used; any number of its coroutines may run there at once. When
    one is cancelled, its connection is closed, and the mesh stops the work. Close the client, or use it
    with `async with`.
    """

    # Inference

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike | InputTensor] | ArrayLike | InputTensor,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> InferResult:
        """Run a model on one input; arguments, result and errors are those of `MeshClient.infer`."""
        flow = infer(
            self._cache,
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return await self._ask(flow, timeout_s)

    def stream(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike | InputTensor] | ArrayLike | InputTensor,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        total_s: float | None = None,
        request_id: str | None = None,
        resume: bool = True,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> AsyncStream[InferResult]:
        """Run a model that answers in parts, for `async for`; all else is as `MeshClient.stream` says."""
        flow = streaming.stream(
            self._cache,
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            resume=resume,
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return AsyncStream(self, flow, total_s)

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> PlainResult:
        """Run a model on plain Python values; arguments, result and errors are those of `MeshClient.predict`."""
        flow = native.predict(
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return await self._ask(flow, timeout_s)

    def predict_stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        total_s: float | None = None,
        request_id: str | None = None,
        resume: bool = True,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> AsyncStream[PlainResult]:
        """Run a model that answers in parts on plain Python values, for `async for`."""
        flow = streaming.predict_stream(
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            resume=resume,
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return AsyncStream(self, flow, total_s)

    async def metadata(
        self, model: str, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelMetadata:
        """Return what a model takes and gives; raises as `MeshClient.metadata` does."""
        return await self._ask(get_metadata(model, version), timeout_s)

    # What there is

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Return the mesh's models and where they are served."""
        return await self._ask(flows.models(), timeout_s)

    async def model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Return one model of the mesh; raises as `MeshClient.model` does."""
        return await self._ask(flows.model(name), timeout_s)

    async def nodes(self, *, timeout_s: float | None = None) -> list[NodeInfo]:
        """Return the mesh's nodes, the one that answers first."""
        return await self._ask(flows.nodes(), timeout_s)

    async def status(self, *, timeout_s: float | None = None) -> NodeStatus:
        """Return the node that answers."""
        return await self._ask(flows.status(), timeout_s)

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether some gateway is in its mesh and takes requests; False if it answers that it is not."""
        return await self._ask(flows.ready(), timeout_s)

    def events(
        self,
        kinds: Sequence[Literal["member", "deployment", "model", "node"]] = (),
        *,
        total_s: float | None = None,
    ) -> AsyncStream[MeshEvent]:
        """Return what happens in the mesh, for `async for`, as `MeshClient.events` does."""
        return AsyncStream(self, flows.events(kinds), total_s)

    # Deployments: an API key needs the scope `deploy`

    async def deploy(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        replicas: int | None = None,
        on: Sequence[str] = (),
        wait: bool = True,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
        endpoint: str | None = None,
        tasks: Sequence[str] | None = None,
        cache: bool | None = None,
        autoscaling: Mapping[str, Any] | None = None,
        release: Mapping[str, Any] | None = None,
    ) -> ModelInfo:
        """Serve a model on the mesh; arguments, result and errors are those of `MeshClient.deploy`."""
        wish = deploying.Wish(
            str(path),
            name,
            replicas,
            names_of("on", on),
            endpoint=endpoint,
            tasks=None if tasks is None else names_of("tasks", tasks),
            cache=cache,
            autoscaling=autoscaling,
            release=release,
        )
        wait_s = checked_timeout_s(timeout_s) if wait else None
        flow = self.deployment(wish, wait_s, progress or deploying.ignore)
        return read_as(ModelInfo, await self.run(flow))

    def deployment(
        self,
        wish: deploying.Wish,
        wait_s: float | None,
        progress: Callable[[DeployProgress], object],
    ) -> Flow[dict[str, Any]]:
        """Return a deployment as a flow to `run`, as `MeshClient.deployment` does."""
        return deploying.deploy(
            wish,
            local=self._target.is_local,
            gateways=len(self._gateways),
            progress=progress,
            clock=time.monotonic,
            wait_s=wait_s,
        )

    async def publish(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str = "",
        version: int | None = None,
        progress: Callable[[DeployProgress], object] | None = None,
        variant: str = "",
        replace: bool = False,
    ) -> dict[str, Any]:
        """Put a model into the mesh's store; arguments, result and errors are those of `MeshClient.publish`."""
        flow = self.publication(
            str(path), name, metrics, note, version, progress, variant=variant, replace=replace
        )
        return await self.run(flow)

    def publication(
        self,
        path: str,
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str = "",
        version: int | None = None,
        progress: Callable[[DeployProgress], object] | None = None,
        *,
        variant: str = "",
        replace: bool = False,
    ) -> Flow[dict[str, Any]]:
        """Return a publication as a flow to `run`, whose result is what was published, as JSON."""
        return publishing.publish(
            publishing.Publication(path, name, metrics or {}, note, version, variant, replace),
            local=self._target.is_local,
            gateways=len(self._gateways),
            progress=progress or deploying.ignore,
        )

    async def wait_ready(
        self,
        name: str,
        *,
        replicas: int | None = None,
        version: int | None = None,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
    ) -> ModelInfo:
        """Wait until a model is served; arguments and errors are those of `MeshClient.wait_ready`."""
        watch, wait_s = progress or deploying.ignore, checked_timeout_s(timeout_s)
        return await self.run(
            deploying.wait_ready(name, replicas, version, watch, time.monotonic, wait_s)
        )
