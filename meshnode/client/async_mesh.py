"""`AsyncMeshClient`: a mesh from a program with an event loop."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from meshnode.client import deploying, flows
from meshnode.client.calls import (
    Blocking,
    Call,
    Flow,
    Pause,
    Reply,
    delete_document,
    get_document,
    names_of,
    post_document,
    put_document,
)
from meshnode.client.driving import accepted, call_plan, call_timeout_s, checked_timeout_s, settle
from meshnode.client.endpoints import control_target, gateway_target
from meshnode.client.infer import InferResult, MetadataCache, get_metadata, infer
from meshnode.client.mesh import DEFAULT_INVITE_TTL_S
from meshnode.client.paths import data_dir as default_data_dir
from meshnode.client.plan import Failure, Gateways, GiveUp, Try, Wait
from meshnode.client.replies import error_of_end, failure_of
from meshnode.client.results import ModelInfo, read_as
from meshnode.client.tries import TryFailed
from meshnode.errors import UsageError
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import ArrayLike

    from meshnode.client.async_pool import AsyncPool
    from meshnode.client.endpoints import Target
    from meshnode.client.results import (
        DeployProgress,
        InviteInfo,
        KeyInfo,
        ModelMetadata,
        NewKey,
        NodeInfo,
        NodeStatus,
    )
    from meshnode.client.tensors import InputTensor
    from meshnode.client.trust_results import (
        Approval,
        Eviction,
        JoinRequest,
        NodeRole,
        TrustInfo,
    )
    from meshnode.types import Scalar

T = TypeVar("T")


class AsyncMeshClient:
    """A mesh, through any of its gateways, from coroutines.

    As `MeshClient`, method by method, with the same arguments, results and errors. A client belongs to
    the event loop in which it is first used; any number of its coroutines may run there at once. When
    one is cancelled, its connection is closed, and the mesh stops the work. Close the client, or use it
    with `async with`.
    """

    def __init__(
        self,
        gateways: str | Iterable[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        ca_file: str | None = None,
    ) -> None:
        """Make a client, as `MeshClient(...)` does; no event loop needs to run yet.

        Raises:
            ConfigError: if a URL, the key or a file cannot be used.
        """
        self._start(gateway_target(gateways, api_key, os.environ, ca_file=ca_file), timeout_s)

    @classmethod
    def local(
        cls, data_dir: str | Path | None = None, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    ) -> Self:
        """Return a client of this machine's daemon, as `MeshClient.local` does."""
        option = None if data_dir is None else str(data_dir)
        return cls.of(control_target(default_data_dir(option, os.environ)), timeout_s=timeout_s)

    @classmethod
    def of(cls, target: Target, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S) -> Self:
        """Return a client of a target that was made before."""
        client = cls.__new__(cls)
        client._start(target, timeout_s)
        return client

    def _start(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = checked_timeout_s(timeout_s)
        self._rng = random.Random()
        self._gateways = Gateways(len(target.endpoints))
        self._cache = MetadataCache()
        self._closed = False
        self._pool: AsyncPool | None = None

    def __repr__(self) -> str:
        where = ", ".join(str(endpoint) for endpoint in self._target.endpoints)
        return f"<AsyncMeshClient of {where}{', closed' if self._closed else ''}>"

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Close all connections; no new call begins."""
        self._closed = True
        if self._pool is not None:
            await self._pool.close()

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
        )
        return await self._ask(flow, timeout_s)

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
    ) -> ModelInfo:
        """Serve a model on the mesh; arguments, result and errors are those of `MeshClient.deploy`."""
        wish = deploying.Wish(str(path), name, replicas, names_of("on", on))
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

    async def undeploy(self, name: str, *, timeout_s: float | None = None) -> None:
        """Stop serving a deployed model everywhere; raises as `MeshClient.undeploy` does."""
        await self._ask(flows.undeploy(name), timeout_s)

    # Keys, invites and members: an API key needs the scope `admin`

    async def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[Literal["infer", "deploy", "admin"]] = ("infer",),
        ttl_s: int | None = None,
        timeout_s: float | None = None,
    ) -> NewKey:
        """Make an API key; arguments and errors are those of `MeshClient.create_key`."""
        return await self._ask(flows.create_key(name, scopes, ttl_s), timeout_s)

    async def keys(self, *, timeout_s: float | None = None) -> list[KeyInfo]:
        """Return the mesh's API keys, without their secrets."""
        return await self._ask(flows.keys(), timeout_s)

    async def revoke_key(self, name_or_id: str, *, timeout_s: float | None = None) -> KeyInfo:
        """Revoke an API key everywhere, for ever; raises as `MeshClient.revoke_key` does."""
        return await self._ask(flows.revoke_key(name_or_id), timeout_s)

    async def invite(
        self,
        *,
        ttl_s: int = DEFAULT_INVITE_TTL_S,
        role: Literal["member", "operator", "admin"] = "operator",
        uses: int = 0,
        region: str = "",
        timeout_s: float | None = None,
    ) -> InviteInfo:
        """Make an invite; arguments are those of `MeshClient.invite`."""
        return await self._ask(flows.invite(ttl_s, role, uses, region), timeout_s)

    async def join_requests(self, *, timeout_s: float | None = None) -> list[JoinRequest]:
        """Return the devices that ask to be admitted, as `MeshClient.join_requests` does."""
        return await self._ask(flows.join_requests(), timeout_s)

    async def approve(
        self,
        code: str,
        *,
        role: Literal["member", "operator", "admin"] = "operator",
        region: str = "",
        timeout_s: float | None = None,
    ) -> Approval:
        """Admit the device that shows this code; arguments and errors are those of `MeshClient.approve`."""
        return await self._ask(flows.approve(code, role, region), timeout_s)

    async def trust(self, *, timeout_s: float | None = None) -> TrustInfo:
        """Return who belongs to the mesh, by whose word, and who does not any more."""
        return await self._ask(flows.trust(), timeout_s)

    async def evict(
        self,
        node: str,
        *,
        reason: str = "",
        with_invited: bool = False,
        timeout_s: float | None = None,
    ) -> Eviction:
        """Take a node out of the mesh for ever; arguments and errors are those of `MeshClient.evict`."""
        return await self._ask(flows.evict(node, reason, with_invited), timeout_s)

    async def set_role(
        self,
        node: str,
        role: Literal["member", "operator", "admin"],
        *,
        timeout_s: float | None = None,
    ) -> NodeRole:
        """Give a node another role; raises as `MeshClient.set_role` does."""
        return await self._ask(flows.set_role(node, role), timeout_s)

    # What has no method of its own

    async def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """GET a path of the HTTP API and return its JSON document as it came."""
        return await self._ask(get_document(path), timeout_s)

    async def post(self, path: str, document: object, *, timeout_s: float | None = None) -> Any:
        """POST a JSON document and return the answer's; never carried out twice."""
        return await self._ask(post_document(path, document), timeout_s)

    async def put(self, path: str, document: object, *, timeout_s: float | None = None) -> Any:
        """PUT a JSON document and return the answer's; it may be carried out twice."""
        return await self._ask(put_document(path, document), timeout_s)

    async def delete(self, path: str, *, timeout_s: float | None = None) -> Any:
        """DELETE a path and return the answer's document, if it has one; never carried out twice."""
        return await self._ask(delete_document(path), timeout_s)

    async def run(self, flow: Flow[T], *, timeout_s: float | None = None) -> T:
        """Carry out a flow of calls, as `MeshClient.run` does."""
        deadline = None
        if timeout_s is not None:
            deadline = time.monotonic() + checked_timeout_s(timeout_s)
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._carry_out(step, deadline)
                except Exception as error:  # noqa: BLE001 - the flow decides what it means
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            returned: T = end.value
            return returned
        finally:
            flow.close()

    # Inside

    async def _ask(self, flow: Flow[T], timeout_s: float | None) -> T:
        return await self.run(flow, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    async def _carry_out(self, step: Call | Pause | Blocking, deadline: float | None) -> object:
        match step:
            case Call():
                return await self._call(step, deadline)
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Blocking(function):
                return await asyncio.to_thread(function)

    async def _call(self, call: Call, deadline: float | None) -> Reply:
        if self._closed:
            raise UsageError("this client was closed; make a new one")
        if self._pool is not None and self._pool.is_elsewhere:
            raise UsageError(
                "this AsyncMeshClient belongs to the event loop in which it was first used; make one "
                "in each loop, that is, within each asyncio.run"
            )
        now = time.monotonic()
        timeout_s = call_timeout_s(call, deadline, self._timeout_s, now)
        plan = call_plan(call, self._gateways, self._target, now, now + timeout_s, self._rng)
        while True:
            match step := plan.next(time.monotonic()):
                case Try(gateway):
                    outcome = await self._try(call, step)
                    reply = settle(plan, gateway, outcome, time.monotonic())
                    if reply is not None:
                        return accepted(reply)
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case GiveUp():
                    endpoints = self._target.endpoints
                    raise error_of_end(step, endpoints, timeout_s, f"{call.method} {call.path}")

    async def _try(self, call: Call, step: Try) -> Reply | Failure:
        if self._pool is None:
            from meshnode.client.async_pool import AsyncPool

            self._pool = AsyncPool(self._target)
        try:
            reply = await self._pool.attempt(call, step)
        except TryFailed as failed:
            return failed.failure(step.gateway)
        return failure_of(reply) or reply
