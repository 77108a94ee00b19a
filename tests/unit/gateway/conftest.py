"""Fakes around the gateway: a clock, models that run here and elsewhere, and the daemon."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import MeshError, ModelNotFound, NotServing
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.pipeline import Pipeline
from meshnode.gateway.protocols.http import json_response
from meshnode.metrics import Counter, Gauge, Metric
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.routing.load import LinkState
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    NodeId,
    ReplicaState,
    ResponsePart,
    Role,
    Tensor,
)
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.types import Buffer

ME = NodeId("a" * 32)
PEERS = {"beta": NodeId("b" * 32), "gamma": NodeId("c" * 32), "delta": NodeId("d" * 32)}


class FakeClock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return self.time_s


def echo_part(request: InferRequest) -> ResponsePart:
    """Answer each input x as an output of the same name."""
    return ResponsePart(
        tuple(Tensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs),
        dict(request.parameters),
    )


class FakeLocal:
    """A model server that echoes; `inline` and `fail` are set by a test."""

    def __init__(self) -> None:
        self.inline = True
        self.fail: MeshError | None = None
        self.gone = False
        self.requests: list[InferRequest] = []
        self.behave: Callable[[InferRequest], Any] | None = None

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        if not self.inline:
            return None
        self.requests.append(request)
        if self.fail is not None:
            raise self.fail
        return echo_part(request)

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        if self.fail is not None:
            raise self.fail
        if self.behave is not None:
            response: InferResponse = await self.behave(request)
            return response
        return InferResponse(request.model, request.version or 0, echo_part(request))

    def load_report(self, model: str, version: int) -> LoadReport:
        if self.gone:
            raise NotServing(f"{model} {version} is gone")
        return LoadReport(0, 4, 1.5)


class FakePeers:
    """Other nodes: each test scripts what the next calls do, by node."""

    def __init__(self) -> None:
        self.script: dict[NodeId, MeshError] = {}
        self.calls: list[tuple[NodeId, InferRequest, float]] = []
        self.behave: Callable[[NodeId, InferRequest], Any] | None = None

    async def infer(
        self, node: NodeId, request: InferRequest, first_byte_timeout_s: float
    ) -> InferResponse:
        self.calls.append((node, request, first_byte_timeout_s))
        if node in self.script:
            raise self.script[node]
        if self.behave is not None:
            response: InferResponse = await self.behave(node, request)
            return response
        return InferResponse(request.model, request.version or 0, echo_part(request))


class FakeTrust:
    """Who belongs to the mesh; notes what is asked among the daemon's calls."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls

    def create_invite(
        self, ttl_s: int, role: Role, uses: int, region: str, caller: Caller
    ) -> dict[str, Any]:
        self.calls.append(("invite", ttl_s, role, uses, region, caller))
        return {"invite": "mesh1abc", "expires_at": "2026-01-01T00:00:00Z"}

    def view(self) -> dict[str, Any]:
        return {"mesh": "m", "members": [], "revoked": []}

    def evict(
        self, node: str, reason: str, *, with_invited: bool, caller: Caller
    ) -> dict[str, Any]:
        self.calls.append(("evict", node, reason, with_invited, caller))
        return {"node": node, "changed": True}

    def set_role(self, node: str, role: Role, caller: Caller) -> dict[str, Any]:
        self.calls.append(("role", node, role, caller))
        return {"node": node, "role": role}

    def rotate(self) -> dict[str, Any]:
        self.calls.append(("rotate",))
        return {"node": "b" * 32, "former": ME}

    def seal(self) -> dict[str, Any]:
        self.calls.append(("seal",))
        return {"mesh": "m", "changed": True}


class FakeJoinDesk:
    """The devices that ask to join."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls

    def view(self) -> list[dict[str, Any]]:
        return [{"node": "c" * 32, "name": "camera"}]

    def approve(self, text: str, role: Role, region: str, caller: Caller) -> dict[str, Any]:
        self.calls.append(("approve", text, role, region, caller))
        return {"node": "c" * 32, "name": "camera", "role": role, "region": region}


class FakeControl:
    """The daemon."""

    def __init__(self, manifests: dict[tuple[str, int], Manifest]) -> None:
        self.manifests = manifests
        self.is_ready = True
        self.ready_versions: set[int] | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.broken = False
        self.role = Role.ADMIN
        self.trust = FakeTrust(self.calls)
        self.join_desk = FakeJoinDesk(self.calls)

    def status(self) -> dict[str, Any]:
        if self.broken:
            raise ZeroDivisionError("a defect")
        return {"id": ME, "name": "alpha", "pid": 7, "data_dir": "/home/ann/mesh"}

    def ready(self) -> tuple[bool, str]:
        return self.is_ready, "" if self.is_ready else "no mesh was joined yet"

    def nodes(self) -> list[dict[str, Any]]:
        return [{"id": ME, "name": "alpha", "self": True}]

    def rtt(self, one: str, other: str) -> dict[str, Any]:
        return {"from": {"name": one}, "to": {"name": other}, "rtt_ms": 80.0, "rtt_estimated": True}

    def _versions(self, name: str) -> list[int]:
        versions = sorted(v for model, v in self.manifests if model == name)
        if not versions:
            raise ModelNotFound(f"no node of this mesh has a model {name!r}")
        return versions

    def models(self) -> list[dict[str, Any]]:
        return [self.model(name) for name in sorted({name for name, _ in self.manifests})]

    def model(self, name: str) -> dict[str, Any]:
        return {"name": name, "versions": self._versions(name), "replicas": [], "wanted": None}

    def manifest(self, model: str, version: int | None) -> Manifest:
        number = version or self._versions(model)[-1]
        if (model, number) not in self.manifests:
            raise ModelNotFound(f"model {model!r} has no version {number}")
        return self.manifests[model, number]

    def is_model_ready(self, model: str, version: int | None) -> bool:
        number = self.manifest(model, version).version
        return self.ready_versions is None or number in self.ready_versions

    def forward(
        self, needed: Role, http: HttpRequest, request_id: str, upload: str | None = None
    ) -> Awaitable[HttpResponse] | None:
        if self.role.allows(needed):
            return None
        self.calls.append(("forward", needed, http.method, http.path, bytes(http.body), upload))
        return self._elsewhere()

    async def _elsewhere(self) -> HttpResponse:
        return json_response({"answered": "elsewhere"})

    async def deploy(
        self, path: str, name: str | None, replicas: int | None, on: list[str]
    ) -> dict[str, Any]:
        self.calls.append(("deploy", path, name, replicas, on))
        return {"name": name or "digits", "versions": [1], "replicas": []}

    async def undeploy(self, name: str, caller: Caller) -> None:
        self.calls.append(("undeploy", name, caller))

    def keys(self) -> list[dict[str, Any]]:
        return [{"id": "k" * 16, "name": "phone"}]

    def create_key(
        self, name: str, scopes: list[str], ttl_s: int | None, caller: Caller
    ) -> dict[str, Any]:
        self.calls.append(("create_key", name, scopes, ttl_s, caller))
        return {"name": name, "key": "mesh_..."}

    def revoke_key(self, key: str, caller: Caller) -> dict[str, Any]:
        self.calls.append(("revoke_key", key, caller))
        return {"name": key, "changed": True}

    async def deploy_upload(
        self, upload: str, name: str | None, replicas: int | None, on: list[str], caller: Caller
    ) -> dict[str, Any]:
        self.calls.append(("deploy_upload", upload, name, replicas, on, caller))
        return {"name": name or "digits", "versions": [1], "replicas": []}

    def uploads(self) -> list[dict[str, Any]]:
        return [{"id": "u1", "key_id": ""}]

    async def begin_upload(self, files: list[tuple[str, int]], caller: Caller) -> dict[str, Any]:
        self.calls.append(("begin_upload", files, caller))
        return {"id": "u1", "piece_bytes": 8}

    def upload(self, upload: str, caller: Caller) -> dict[str, Any]:
        self.calls.append(("upload", upload, caller))
        return {"id": upload}

    async def take_piece(
        self, upload: str, index: int, offset: int, data: Buffer, caller: Caller
    ) -> int:
        self.calls.append(("take_piece", upload, index, offset, bytes(data), caller))
        return offset + len(data)

    async def drop_upload(self, upload: str, caller: Caller) -> None:
        self.calls.append(("drop_upload", upload, caller))

    async def examine(self, peer: str) -> dict[str, Any]:
        self.calls.append(("examine", peer))
        return {"subject": peer, "id": "", "checks": []}

    def shutdown(self, leave: bool) -> dict[str, Any]:
        self.calls.append(("shutdown", leave))
        return {"pid": 7, "leave": leave}

    def metrics(self) -> Iterable[Metric]:
        counter = Counter("meshnode_links_lost", "Links lost.", ("peer",))
        counter.add(('we"ird\n',), 2)
        gauge = Gauge("meshnode_members", "Members.")
        gauge.set((), 3)
        return [counter, gauge]


def spec(name: str, shape: tuple[int, ...], datatype: DataType = DataType.FP32) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    def make(
        *inputs: TensorSpec, model: str = "digits", version: int = 1, max_batch_size: int = 0
    ) -> Manifest:
        specs = inputs or (spec("x", (-1, 4)),)
        return Manifest(
            model, version, "onnx", "onnxruntime_onnx", specs, specs, max_batch_size, (), "m.onnx"
        )

    return make


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def local() -> FakeLocal:
    return FakeLocal()


@pytest.fixture
def peers() -> FakePeers:
    return FakePeers()


@pytest.fixture
def router() -> Router:
    return Router(ME, "eu-west", random.Random(7))


@pytest.fixture
def serve(router: Router, manifest: Manifest) -> Callable[..., None]:
    """Announce a replica of a manifest on a node, with its link up."""

    def announce(
        node: str = "alpha", what: Manifest | None = None, *, known: bool = True, region: str = ""
    ) -> None:
        what = what or manifest
        node_id = PEERS.get(node, ME)
        router.replica_changed(
            Replica(
                node_id,
                node,
                region or "eu-west",
                "",
                what.model,
                what.version,
                ReplicaState.READY,
                manifest=what if known else None,
            ),
            100.0,
        )
        if node_id != ME:
            router.link_changed(node_id, LinkState.UP)

    return announce


@pytest.fixture
def metrics() -> GatewayMetrics:
    return GatewayMetrics()


@pytest.fixture
def pipeline(
    router: Router, local: FakeLocal, peers: FakePeers, clock: FakeClock, metrics: GatewayMetrics
) -> Pipeline:
    return Pipeline(ME, router, local, peers, clock, metrics)


@pytest.fixture
def control(manifest: Manifest) -> FakeControl:
    return FakeControl({("digits", 1): manifest})


@pytest.fixture
def dispatcher(pipeline: Pipeline, control: FakeControl, metrics: GatewayMetrics) -> Dispatcher:
    return Dispatcher(pipeline, control, metrics)
