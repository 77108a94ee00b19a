"""Where a member's parts are put together: the one place that knows all of them.

Each step makes what the next ones stand on:

    base        the machine, this node's record and its cores
    serving     files on disk, models in memory, and the way to other nodes' models
    answering   what answers requests: of callers through the pipeline, of peers through the peer server
    control     what the owner and the gateway ask, with jobs, uploads and measurements
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meshnode.daemon.about import about
from meshnode.daemon.artifacts import Artifacts
from meshnode.daemon.assembly import Assembly
from meshnode.daemon.checkup import Checkups
from meshnode.daemon.control import Control
from meshnode.daemon.doctor import Doctor
from meshnode.daemon.enforcement import GuardedRuntime, MemoryRoom
from meshnode.daemon.forwarding import Forwarder
from meshnode.daemon.jobs import Jobs
from meshnode.daemon.kept_streams import KeepingExecutor, KeptStreams, StreamFinder
from meshnode.daemon.metrics import DaemonMetrics
from meshnode.daemon.model_calls import ModelCalls, worker_settings
from meshnode.daemon.named import name_of
from meshnode.daemon.own_node import own_node, own_record
from meshnode.daemon.relaying import Relaying
from meshnode.daemon.release_words import ReleaseWords
from meshnode.daemon.sequence_moves import SequenceMoves
from meshnode.daemon.serving import PeerServer
from meshnode.daemon.statistics import Statistics
from meshnode.daemon.uploads import Uploads
from meshnode.daemon.watch import Watch
from meshnode.effects import LoadModel, OfferModel
from meshnode.gateway.bodies import Bodies
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.pipeline import Pipeline
from meshnode.jobs.store import JOBS_FILE
from meshnode.models.artifacts.store import BlobStore
from meshnode.net.outbound import OutboundRule, read_network
from meshnode.net.peers import PeerClient
from meshnode.routing.decisions import Recorder
from meshnode.state.api_keys import Keyring
from meshnode.state.artifact import published_by
from meshnode.tracing import TraceIds
from meshnode.types import Address, NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.clock import Clock
    from meshnode.daemon.access_log import AccessLog
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.decision_log import DecisionLog
    from meshnode.daemon.driver import Driver, ModelEffect
    from meshnode.daemon.pairing import JoinDesk
    from meshnode.daemon.surroundings import Surroundings
    from meshnode.datafolder import DataFolder
    from meshnode.membership.messages import MemberRecord
    from meshnode.models.manifest import Manifest
    from meshnode.models.runtimes.base import Runtime
    from meshnode.models.serving.server import ModelServer
    from meshnode.net.connection import Connection
    from meshnode.net.infer_call import LoadListener
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.node import Node
    from meshnode.options import JoinOptions
    from meshnode.wire.messages import LoadReport


class _Base(NamedTuple):
    """What all parts stand on."""

    options: JoinOptions
    folder: DataFolder
    credentials: Credentials
    clock: Clock
    driver: Driver
    hub: LinkHub
    surroundings: Surroundings
    watch: Watch
    record: MemberRecord
    node: Node

    def name_of(self, node: NodeId) -> str:
        """Return a node's name, or its id where no record of it is known."""
        return name_of(self.node.membership.members, node)


class _Serving(NamedTuple):
    """What models are served by."""

    store: BlobStore
    models: ModelServer
    peers: PeerClient
    artifacts: Artifacts
    calls: ModelCalls


class _Answering(NamedTuple):
    """What answers requests."""

    peer_server: PeerServer
    pipeline: Pipeline
    metrics: GatewayMetrics


class _Asked(NamedTuple):
    """What the owner and the gateway ask, and what stands behind it."""

    control: Control
    uploads: Uploads
    recorder: Recorder


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
    watch = Watch(options, folder, clock, hardware=surroundings.hardware)
    record = own_record(options, folder, credentials, clock, mesh_address, watch.first())
    node = own_node(options, folder, credentials, record, surroundings)
    surroundings.made(node)
    base = _Base(
        options, folder, credentials, clock, driver, hub, surroundings, watch, record, node
    )
    serving = _serving(base)
    answering = _answering(base, serving)
    control, uploads, recorder = _asked(base, serving, answering, mesh_address, desk)
    desk.open(node, control.trust)
    driver.on_revocation = control.trust.forget_root
    control.trust.forget_root()  # if it was sealed while this node was away, and then stopped
    driver.relaying = Relaying(node, hub, clock, surroundings.rng(), is_willing=options.relay)
    driver.begin(node, udp, answering.peer_server, _model_effects(node, serving.artifacts))
    return Assembly(
        node=node,
        record=record,
        driver=driver,
        hub=hub,
        credentials=credentials,
        models=serving.models,
        artifacts=serving.artifacts,
        peer_server=answering.peer_server,
        pipeline=answering.pipeline,
        control=control,
        uploads=uploads,
        watch=watch,
        gateway_metrics=answering.metrics,
        bodies=Bodies(options.max_memory_bytes, surroundings.hardware.rss_bytes),
        surroundings=surroundings,
        access_log=_access_log(options, clock),
        decision_log=_decision_log(options, recorder, clock),
        shared_memory=options.shared_memory,
    )


# The steps


def _serving(base: _Base) -> _Serving:
    options, folder, watch = base.options, base.folder, base.watch
    store = BlobStore(folder.path)
    store.sweep()
    room = MemoryRoom(options.max_memory_bytes, base.surroundings.hardware.rss_bytes)
    calls = ModelCalls()
    workers = worker_settings(options, folder.path, watch.memory_bytes)
    runtimes = {
        name: GuardedRuntime(runtime, room)
        for name, runtime in base.surroundings.runtimes(calls.environment(workers)).items()
    }
    models = base.surroundings.model_server(runtimes, watch.cpus)
    models.gpus = watch.gpus
    models.cache_root = folder.path / "compiled"
    models.keep_answers(options.response_cache_bytes or 0)
    peers = PeerClient(base.hub, _load_listener(base.node, base.clock))
    artifacts = _artifacts(base, store, models, runtimes, peers, room)
    return _Serving(store, models, peers, artifacts, calls)


def _artifacts(
    base: _Base,
    store: BlobStore,
    models: ModelServer,
    runtimes: Mapping[str, Runtime],
    peers: PeerClient,
    room: MemoryRoom,
) -> Artifacts:
    return Artifacts(
        store=store,
        models=models,
        peers=peers,
        linked=base.hub.peers,
        tell=base.driver.handle,
        keep=lambda: _wanted(base.node),
        runtimes=runtimes,
        name_of=base.name_of,
        why_too_large=room.why_too_large,
        me=base.node.me,
        max_disk=base.options.max_disk,
    )


def _answering(base: _Base, serving: _Serving) -> _Answering:
    node, clock, models, peers = base.node, base.clock, serving.models, serving.peers
    traces = TraceIds(base.surroundings.rng())
    peer_server = PeerServer(
        models,
        serving.store,
        clock=clock,
        traces=traces,
        name_of=lambda connection: _name_of_asker(base, connection),
    )
    metrics = GatewayMetrics()
    kept = peer_server.kept = KeptStreams()
    keeping = KeepingExecutor(models, kept)
    pipeline = Pipeline(node.me, node.router, keeping, peers, clock, metrics, traces)
    pipeline.kept = StreamFinder(node.me, kept, peers)
    serving.calls.pipeline = pipeline
    return _Answering(peer_server, pipeline, metrics)


def _asked(
    base: _Base,
    serving: _Serving,
    answering: _Answering,
    mesh_address: Address,
    desk: JoinDesk,
) -> _Asked:
    node, driver, credentials, clock = base.node, base.driver, base.credentials, base.clock
    peer_server = answering.peer_server
    keyring = Keyring(node.desired)
    uploads = _uploads(base, keyring)
    forwarder = Forwarder(node, driver, credentials.roster.role)
    outbound = OutboundRule(tuple(map(read_network, base.options.allow_outbound)))
    jobs = _jobs(base, keyring, outbound)
    peer_server.jobs = jobs.answers
    metrics = DaemonMetrics(
        node=node,
        driver=driver,
        hub=base.hub,
        pipeline=answering.pipeline,
        peer_server=peer_server,
        forwarder=forwarder,
        models=serving.models,
        uploads=uploads,
        watch=base.watch,
        jobs=jobs,
        join_requests=desk.requests,
        is_ready=lambda: control.ready()[0],
    )
    peer_server.checkups = checkups = Checkups(driver, credentials, clock)
    peer_server.statistics = statistics = Statistics(node, driver, serving.models, clock)
    releasing = answering.pipeline.releasing
    releasing.mirroring.rule = outbound
    peer_server.releases = releasing.others = ReleaseWords(node, driver, releasing)
    recorder = Recorder(node.router.choose)
    node.router.choose = recorder
    control = Control(
        node=node,
        recorder=recorder,
        driver=driver,
        credentials=credentials,
        artifacts=serving.artifacts,
        statistics=statistics,
        outbound=outbound,
        jobs=jobs,
        clock=clock,
        mesh_address=mesh_address,
        about=about(base.options, clock),
        uploads=uploads,
        join_desk=desk,
        forwarder=forwarder,
        doctor=_doctor(base, checkups),
        metrics=metrics.collect,
    )
    peer_server.sequences = moves = SequenceMoves(node.me, serving.models, node.router, driver.hub)
    control.drains.give_sequences = moves.look
    control.drains.end_work = serving.models.end_all
    return _Asked(control, uploads, recorder)


def _uploads(base: _Base, keyring: Keyring) -> Uploads:
    uploads = Uploads(
        base.folder.path / "uploads",
        base.clock,
        None,
        lambda key: keyring.opens(key, base.clock.wall_s()),
        base.surroundings.random_bytes,
    )
    base.driver.on_api_key = uploads.keys_changed
    uploads.sweep()
    return uploads


def _jobs(base: _Base, keyring: Keyring, outbound: OutboundRule) -> Jobs:
    node, clock = base.node, base.clock
    return Jobs(
        me=node.me,
        reach=base.driver,
        live=lambda: _live(node),
        clock=clock,
        path=base.folder.path / JOBS_FILE,
        random_bytes=base.surroundings.random_bytes,
        opens=lambda key: keyring.opens(key, clock.wall_s()),
        name_of=base.name_of,
        sees_all=lambda peer: _has_a_say(base.credentials.roster.role(peer)),
        rule=outbound,
        leaving=lambda: node.drains.nodes,
    )


def _doctor(base: _Base, checkups: Checkups) -> Doctor:
    return Doctor(
        node=base.node,
        driver=base.driver,
        credentials=base.credentials,
        checkups=checkups,
        options=base.options,
        clock=base.clock,
    )


def _decision_log(options: JoinOptions, recorder: Recorder, clock: Clock) -> DecisionLog | None:
    if options.decision_log is None:
        return None
    from meshnode.daemon.decision_log import DecisionLog  # only where it is asked for

    return DecisionLog(Path(options.decision_log), recorder, clock)


def _access_log(options: JoinOptions, clock: Clock) -> AccessLog | None:
    if options.access_log is None or options.http is None:
        return None
    from meshnode.daemon.access_log import AccessLog  # only where it is asked for

    return AccessLog(None if options.access_log == "-" else Path(options.access_log), clock)


# What parts ask of the cores, and the cores of parts


def _has_a_say(role: Role | None) -> bool:
    return role is not None and role.allows(Role.OPERATOR)


def _live(node: Node) -> list[NodeId]:
    """Return the other nodes that live."""
    members = node.membership.members.items()
    return [each for each, member in members if member.live and each != node.me]


def _name_of_asker(base: _Base, connection: Connection) -> str:
    hello = connection.hello
    return "?" if hello is None else base.name_of(hello.peer.node_id)


def _wanted(node: Node) -> list[Manifest]:
    deployed = [manifest for each in node.deployments() for manifest in each.manifests]
    here = [each for own in node.own.values() for each in (own.manifest, own.to_load)]
    return deployed + here + published_by(node.me, node.desired)


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
            artifacts.load(effect, replica.to_load)
        elif isinstance(effect, OfferModel):
            artifacts.offer(replica.manifest)
        else:
            artifacts.unload(replica.manifest)

    return carry_out
