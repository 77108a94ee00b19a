"""Fakes around the gateway: a clock, models that run here and elsewhere, and the daemon."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import MeshError, ModelNotFound, NotFound, NotServing
from meshnode.gateway import cold_starts
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.mesh_events import MeshEvents
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.pipeline import Pipeline
from meshnode.gateway.protocols.http import json_response
from meshnode.gateway.repository_api import IndexEntry, Load, Register
from meshnode.key_limit import NO_LIMIT, KeyLimit
from meshnode.metrics import Counter, Gauge, Metric
from meshnode.models.exposure import NO_CHANGE, ExposureChange
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
from tests.unit.gateway.fake_jobs import FakeJobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from meshnode.gateway.deployments_api import Definition
    from meshnode.gateway.explain_api import AskedFor
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.models.serving.statistics import ModelStatistics
    from meshnode.state.release import Release, Verb
    from meshnode.state.scaling import Scaling
    from meshnode.types import Buffer, RoutingHints
    from tests.unit.gateway import text_gateway

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

    async def infer(self, node: NodeId, request: InferRequest) -> InferResponse:
        self.calls.append((node, request, request.timeout_s))
        if node in self.script:
            raise self.script[node]
        if self.behave is not None:
            response: InferResponse = await self.behave(node, request)
            return response
        return InferResponse(request.model, request.version or 0, echo_part(request))


class FakeDrains:
    """The nodes that are to be emptied; notes what is asked among the daemon's calls."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls

    def view(self, name: str) -> dict[str, Any]:
        return {"node": ME, "name": name, "state": "serving"}

    def begin(self, name: str, *, force: bool, wait_s: int, caller: Caller) -> dict[str, Any]:
        self.calls.append(("drain", name, force, wait_s, caller))
        return {"node": ME, "name": name, "state": "draining"}

    def undo(self, name: str, caller: Caller) -> dict[str, Any]:
        self.calls.append(("undrain", name, caller))
        return {"node": ME, "name": name, "state": "serving"}


class FakeDefinitions:
    """What is deployed; notes what is asked among the daemon's calls."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls
        self.changes = True

    def all(self, caller: Caller) -> list[dict[str, Any]]:
        return [{"name": "digits", "replicas": 1}]

    def one(self, name: str, caller: Caller, revision: str = "") -> dict[str, Any]:
        return {"name": name, "replicas": 1, "revision": revision}

    def history(self, name: str) -> list[dict[str, Any]]:
        return [{"id": "1.0.a"}]

    def diff(self, name: str, before: str, after: str, caller: Caller) -> dict[str, Any]:
        return {"name": name, "from": before, "to": after, "changes": []}

    async def apply(self, wish: Definition, caller: Caller) -> dict[str, Any]:
        self.calls.append(("apply", wish, caller))
        return {"name": wish.spec.name, "changed": self.changes}

    async def rollback(
        self, name: str, revision: str, base: str | None, caller: Caller
    ) -> dict[str, Any]:
        self.calls.append(("rollback", name, revision, base, caller))
        return {"name": name, "changed": self.changes}

    async def change(
        self,
        name: str,
        base: str | None,
        caller: Caller,
        *,
        enabled: bool | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> dict[str, Any]:
        self.calls.append(("change", name, base, enabled, dict(env or {}), caller))
        return {"name": name, "changed": self.changes}

    def remove(self, name: str, base: str | None, caller: Caller) -> dict[str, Any]:
        self.calls.append(("undeploy", name, base, caller))
        return {"name": name, "revision": "1.0.a"}


class FakeRollouts:
    """Releases on their way; notes what is asked among the daemon's calls."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls

    def show(self, name: str) -> dict[str, Any]:
        if name != "digits":
            raise NotFound(f"{name!r} has no release in progress")
        return {"name": name, "phase": "running"}

    def ask(self, name: str, verb: Verb, reason: str, caller: Caller) -> dict[str, Any]:
        self.calls.append(("rollout", name, verb, reason, caller))
        return self.show(name)


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


class FakeRepository:
    """The mesh's models as a repository; notes what is asked among the daemon's calls."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls
        self.entries = [
            IndexEntry("digits", 1, "READY"),
            IndexEntry("old", 2, "UNAVAILABLE", "unloaded"),
        ]

    def index(self, *, only_ready: bool) -> list[IndexEntry]:
        return [each for each in self.entries if each.state == "READY" or not only_ready]

    async def load(self, name: str, wish: Load, caller: Caller) -> int:
        self.calls.append(("load", name, wish, caller))
        return wish.version or 1

    async def unload(self, name: str, caller: Caller, *, dependents: bool = False) -> None:
        self.calls.append(("unload", name, dependents, caller))

    async def register(self, wish: Register, caller: Caller) -> tuple[str, int]:
        self.calls.append(("register", wish, caller))
        return wish.name or "digits", 1

    async def remove(self, name: str, version: int | None, caller: Caller) -> None:
        self.calls.append(("remove", name, version, caller))

    async def scale(self, name: str, version: int | None, replicas: int, caller: Caller) -> None:
        self.calls.append(("scale", name, version, replicas, caller))

    async def ready(self, name: str, version: int | None, replicas: int = 1) -> None:
        self.calls.append(("ready", name, version, replicas))

    async def make_default(self, name: str, version: int, caller: Caller) -> None:
        self.calls.append(("make_default", name, version, caller))


class FakeRouting:
    """What the daemon tells of its decisions."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls

    def explain(self, model: str, asked: AskedFor, hints: RoutingHints) -> dict[str, Any]:
        self.calls.append(("explain", model, asked, hints))
        return {"gateway": "alpha", "model": model, "candidates": [], "excluded": []}

    def decisions(self) -> list[dict[str, Any]]:
        return [{"number": 1}]


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
        self.drains = FakeDrains(self.calls)
        self.definitions = FakeDefinitions(self.calls)
        self.rollouts = FakeRollouts(self.calls)
        self.join_desk = FakeJoinDesk(self.calls)
        self.routing = FakeRouting(self.calls)
        self.jobs = FakeJobs(self.calls)
        self.events = MeshEvents("run", lambda: "2026-01-01T00:00:00Z")
        self.repository = FakeRepository(self.calls)
        self.counted: list[ModelStatistics] = []

    def status(self) -> dict[str, Any]:
        if self.broken:
            raise ZeroDivisionError("a defect")
        return {"id": ME, "name": "alpha", "pid": 7, "data_dir": "/home/ann/mesh"}

    def health(self) -> str:
        """Be well."""
        return "ok" if self.is_ready else "draining"

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

    async def statistics(self, model: str | None, version: int | None) -> list[ModelStatistics]:
        if model is not None:
            self.manifest(model, version)
        return [each for each in self.counted if model in (None, each.model)]

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
        self,
        path: str,
        name: str | None,
        replicas: int | None,
        on: list[str],
        variant: str = "",
        said: Any = None,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        del said
        form = (*((variant,) if variant else ()), *_said_of(offer), *_given(scaling, release))
        self.calls.append(("deploy", path, name, replicas, on, *form))
        return {"name": name or "digits", "versions": [1], "replicas": []}

    def deploy_published(
        self,
        name: str,
        version: int | None,
        replicas: int | None,
        on: list[str],
        caller: Caller,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        said = (*_said_of(offer), *_given(scaling, release))
        self.calls.append(("deploy_published", name, version, replicas, on, caller, *said))
        return {"name": name, "versions": [1], "replicas": []}

    async def publish(self, path: str, name: str | None, said: Any) -> dict[str, Any]:
        self.calls.append(("publish", path, name, said))
        return {"name": name or "digits", "versions": []}

    async def publish_upload(
        self, upload: str, name: str | None, said: Any, caller: Caller
    ) -> dict[str, Any]:
        self.calls.append(("publish_upload", upload, name, said, caller))
        return {"name": name or "digits", "versions": []}

    def artifacts(self) -> list[dict[str, Any]]:
        return [{"name": "digits", "version": 1}]

    def withdraw(self, name: str, version: int, caller: Caller) -> None:
        self.calls.append(("withdraw", name, version, caller))

    def keys(self) -> list[dict[str, Any]]:
        return [{"id": "k" * 16, "name": "phone"}]

    def create_key(
        self,
        name: str,
        scopes: list[str],
        ttl_s: int | None,
        caller: Caller,
        limit: KeyLimit = NO_LIMIT,
    ) -> dict[str, Any]:
        limited = () if limit == NO_LIMIT else (limit,)
        self.calls.append(("create_key", name, scopes, ttl_s, caller, *limited))
        return {"name": name, "key": "mesh_..."}

    def limit_key(self, key: str, limit: KeyLimit, caller: Caller) -> dict[str, Any]:
        self.calls.append(("limit_key", key, limit, caller))
        return {"name": key, "changed": True}

    def revoke_key(self, key: str, caller: Caller) -> dict[str, Any]:
        self.calls.append(("revoke_key", key, caller))
        return {"name": key, "changed": True}

    async def deploy_upload(
        self,
        upload: str,
        name: str | None,
        replicas: int | None,
        on: list[str],
        caller: Caller,
        variant: str = "",
        said: Any = None,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        del said
        form = (*((variant,) if variant else ()), *_said_of(offer), *_given(scaling, release))
        self.calls.append(("deploy_upload", upload, name, replicas, on, caller, *form))
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


def _given(*further: object) -> tuple[object, ...]:
    return tuple(each for each in further if each is not None)


def _said_of(offer: ExposureChange) -> tuple[ExposureChange, ...]:
    """Return how a deployment wants its model to be offered, if it says anything about it."""
    return () if offer == NO_CHANGE else (offer,)


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
            router.link_changed(node_id, LinkState.UP, 0.0)

    return announce


@pytest.fixture
def metrics() -> GatewayMetrics:
    return GatewayMetrics()


@pytest.fixture
def pipeline(
    router: Router,
    local: FakeLocal,
    peers: FakePeers,
    clock: FakeClock,
    metrics: GatewayMetrics,
    monkeypatch: pytest.MonkeyPatch,
) -> Pipeline:
    # Its clock stands still, so nobody's patience would end; test_cold_starts has one that goes.
    monkeypatch.setattr(cold_starts, "COLD_GRACE_S", 0.0)
    monkeypatch.setattr(cold_starts, "MAX_COLD_WAIT_S", 0.0)
    return Pipeline(ME, router, local, peers, clock, metrics)


@pytest.fixture
def control(manifest: Manifest) -> FakeControl:
    return FakeControl({("digits", 1): manifest})


@pytest.fixture
def dispatcher(pipeline: Pipeline, control: FakeControl, metrics: GatewayMetrics) -> Dispatcher:
    return Dispatcher(pipeline, control, metrics)


@pytest.fixture
def gateway(
    dispatcher: Dispatcher, local: FakeLocal, serve: Callable[..., None]
) -> text_gateway.Gateway:
    """Posts to a gateway whose models take text."""
    from tests.unit.gateway.text_gateway import Gateway

    return Gateway(dispatcher, local, serve)
