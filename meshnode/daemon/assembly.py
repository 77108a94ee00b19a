"""A member's parts, put together: cores, driver, models, gateway, control channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from meshnode.advertisement import ModelLoad, NodeLoad
from meshnode.daemon.about import about
from meshnode.daemon.artifacts import Artifacts
from meshnode.daemon.checkup import Checkups
from meshnode.daemon.control import Control
from meshnode.daemon.doctor import Doctor
from meshnode.daemon.enforcement import GuardedRuntime
from meshnode.daemon.entrances import Entrances, reached_at
from meshnode.daemon.forwarding import Forwarder, ForwardServer
from meshnode.daemon.metrics import DaemonMetrics
from meshnode.daemon.serving import PeerServer
from meshnode.daemon.uploads import Uploads
from meshnode.daemon.watch import Watch
from meshnode.effects import LoadModel
from meshnode.errors import MeshError, ProtocolError
from meshnode.events import Start
from meshnode.gateway.bodies import Bodies
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.pipeline import Pipeline
from meshnode.hardware.addresses import reachable_hosts
from meshnode.membership.messages import MemberRecord, read_members, sign_record
from meshnode.models.store import BlobStore
from meshnode.net.peers import LoadListener, PeerClient
from meshnode.node import LoadSampled, Node, NodeConfig, NodeTrust
from meshnode.settings.tuning import membership_config
from meshnode.state.api_keys import Keyring
from meshnode.tracing import TraceIds
from meshnode.types import Address, NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from meshnode.client.control import ControlAddress
    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.driver import Driver, ModelEffect
    from meshnode.daemon.pairing import JoinDesk
    from meshnode.daemon.surroundings import Surroundings
    from meshnode.datafolder import DataFolder
    from meshnode.gateway.tls import GatewayTls
    from meshnode.models.manifest import Manifest
    from meshnode.models.server import ModelServer
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.options import JoinOptions
    from meshnode.wire.messages import LoadReport

log = logging.getLogger(__name__)

LOAD_INTERVAL_S = 1.0
"""How often a node looks at its own load; only a change is told to others."""

LOAD_REFRESH_S = 10.0
"""An unchanged load is told again this often, so that a fresh one is told from a stale one."""

IDLE_LOAD_INTERVAL_S = 10.0
"""How often a node that serves nothing looks: nobody sends requests by it, it is only shown."""

IDLE_LOAD_REFRESH_S = 60.0
"""How often such a node tells an unchanged load again."""

_CPU_STEP = 0.1  # a change of CPU load that is worth telling
_IDLE_CPU_STEP = 0.3  # likewise where nothing is served
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
        uploads: Uploads,
        watch: Watch,
        gateway_metrics: GatewayMetrics,
        bodies: Bodies,
        surroundings: Surroundings,
    ) -> None:
        """Take the parts."""
        self.node = node
        self.record = record
        self.driver = driver
        self.hub = hub
        self.credentials = credentials
        self.control = control
        self._gateway_metrics = gateway_metrics
        self._models = models
        self._artifacts = artifacts
        self._uploads = uploads
        self._peer_server = peer_server
        self._pipeline = pipeline
        self._watch = watch
        self._clock = clock = surroundings.clock
        self._hardware = surroundings.hardware
        self._entrances = Entrances(
            pipeline, control, gateway_metrics, clock, bodies, surroundings.random_bytes
        )
        forwards = ForwardServer(self._entrances.dispatcher, control.api_key, clock)
        peer_server.forwards = forwards
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: NodeLoad | None = None
        self._told_at = float("-inf")
        self._gateway: tuple[str, Address] | None = None  # scheme, and where it listens

    def __repr__(self) -> str:
        return f"<Assembly of {self.node!r}>"

    @property
    def busy(self) -> bool:
        """Whether any request is being worked on, for a client or for a peer."""
        return self._peer_server.running > 0 or self._pipeline.in_flight > 0

    @property
    def http_connections(self) -> int:
        """HTTP connections that stand, on the gateway and on the owner's channel."""
        return self._gateway_metrics.connections

    @property
    def models(self) -> ModelServer:
        """What serves models here."""
        return self._models

    async def stop_http(self) -> None:
        """Take no new HTTP connections; what is asked on standing ones is still answered."""
        await self._entrances.stop_accepting()

    def close_idle_http(self) -> None:
        """Close the HTTP connections of programs that ask nothing."""
        self._entrances.close_idle()

    @property
    def http_busy(self) -> bool:
        """Whether a request of a client is being worked on."""
        return self._pipeline.in_flight > 0

    async def open_gateway(
        self,
        address: Address,
        allow_hosts: tuple[str, ...] = (),
        tls: GatewayTls | None = None,
        *,
        require_key: bool = False,
    ) -> None:
        """Offer HTTP; where others reach it goes into this node's record.

        Args:
            address: Where to listen.
            allow_hosts: Names under which it is asked besides its own addresses.
            tls: Offer HTTPS with this instead, and follow its files.
            require_key: Want a key of programs on this machine too.

        Raises:
            ConfigError: if the address is in use or not ours.
        """
        bound = await self._entrances.open_gateway(
            address, allow_hosts, tls, require_key=require_key
        )
        self._gateway = ("http" if tls is None else "https", bound)
        self._tell_gateway(tuple(Address(*each) for each in self.record.addresses))
        if tls is not None:
            self._spawn(tls.follow())

    async def open_control(self, plan: ControlAddress) -> ControlAddress:
        """Open the owner's channel as planned; return it with the port that was bound.

        Raises:
            ConfigError: if it cannot be opened.
        """
        return await self._entrances.open_control(plan)

    def start(self) -> None:
        """Begin to be a member."""
        self.driver.handle(Start())
        if self._gateway is not None:
            now = self._clock.now()
            self.driver.carry_out(self.node.membership.update_record(now, http=self._http()))
        self._spawn(self._report_load())
        self._spawn(self._watch.run(self.driver.handle, self._models))
        self._spawn(self._watch.measure_speed(lambda: self.busy))
        self._spawn(self._uploads.expire_regularly())

    def moved(self, addresses: tuple[Address, ...]) -> None:
        """Tell the mesh where this node is reached from now on; equal addresses change nothing."""
        changes: dict[str, Any] = {"addresses": addresses}
        if self._gateway is not None:
            self._tell_gateway(addresses)
            changes["http"] = self._http()
        now = self._clock.now()
        self.driver.carry_out(self.node.membership.update_record(now, **changes))

    def _tell_gateway(self, told: tuple[Address, ...]) -> None:
        assert self._gateway is not None
        scheme, bound = self._gateway
        self.control.http = f"{scheme}://{reached_at(bound, told)}"

    def _http(self) -> str:
        """Return the gateway's address as records have it: without a scheme, unless it is HTTPS."""
        assert self.control.http is not None
        return self.control.http.removeprefix("http://")

    def load_folder(self, path: Path) -> None:
        """Load and serve every model of this node's own folder, in the background."""
        self._spawn(self._load_folder(path))

    async def close(self) -> None:
        """Close servers, models and what is under way."""
        self.driver.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._entrances.close()
        await self._artifacts.close()
        await self._models.close()

    async def _load_folder(self, path: Path) -> None:
        try:
            await self._artifacts.load_folder(path)
        except MeshError as error:
            log.error("the models of %s cannot be served: %s", path, error)

    async def _report_load(self) -> None:
        self._hardware.utilisation()  # the first call only sets the mark from which the next one measures
        looked_at = float("-inf")
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            now = asyncio.get_running_loop().time()
            is_idle = self._is_idle()
            if is_idle and now - looked_at < IDLE_LOAD_INTERVAL_S:
                continue
            looked_at = now
            load = self._load()
            refresh_s = IDLE_LOAD_REFRESH_S if is_idle else LOAD_REFRESH_S
            cpu_step = _IDLE_CPU_STEP if is_idle else _CPU_STEP
            if _is_news(self._told, load, cpu_step) or now - self._told_at >= refresh_s:
                self._told, self._told_at = load, now
                self.driver.handle(LoadSampled(load))

    def _is_idle(self) -> bool:
        """Whether this node serves nothing, and has told so."""
        if self._told is None or self._told.models:
            return False
        return all(each.state is not ReplicaState.READY for each in self.node.own.values())

    def _load(self) -> NodeLoad:
        cpu, memory_bytes = self._hardware.utilisation()
        models = []
        for (model, version), replica in self.node.own.items():
            if replica.state is not ReplicaState.READY:
                continue
            with contextlib.suppress(MeshError):  # it is being unloaded
                report = self._models.load_report(model, version)
                models.append(
                    ModelLoad(model, version, report.in_system, report.slots, report.service_ms)
                )
        fares = self._watch.fares
        free_bytes = self._watch.free_bytes(memory_bytes)
        return NodeLoad(round(cpu, 3), free_bytes, tuple(models), *fares)

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
    desk: JoinDesk,
    surroundings: Surroundings,
) -> Assembly:
    """Put a member together; nothing happens until its `start`.

    Raises:
        ConfigError: if something in the data folder is damaged or cannot be written.
    """
    hardware = surroundings.hardware
    watch = Watch(options, folder, clock, hardware=hardware)
    record = _own_record(options, folder, credentials, clock, mesh_address, watch.first())
    node = _own_node(options, folder, credentials, record, surroundings)
    surroundings.made(node)
    store = BlobStore(folder.path)
    runtime = GuardedRuntime(surroundings.runtime(), options.max_memory_bytes, hardware.rss_bytes)
    models = surroundings.model_server({runtime.name: runtime}, watch.cpus)
    peers = PeerClient(hub, _load_listener(node, clock))
    artifacts = _artifacts(node, driver, hub, store, models, runtime, peers)
    traces = TraceIds(surroundings.rng())
    peer_server = PeerServer(
        models,
        store,
        clock=clock,
        traces=traces,
        name_of=lambda connection: _name_of_asker(node, connection),
    )
    metrics = GatewayMetrics()
    pipeline = Pipeline(node.me, node.router, models, peers, clock, metrics, traces)
    keyring = Keyring(node.desired)
    uploads = Uploads(
        folder.path / "uploads",
        clock,
        None,
        lambda key: keyring.opens(key, clock.wall_s()),
        surroundings.random_bytes,
    )
    driver.on_api_key = uploads.keys_changed
    uploads.sweep()
    forwarder = Forwarder(node, driver, credentials.roster.role)
    daemon_metrics = DaemonMetrics(
        node=node,
        driver=driver,
        hub=hub,
        pipeline=pipeline,
        peer_server=peer_server,
        forwarder=forwarder,
        models=models,
        uploads=uploads,
        watch=watch,
        join_requests=desk.requests,
        is_ready=lambda: control.ready()[0],
    )
    checkups = Checkups(driver, credentials, clock)
    peer_server.checkups = checkups
    doctor = Doctor(
        node=node,
        driver=driver,
        credentials=credentials,
        checkups=checkups,
        options=options,
        clock=clock,
    )
    control = Control(
        node=node,
        driver=driver,
        credentials=credentials,
        artifacts=artifacts,
        clock=clock,
        mesh_address=mesh_address,
        about=about(options, clock),
        uploads=uploads,
        join_desk=desk,
        forwarder=forwarder,
        doctor=doctor,
        metrics=daemon_metrics.collect,
    )
    desk.open(node, control.trust)
    driver.on_revocation = control.trust.forget_root
    control.trust.forget_root()  # if it was sealed while this node was away, and then stopped
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
        uploads=uploads,
        watch=watch,
        gateway_metrics=metrics,
        bodies=Bodies(options.max_memory_bytes, hardware.rss_bytes),
        surroundings=surroundings,
    )


def told_addresses(options: JoinOptions, mesh_address: Address) -> tuple[Address, ...]:
    """Return where others are told to reach this node: where its owner says, or on its interfaces."""
    if options.advertise:
        return tuple(Address(host, port or mesh_address.port) for host, port in options.advertise)
    hosts = reachable_hosts(mesh_address.host)
    return tuple(Address(host, mesh_address.port) for host in hosts)


def _own_node(
    options: JoinOptions,
    folder: DataFolder,
    credentials: Credentials,
    record: MemberRecord,
    surroundings: Surroundings,
) -> Node:
    return Node(
        record=record,
        trust=NodeTrust(credentials.identity, credentials.authority),
        rng=surroundings.rng(),
        config=NodeConfig(membership=membership_config(options)),
        seeds=credentials.seeds,
        known=known_members(folder, credentials),
        stored_desired=folder.state("desired"),
    )


def _artifacts(
    node: Node,
    driver: Driver,
    hub: LinkHub,
    store: BlobStore,
    models: ModelServer,
    runtime: GuardedRuntime,
    peers: PeerClient,
) -> Artifacts:
    return Artifacts(
        store=store,
        models=models,
        peers=peers,
        linked=hub.peers,
        tell=driver.handle,
        keep=lambda: _wanted(node),
        runtime=runtime,
        name_of=lambda peer: _name_of(node, peer),
        why_too_large=runtime.why_too_large,
    )


def _own_record(
    options: JoinOptions,
    folder: DataFolder,
    credentials: Credentials,
    clock: Clock,
    mesh_address: Address,
    capabilities: dict[str, Any],
) -> MemberRecord:
    addresses = told_addresses(options, mesh_address)
    record = MemberRecord(
        public_key=credentials.identity.public_key,
        name=options.name,
        region=options.region if options.region_chosen else credentials.region or options.region,
        zone=options.zone,
        labels=dict(options.labels),
        addresses=addresses,
        http="",
        epoch=folder.next_epoch(clock.wall_s()),
        counter=0,
        boot=credentials.boot,
        capabilities=capabilities,
        chain=credentials.member.chain,
    )
    return sign_record(record, credentials.identity.sign)


def known_members(folder: DataFolder, credentials: Credentials) -> tuple[MemberRecord, ...]:
    """Return the records of members that the data folder has, as far as they hold."""
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


def _name_of_asker(node: Node, connection: Connection) -> str:
    hello = connection.hello
    return "?" if hello is None else _name_of(node, hello.peer.node_id)


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


def _is_news(told: NodeLoad | None, load: NodeLoad, cpu_step: float) -> bool:
    if told is None or told.models != load.models:
        return True
    memory = abs(told.memory_available_bytes - load.memory_available_bytes)
    return abs(told.cpu - load.cpu) >= cpu_step or memory >= _MEMORY_STEP * max(
        1, told.memory_available_bytes
    )
