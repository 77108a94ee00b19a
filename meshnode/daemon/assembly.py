"""A member's parts, put together: cores, driver, models, gateway, control channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode import hardware
from meshnode.advertisement import ModelLoad, NodeLoad
from meshnode.client.control import ControlAddress
from meshnode.daemon.artifacts import Artifacts
from meshnode.daemon.control import Control
from meshnode.daemon.driver import Driver, ModelEffect, seeded_random
from meshnode.daemon.metrics import DaemonMetrics
from meshnode.daemon.serving import PeerServer
from meshnode.effects import LoadModel
from meshnode.errors import MeshError, ProtocolError
from meshnode.events import Start
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.pipeline import Pipeline
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.membership.messages import MemberRecord, read_members, sign_record
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.server import ModelServer
from meshnode.models.store import BlobStore
from meshnode.net.peers import LoadListener, PeerClient
from meshnode.node import LoadSampled, Node, NodeTrust
from meshnode.trust.identity import verify
from meshnode.types import Address, NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.datafolder import DataFolder
    from meshnode.models.manifest import Manifest
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.options import JoinOptions
    from meshnode.wire.messages import LoadReport

log = logging.getLogger(__name__)

LOAD_INTERVAL_S = 1.0
"""How often a node looks at its own load; only a change is told to others."""

CLOSE_GRACE_S = 1.0
"""Seconds that the last HTTP answers have to be written; running requests finished before."""

LOAD_REFRESH_S = 10.0
"""An unchanged load is told again this often, so that a fresh one is told from a stale one."""

_CPU_STEP = 0.1  # a change of CPU load that is worth telling
_MEMORY_STEP = 0.05  # likewise of free memory, as a share


class Assembly:
    """A running member. Made by `assemble`; `start` sets it going, `close` ends it."""

    def __init__(
        self,
        *,
        node: Node,
        record: MemberRecord,
        driver: Driver,
        hub: LinkHub,
        credentials: Credentials,
        models: ModelServer,
        artifacts: Artifacts,
        peer_server: PeerServer,
        pipeline: Pipeline,
        control: Control,
        gateway_metrics: GatewayMetrics,
        clock: Clock,
    ) -> None:
        """Take the parts."""
        self.node = node
        self.record = record
        self.driver = driver
        self.hub = hub
        self.credentials = credentials
        self.control = control
        self._models = models
        self._artifacts = artifacts
        self._peer_server = peer_server
        self._pipeline = pipeline
        self._gateway_metrics = gateway_metrics
        self._clock = clock
        self._servers: list[HttpServer] = []
        self._gateways: list[HttpServer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: NodeLoad | None = None
        self._told_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Assembly of {self.node!r}>"

    @property
    def busy(self) -> bool:
        """Whether any request is being worked on, for a client or for a peer."""
        return self._peer_server.running > 0 or self._pipeline.in_flight > 0

    async def stop_http(self) -> None:
        """Take no new HTTP connections; what is asked on standing ones is still answered."""
        for server in self._gateways:
            await server.stop_accepting()

    def close_idle_http(self) -> None:
        """Close the HTTP connections of programs that ask nothing."""
        for server in self._gateways:
            server.close_idle()

    @property
    def http_busy(self) -> bool:
        """Whether a request of a client is being worked on."""
        return self._pipeline.in_flight > 0

    async def open_gateway(self, address: Address) -> None:
        """Offer HTTP to this machine's programs; its address goes into this node's record.

        Raises:
            ConfigError: if the address is in use or not ours.
        """
        server = self._server(OriginPolicy(address.host), privileged=False)
        self.control.http = await server.listen_tcp(address)
        self._gateways.append(server)

    async def open_control(self, plan: ControlAddress) -> ControlAddress:
        """Open the owner's channel as planned; return it with the port that was bound.

        Raises:
            ConfigError: if it cannot be opened.
        """
        if plan.unix is not None:
            await self._server(None, privileged=True).listen_unix(Path(plan.unix))
            return plan
        assert plan.tcp is not None
        server = self._server(
            OriginPolicy(plan.tcp.host), privileged=True, authorizes=plan.authorizes
        )
        return ControlAddress(tcp=await server.listen_tcp(plan.tcp), token=plan.token)

    def start(self) -> None:
        """Begin to be a member."""
        self.driver.handle(Start())
        if self.control.http is not None:
            http = str(self.control.http)
            now = self._clock.now()
            self.driver.carry_out(self.node.membership.update_record(now, http=http))
        self._spawn(self._report_load())

    def load_folder(self, path: Path) -> None:
        """Load and serve every model of this node's own folder, in the background."""
        self._spawn(self._load_folder(path))

    async def close(self) -> None:
        """Close servers, models and what is under way."""
        self.driver.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.stop()
        await self._artifacts.close()
        await self._models.close()

    def _server(
        self,
        policy: OriginPolicy | None,
        *,
        privileged: bool,
        authorizes: Callable[[str | None], bool] | None = None,
    ) -> HttpServer:
        dispatcher = Dispatcher(
            self._pipeline, self.control, self._gateway_metrics, privileged=privileged
        )
        server = HttpServer(
            dispatcher,
            self._gateway_metrics,
            policy,
            grace_s=CLOSE_GRACE_S,
            authorizes=authorizes,
        )
        self._servers.append(server)
        return server

    async def _load_folder(self, path: Path) -> None:
        try:
            await self._artifacts.load_folder(path)
        except MeshError as error:
            log.error("the models of %s cannot be served: %s", path, error)

    async def _report_load(self) -> None:
        hardware.utilisation()  # the first call only sets the mark from which the next one measures
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            load = self._load()
            now = asyncio.get_running_loop().time()
            if _is_news(self._told, load) or now - self._told_at >= LOAD_REFRESH_S:
                self._told, self._told_at = load, now
                self.driver.handle(LoadSampled(load))

    def _load(self) -> NodeLoad:
        cpu, memory = hardware.utilisation()
        models = []
        for (model, version), replica in self.node.own.items():
            if replica.state is not ReplicaState.READY:
                continue
            with contextlib.suppress(MeshError):  # it is being unloaded
                report = self._models.load_report(model, version)
                models.append(
                    ModelLoad(model, version, report.in_system, report.slots, report.service_ms)
                )
        return NodeLoad(round(cpu, 3), memory, tuple(models))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of this node stopped", exc_info=error)


def assemble(
    *,
    options: JoinOptions,
    folder: DataFolder,
    credentials: Credentials,
    clock: Clock,
    driver: Driver,
    hub: LinkHub,
    udp: DatagramSocket,
    mesh_address: Address,
) -> Assembly:
    """Put a member together; nothing happens until its `start`.

    Raises:
        ConfigError: if something in the data folder is damaged or cannot be written.
    """
    record = _own_record(options, folder, credentials, clock, mesh_address)
    node = Node(
        record=record,
        trust=NodeTrust(
            credentials.identity.sign,
            credentials.authority.verify_record,
            verify,
            credentials.authority.verify_entry,
        ),
        rng=seeded_random(),
        seeds=credentials.seeds,
        known=_known_members(folder, credentials),
        stored_desired=folder.state("desired"),
    )
    store = BlobStore(folder.path)
    runtime = OnnxRuntime()
    models = ModelServer({runtime.name: runtime})
    peers = PeerClient(hub, _load_listener(node, clock))
    artifacts = Artifacts(
        store=store,
        models=models,
        peers=peers,
        linked=hub.peers,
        tell=driver.handle,
        keep=lambda: _wanted(node),
        runtime=runtime,
        name_of=lambda peer: _name_of(node, peer),
    )
    peer_server = PeerServer(models, store)
    metrics = GatewayMetrics()
    pipeline = Pipeline(node.me, node.router, models, peers, clock, metrics)
    daemon_metrics = DaemonMetrics(node, driver, hub)
    control = Control(
        node=node,
        driver=driver,
        credentials=credentials,
        artifacts=artifacts,
        clock=clock,
        mesh_address=mesh_address,
        metrics=daemon_metrics.collect,
    )
    driver.begin(node, udp, peer_server, _model_effects(node, artifacts))
    return Assembly(
        node=node,
        record=record,
        driver=driver,
        hub=hub,
        credentials=credentials,
        models=models,
        artifacts=artifacts,
        peer_server=peer_server,
        pipeline=pipeline,
        control=control,
        gateway_metrics=metrics,
        clock=clock,
    )


def _own_record(
    options: JoinOptions,
    folder: DataFolder,
    credentials: Credentials,
    clock: Clock,
    mesh_address: Address,
) -> MemberRecord:
    hosts = hardware.reachable_hosts(mesh_address.host)
    record = MemberRecord(
        public_key=credentials.identity.public_key,
        name=options.name,
        region=options.region,
        zone=options.zone,
        labels=dict(options.labels),
        addresses=tuple(Address(host, mesh_address.port) for host in hosts),
        http="",
        epoch=folder.next_epoch(clock.wall_s()),
        counter=0,
        boot=credentials.boot,
        capabilities=hardware.capabilities(),
        chain=credentials.member.chain,
    )
    return sign_record(record, credentials.identity.sign)


def _known_members(folder: DataFolder, credentials: Credentials) -> tuple[MemberRecord, ...]:
    saved = folder.state("members")
    if saved is None:
        return ()
    try:
        records = read_members(saved)
    except ProtocolError as error:
        log.warning("the list of known members is damaged and was dropped: %s", error)
        return ()
    return tuple(each for each in records if credentials.authority.verify_record(each) is None)


def _name_of(node: Node, peer: NodeId) -> str:
    member = node.membership.members.get(peer)
    return member.record.name if member else peer


def _wanted(node: Node) -> list[Manifest]:
    deployed = [manifest for each in node.deployments() for manifest in each.manifests]
    return deployed + [replica.manifest for replica in node.own.values()]


def _load_listener(node: Node, clock: Clock) -> LoadListener:
    def heard(peer: NodeId, model: str, version: int, report: LoadReport) -> None:
        node.router.load_reported(peer, model, version, report, clock.now())

    return heard


def _model_effects(node: Node, artifacts: Artifacts) -> Callable[[ModelEffect], None]:
    def carry_out(effect: ModelEffect) -> None:
        replica = node.own.get((effect.model, effect.version))
        if replica is None:
            return  # taken back before it began
        if isinstance(effect, LoadModel):
            artifacts.load(effect, replica.manifest)
        else:
            artifacts.unload(replica.manifest)

    return carry_out


def _is_news(told: NodeLoad | None, load: NodeLoad) -> bool:
    if told is None or told.models != load.models:
        return True
    memory = abs(told.memory_available_bytes - load.memory_available_bytes)
    return abs(told.cpu - load.cpu) >= _CPU_STEP or memory >= _MEMORY_STEP * max(
        1, told.memory_available_bytes
    )
