"""`MeshClient`: a mesh from a program that waits for its answers."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

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
from meshnode.client.driving import (
    accepted,
    call_plan,
    call_timeout_s,
    checked_timeout_s,
    settle,
    tls_context,
)
from meshnode.client.endpoints import control_target, gateway_target
from meshnode.client.infer import InferResult, MetadataCache, get_metadata, infer
from meshnode.client.paths import data_dir as default_data_dir
from meshnode.client.plan import Failure, Gateways, GiveUp, Try, Wait
from meshnode.client.replies import error_of_end, failure_of
from meshnode.client.results import ModelInfo, read_as
from meshnode.client.tries import TryFailed
from meshnode.errors import UsageError
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import ArrayLike

    from meshnode.client.endpoints import Target
    from meshnode.client.pool import Pool
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

DEFAULT_INVITE_TTL_S: Final = 24 * 3600
"""Long enough to walk to the next device, short enough to forget."""


class MeshClient:
    """A mesh, through any of its gateways.

    Every method may be called from several threads at once; they share a pool of connections. A call
    that finds a gateway gone, frozen or overloaded goes on to the next one within its time. Close the
    client, or use it with `with`. Do not use one across `fork`: make it in the child.

    A client of a gateway sends its API key with every request, so use `https` where others can listen.
    Proxies of the environment (`HTTP_PROXY`) are not used, and redirections not followed.

    Every call raises, besides what it names itself:

    - `GatewayUnavailable`: no gateway could be reached, or all broke off; says each and why.
    - `DeadlineExceeded`: no answer in time.
    - `Unauthenticated`, `Forbidden`, `Throttled`: the API key is missing, wrong, lacks a scope, or
      too many wrong ones were sent.
    - `ConfigError`: a certificate is not trusted; on a local client, no daemon runs.
    - `ProtocolError`: what answered is no gateway of this version.
    - `UsageError`: the client was closed.
    """

    def __init__(
        self,
        gateways: str | Iterable[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        ca_file: str | None = None,
    ) -> None:
        """Make a client; nothing is connected before the first call.

        Args:
            gateways: URLs, such as `http://192.0.2.7:8470`, in the order of preference. Without any,
                those of `MESHNODE_GATEWAY` (separated by commas), else `http://127.0.0.1:8470`.
            api_key: An API key; else that of `MESHNODE_API_KEY`, or in the file that
                `MESHNODE_API_KEY_FILE` names. A gateway on this machine needs none to infer and read.
            timeout_s: Seconds for each call, unless the call says otherwise.
            ca_file: File of certificates (PEM) to trust for `https`, instead of the system's; else the
                one that `MESHNODE_CA_FILE` names.

        Raises:
            ConfigError: if a URL, the key or a file cannot be used.
        """
        self._start(gateway_target(gateways, api_key, os.environ, ca_file=ca_file), timeout_s)

    @classmethod
    def local(
        cls, data_dir: str | Path | None = None, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    ) -> Self:
        """Return a client of this machine's daemon, as its owner: it may do everything, without a key.

        It talks over the control channel, which only the daemon's owner can open, and holds nothing
        open between calls.

        Args:
            data_dir: The daemon's data folder; else `MESHNODE_DATA_DIR`, else the platform's.
            timeout_s: Seconds for each call, unless the call says otherwise.
        """
        option = None if data_dir is None else str(data_dir)
        return cls.of(control_target(default_data_dir(option, os.environ)), timeout_s=timeout_s)

    @classmethod
    def of(cls, target: Target, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S) -> Self:
        """Return a client of a target that was made before."""
        client = cls.__new__(cls)
        client._start(target, timeout_s)
        return client

    def _start(self, target: Target, timeout_s: float) -> None:
        # Sockets, HTTP and TLS are a third of the import, and no concern of an `AsyncMeshClient`.
        from meshnode.client.pool import Pool

        self._target = target
        self._timeout_s = checked_timeout_s(timeout_s)
        self._rng = random.Random()
        self._gateways = Gateways(len(target.endpoints))
        self._cache = MetadataCache()
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._closed = False
        key = target.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pools: list[Pool] = [
            Pool(index, endpoint, headers, self._context)
            for index, endpoint in enumerate(target.endpoints)
        ]

    def __repr__(self) -> str:
        where = ", ".join(str(endpoint) for endpoint in self._target.endpoints)
        return f"<MeshClient of {where}{', closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the idle connections; calls that run finish, and no new one begins."""
        self._closed = True
        for pool in self._pools:
            pool.close()

    # Inference

    def infer(
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
        """Run a model on one input; any node of the mesh may serve it.

        Args:
            model: Public name of the model.
            inputs: A map from input name to NumPy array, nested lists, a single value or an
                `InputTensor`; or one of these alone for a model with one input. Arrays are sent with
                the type they have. Lists take the type that the model says (asked for once), and may
                leave out the batch dimension.
            version: A version, or None for the newest that is ready.
            outputs: Names of the outputs wanted; empty for all.
            parameters: Parameters for the model.
            timeout_s: Seconds until the result must be there, all tries included; the gateway is
                told. None for the client's.
            request_id: An id for the logs of every node involved; else the gateway makes one.

        Returns:
            The outputs as NumPy arrays, and how they came about.

        Raises:
            InvalidRequest: if the inputs are not what the model takes, or cannot be sent.
            ModelNotFound: if the mesh does not know the model or the version.
            NoReplica: if no replica can take the request now.
            Saturated: if all queues are full.
            InferenceFailed: if the model raised.
            TooLarge: if the request or the answer exceeds its limit.
        """
        flow = infer(
            self._cache,
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
        )
        return self.run(flow, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def metadata(
        self, model: str, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelMetadata:
        """Return what a model takes and gives.

        Raises:
            ModelNotFound: if the mesh does not know the model or the version.
        """
        return self._ask(get_metadata(model, version), timeout_s)

    # What there is

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Return the mesh's models and where they are served."""
        return self._ask(flows.models(), timeout_s)

    def model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Return one model of the mesh.

        Raises:
            ModelNotFound: if the mesh neither serves nor deploys it.
        """
        return self._ask(flows.model(name), timeout_s)

    def nodes(self, *, timeout_s: float | None = None) -> list[NodeInfo]:
        """Return the mesh's nodes, the one that answers first."""
        return self._ask(flows.nodes(), timeout_s)

    def status(self, *, timeout_s: float | None = None) -> NodeStatus:
        """Return the node that answers."""
        return self._ask(flows.status(), timeout_s)

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether some gateway is in its mesh and takes requests; False if it answers that it is not."""
        return self._ask(flows.ready(), timeout_s)

    # Deployments: an API key needs the scope `deploy`

    def deploy(
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
        """Serve a model on the mesh; its files travel to the nodes that will serve it.

        Through a gateway the files are uploaded first, in pieces; when that gateway is lost, the upload
        begins again on another. A local client tells its daemon the path.

        Args:
            path: A model's folder (`DIR/1/model.onnx`) or a bare `.onnx` file.
            name: Public name; else the folder's or file's.
            replicas: How many nodes shall serve it; else 1, or as many as `on` names.
            on: Nodes that shall serve it, by name or id.
            wait: Whether to wait until its replicas are ready.
            timeout_s: Seconds to wait for them, once the gateway has the files.
            progress: Called with every change, in the thread of the call.

        Returns:
            The model, ready or (without `wait`) as it is.

        Raises:
            ConfigError: if there is nothing at the path.
            ModelError: if it holds no model, several, or one that cannot be served.
            InvalidRequest: if a node is unknown, or the replicas do not fit.
            PeerError: if a replica failed, or the deployment was replaced or withdrawn meanwhile; or if
                all that could be placed is ready and no node can take the rest: it stays deployed.
            DeadlineExceeded: if it is not ready in time; it goes on in the background.
            GatewayUnavailable: if the gateway was lost; the message says if the deployment may have
                been made.
        """
        wish = deploying.Wish(str(path), name, replicas, names_of("on", on))
        wait_s = checked_timeout_s(timeout_s) if wait else None
        flow = self.deployment(wish, wait_s, progress or deploying.ignore)
        return read_as(ModelInfo, self.run(flow))

    def deployment(
        self,
        wish: deploying.Wish,
        wait_s: float | None,
        progress: Callable[[DeployProgress], object],
    ) -> Flow[dict[str, Any]]:
        """Return a deployment as a flow to `run`, whose result is the model's JSON document.

        Args:
            wish: What shall be deployed.
            wait_s: Seconds to wait for the replicas; None not to wait.
            progress: Called with every change.
        """
        return deploying.deploy(
            wish,
            local=self._target.is_local,
            gateways=len(self._pools),
            progress=progress,
            clock=time.monotonic,
            wait_s=wait_s,
        )

    def wait_ready(
        self,
        name: str,
        *,
        replicas: int | None = None,
        version: int | None = None,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
    ) -> ModelInfo:
        """Wait until a model is served, also one that is not known yet.

        Args:
            name: Public name of the model.
            replicas: How many replicas must be ready; else as many as the deployment asks for.
            version: Of this version; else of each that is deployed.
            timeout_s: Seconds to wait.
            progress: Called with every change.

        Raises:
            PeerError: if a replica failed.
            DeadlineExceeded: with what is missing.
        """
        watch, wait_s = progress or deploying.ignore, checked_timeout_s(timeout_s)
        return self.run(
            deploying.wait_ready(name, replicas, version, watch, time.monotonic, wait_s)
        )

    def undeploy(self, name: str, *, timeout_s: float | None = None) -> None:
        """Stop serving a deployed model everywhere.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
        """
        self._ask(flows.undeploy(name), timeout_s)

    # Keys, invites and members: an API key needs the scope `admin`

    def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[Literal["infer", "deploy", "admin"]] = ("infer",),
        ttl_s: int | None = None,
        timeout_s: float | None = None,
    ) -> NewKey:
        """Make an API key. Its text, `key`, is told this once: the mesh keeps only a hash.

        Args:
            name: What people will call it.
            scopes: What its holder may do; `deploy` includes `infer`, `admin` both.
            ttl_s: Seconds until it expires; None for never.
            timeout_s: Seconds for the call.

        Raises:
            InvalidRequest: if the name is taken or breaks its rule.
        """
        return self._ask(flows.create_key(name, scopes, ttl_s), timeout_s)

    def keys(self, *, timeout_s: float | None = None) -> list[KeyInfo]:
        """Return the mesh's API keys, without their secrets."""
        return self._ask(flows.keys(), timeout_s)

    def revoke_key(self, name_or_id: str, *, timeout_s: float | None = None) -> KeyInfo:
        """Revoke an API key everywhere, for ever.

        Raises:
            NotFound: if no key has this name or id.
        """
        return self._ask(flows.revoke_key(name_or_id), timeout_s)

    def invite(
        self,
        *,
        ttl_s: int = DEFAULT_INVITE_TTL_S,
        role: Literal["member", "operator", "admin"] = "operator",
        uses: int = 0,
        region: str = "",
        timeout_s: float | None = None,
    ) -> InviteInfo:
        """Make an invite: the line that lets another device join.

        Args:
            ttl_s: Seconds until it expires.
            role: What whoever uses it will be: a `member` serves, an `operator` also deploys and
                invites, an `admin` also evicts and gives roles.
            uses: How many devices may join with it; 0 for any number.
            region: Where they are unless they say otherwise.
            timeout_s: Seconds for the call.
        """
        return self._ask(flows.invite(ttl_s, role, uses, region), timeout_s)

    def join_requests(self, *, timeout_s: float | None = None) -> list[JoinRequest]:
        """Return the devices that ask the node that answers to be admitted, the earliest first.

        A device waits at the node that it asked, and no other node knows of it: use a client of that
        node's gateway alone.
        """
        return self._ask(flows.join_requests(), timeout_s)

    def approve(
        self,
        code: str,
        *,
        role: Literal["member", "operator", "admin"] = "operator",
        region: str = "",
        timeout_s: float | None = None,
    ) -> Approval:
        """Admit the device that shows this code, on the node that it asked.

        Args:
            code: Its six digits, as they are read on the device itself; spaces do not matter.
            role: What it will be, as for `invite`.
            region: Where it is unless it says otherwise.
            timeout_s: Seconds for the call.

        Raises:
            InvalidRequest: if that is no code.
            NotFound: if no device that asks this node shows it.
            Throttled: after too many wrong ones.
        """
        return self._ask(flows.approve(code, role, region), timeout_s)

    def trust(self, *, timeout_s: float | None = None) -> TrustInfo:
        """Return who belongs to the mesh, by whose word, and who does not any more."""
        return self._ask(flows.trust(), timeout_s)

    def evict(
        self,
        node: str,
        *,
        reason: str = "",
        with_invited: bool = False,
        timeout_s: float | None = None,
    ) -> Eviction:
        """Take a node out of the mesh for ever. An API key for it must be made on an admin's node.

        Args:
            node: Its name or id.
            reason: Why, for people.
            with_invited: Evict those that it invited as well, and those that these invited.
            timeout_s: Seconds for the call.

        Raises:
            InvalidRequest: if there is no such node, or it is the one that answers.
        """
        return self._ask(flows.evict(node, reason, with_invited), timeout_s)

    def set_role(
        self,
        node: str,
        role: Literal["member", "operator", "admin"],
        *,
        timeout_s: float | None = None,
    ) -> NodeRole:
        """Give a node another role. An API key for it must be made on an admin's node.

        Raises:
            InvalidRequest: if there is no such node, or it is the last admin.
        """
        return self._ask(flows.set_role(node, role), timeout_s)

    # What has no method of its own

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """GET a path of the HTTP API and return its JSON document as it came."""
        return self._ask(get_document(path), timeout_s)

    def post(self, path: str, document: object, *, timeout_s: float | None = None) -> Any:
        """POST a JSON document and return the answer's; never carried out twice."""
        return self._ask(post_document(path, document), timeout_s)

    def put(self, path: str, document: object, *, timeout_s: float | None = None) -> Any:
        """PUT a JSON document and return the answer's; it may be carried out twice."""
        return self._ask(put_document(path, document), timeout_s)

    def delete(self, path: str, *, timeout_s: float | None = None) -> Any:
        """DELETE a path and return the answer's document, if it has one; never carried out twice."""
        return self._ask(delete_document(path), timeout_s)

    def run(self, flow: Flow[T], *, timeout_s: float | None = None) -> T:
        """Carry out a flow of calls.

        Args:
            flow: From the modules of this package.
            timeout_s: Seconds for all of it; None where only each call is limited.
        """
        deadline = None
        if timeout_s is not None:
            deadline = time.monotonic() + checked_timeout_s(timeout_s)
        try:
            step = next(flow)
            while True:
                try:
                    result = self._carry_out(step, deadline)
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

    def _ask(self, flow: Flow[T], timeout_s: float | None) -> T:
        return self.run(flow, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def _carry_out(self, step: Call | Pause | Blocking, deadline: float | None) -> object:
        match step:
            case Call():
                return self._call(step, deadline)
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Blocking(function):
                return function()

    def _call(self, call: Call, deadline: float | None) -> Reply:
        if self._closed:
            raise UsageError("this client was closed; make a new one")
        now = time.monotonic()
        timeout_s = call_timeout_s(call, deadline, self._timeout_s, now)
        plan = call_plan(call, self._gateways, self._target, now, now + timeout_s, self._rng)
        while True:
            with self._lock:
                step = plan.next(time.monotonic())
            match step:
                case Try(gateway):
                    outcome = self._try(call, step)
                    with self._lock:
                        reply = settle(plan, gateway, outcome, time.monotonic())
                    if reply is not None:
                        return accepted(reply)
                case Wait(seconds):
                    time.sleep(seconds)
                case GiveUp():
                    endpoints = self._target.endpoints
                    raise error_of_end(step, endpoints, timeout_s, f"{call.method} {call.path}")

    def _try(self, call: Call, step: Try) -> Reply | Failure:
        try:
            reply = self._pools[step.gateway].attempt(call, step)
        except TryFailed as failed:
            return failed.failure(step.gateway)
        return failure_of(reply) or reply

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = tls_context(self._target)
            return self._tls
