"""A mesh of real nodes in virtual time: the whole core of the daemon, with models and requests.

Each node of a `SimMesh` is a `meshnode.node.Node` with a real identity and admission chain, a disk
that survives crashes, a virtual model server and a gateway; a `CoreWorld` carries what they say.

    mesh = SimMesh(seed=7)
    for name, region in (("a", "eu"), ("b", "us"), ("c", "asia")):
        mesh.add(name, region)
    mesh.run_for(5.0)
    mesh.deploy("a", sim_manifest("digits"), replicas=2)
    mesh.run_until(lambda: len(mesh.serving("digits")) == 2, limit_s=10.0)
    load = mesh.load(["c"], "digits", rate_per_s=50.0, duration_s=20.0)
    mesh.world.crash("a")
    mesh.finish()
    assert load.failed == []

`Daemon` does for a virtual node what `meshnode.daemon.driver` does for a real one. `finish` lets
every request end and checks what must hold whatever happened: each request has one outcome, and
routing counts nothing as in flight any more.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from meshnode.events import NoteReceived
from meshnode.node import Node, NodeConfig
from meshnode.node_events import CapabilitiesChanged
from meshnode.owner_limits import OwnerLimits
from meshnode.sim.core_world import CoreWorld, NotReachedError
from meshnode.sim.mesh_daemon import Daemon, Device
from meshnode.sim.model_behaviour import Library, ModelBehaviour
from meshnode.sim.policies.catalogue import MESH, regime
from meshnode.sim.requests import GATEWAY_LOST, Request, RequestMade, Stream
from meshnode.sim.trust import Admissions, Papers
from meshnode.state.deployment import Deployment
from meshnode.types import NO_HINTS, NodeId, Role, RoutingHints
from meshnode.wire.config import LinkConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.drafts import Drafts
    from meshnode.effects import Effect
    from meshnode.models.manifest import Manifest
    from meshnode.routing.table import Replica
    from meshnode.sim.core_node import Boot
    from meshnode.sim.invariants import Invariants
    from meshnode.sim.network import NetworkConfig
    from meshnode.state.desired import Draft
    from meshnode.state.scaling import Scaling
    from meshnode.trust.invite import Invite


@dataclass(eq=False, slots=True)
class Load:
    """The requests of one stream of arrivals."""

    requests: list[Request] = field(default_factory=list)

    @property
    def failed(self) -> list[Request]:
        """Those that ended without an answer."""
        return [each for each in self.requests if each.outcome is not None and not each.ok]

    def latency_s(self, quantile: float) -> float:
        """Return a quantile of the answered requests' latencies, 0 to 1, in seconds."""
        latencies = sorted(each.latency_s for each in self.requests if each.ok)
        return latencies[min(len(latencies) - 1, int(quantile * len(latencies)))]


class SimMesh:
    """Nodes, their world, and the requests that are sent to them.

    Attributes:
        world: Time, network, disks; crash, freeze, partition through it.
        admissions: Who belongs to the mesh.
        library: How models behave, and who has whose files.
        requests: Every request ever made.
        invariants: Watch all boots from then on, if set.
        regime: Who chooses between replicas.
    """

    def __init__(
        self,
        seed: int,
        network: NetworkConfig | None = None,
        config: NodeConfig | None = None,
        policy: str = MESH,
    ) -> None:
        """Make a mesh without nodes.

        Args:
            seed: Decides everything.
            network: How the network behaves.
            config: Settings of all nodes.
            policy: Who chooses between replicas; one of `meshnode.sim.policies.catalogue`.
        """
        self.world = CoreWorld(seed, network, {Stream: self._send})
        self.world.links.refusal = self._refusal
        self.world.network.on_change(self._paths_changed)
        self.admissions = Admissions(seed)
        self.library = Library(self._linked)
        self.requests: list[Request] = []
        self.regime = regime(policy, _Surroundings(self))
        self.invariants: Invariants | None = None
        self._config = config or NodeConfig()
        self._devices: dict[str, Device] = {}
        self._names: dict[NodeId, str] = {}
        self._boots: dict[str, Daemon] = {}
        # By gateway: every request that it was sent, whether it has heard of it or not.
        self._unanswered: dict[str, dict[int, Request]] = {}
        self._loads = 0
        self._left: set[str] = set()
        self._measures = False

    def __repr__(self) -> str:
        return f"<SimMesh {self.world!r}, {len(self.requests)} requests>"

    # Nodes.

    def add(
        self,
        name: str,
        region: str,
        *,
        role: Role = Role.OPERATOR,
        cpus: int = 4,
        speed: float = 1.0,
        folder: Sequence[Manifest] = (),
        invite: Invite | None = None,
        through: str | None = None,
        obedient: bool = True,
        slots: int | None = None,
        memory_bytes: int = 0,
        limits: OwnerLimits | None = None,
        nat: bool = False,
        is_acquainted: bool = False,
        device_class: str = "",
    ) -> NodeId:
        """Add a device and boot it; the first founds the mesh, the others join through it.

        Args:
            name: Its name.
            region: Where it is.
            role: What its invite gives it.
            cpus: What it advertises.
            speed: Of its model server; 2 halves all run times.
            folder: Models in its own folder, which it serves without a deployment.
            invite: With which it joins, instead of one of the founder's.
            through: Who admits it then.
            obedient: Whether it ends when the mesh excludes it; a hostile one goes on.
            slots: Runs of one version at once; None for what the model's behaviour says.
            memory_bytes: What it advertises; 0 for nothing.
            limits: What its owner allows; everything by default.
            nat: Whether a router lets nobody dial it.
            is_acquainted: Whether it does not look for the mesh at its first start, since it will be
                told (`meshnode.sim.acquaintance`).
            device_class: What a scenario calls such devices.

        Raises:
            TrustError: if it is refused.
        """
        known = dict.fromkeys((through, next(iter(self._devices), None)))
        seeds = tuple(self.world.address_of(each) for each in known if each is not None)
        wall_s = self.world.wall_s()
        if invite is None or through is None:
            papers = self.admissions.admit(name, role, wall_s)
        else:
            papers = self.admissions.join(name, invite, self._devices[through].papers, wall_s)
        device = self._devices[name] = Device(
            papers,
            cpus,
            speed,
            tuple(folder),
            () if is_acquainted else seeds,
            slots,
            memory_bytes,
            limits or OwnerLimits(),
            obedient,
            device_class=device_class,
        )
        if nat:
            self.world.network.put_behind_router(papers.identity.node_id)
        self._names[papers.identity.node_id] = name

        def boot(boot: Boot) -> Daemon:
            self._end_open(name)
            self._left.discard(name)
            made = self._boots[name] = Daemon(self, device, boot, self._config)
            return made

        made = self.world.add_node(name, region, boot, papers.identity.node_id)
        device.seeds = seeds  # for its later starts
        return made

    def node(self, name: str) -> Node:
        """Return a running node's cores."""
        return self.daemon(name).node

    def daemon(self, name: str) -> Daemon:
        """Return a running node's present boot."""
        daemon: Daemon = self.world.core(name)
        return daemon

    def device(self, name: str) -> Device:
        """Return what lasts through a node's boots."""
        return self._devices[name]

    def is_leaving(self, name: str) -> bool:
        """Whether a node has said goodbye and is about to end."""
        daemon = self._boots.get(name)
        return daemon is not None and daemon.is_leaving

    def has_left(self, name: str) -> bool:
        """Whether a node that does not run said goodbye."""
        return name in self._left

    def name_of(self, node: NodeId | None) -> str:
        """Return the name of a node."""
        assert node is not None
        return self._names[node]

    # Who belongs to the mesh.

    def papers(self, name: str) -> Papers:
        """Return a node's identity, admission and what it knows of others'."""
        return self._devices[name].papers

    def invite(self, by: str, role: Role = Role.OPERATOR, uses: int = 0) -> Invite:
        """Let a node make an invite."""
        return self.admissions.invite(self.papers(by), role, self.world.wall_s(), uses)

    def write(self, by: str, prepare: Callable[[Drafts, float], Draft]) -> None:
        """Let a node change the desired state.

        Args:
            by: The node.
            prepare: Gets its drafts and the wall time.
        """
        daemon = self.daemon(by)

        def act(now: float, wall_s: float) -> list[Effect]:
            return daemon.write(prepare(daemon.node.drafts, wall_s), now, wall_s)

        self.world.act(by, act)

    def evict(self, by: str, whom: str, *, keep_invited: bool = True) -> None:
        """Let an admin take a node out of the mesh."""
        node = self.papers(whom).identity.node_id
        self.write(by, lambda drafts, wall_s: drafts.eviction(node, "a test", keep_invited, wall_s))

    def members(self, name: str) -> list[str]:
        """Return whom a node takes to be a member, sorted."""
        return sorted(self.name_of(each.node_id) for each in self.papers(name).roster)

    # What happens to nodes, where requests are concerned; everything else is the world's.

    def crash(self, name: str) -> None:
        """Kill a node's process: its clients' requests end."""
        self.world.crash(name)
        self._end_open(name)

    def power_off(self, name: str) -> None:
        """Cut a node's power: its clients hear nothing more, and wait as long as they will."""
        self.world.power_off(name)
        gone = self._forget(name)
        if gone is None:
            return
        gone.gateway.drop(self.world.now())
        for request in self._unanswered.pop(name, {}).values():
            self.world.scheduler.at(request.made_at + request.timeout_s, self._strand, request)

    def _strand(self, request: Request) -> None:
        """Nobody has answered a client of a machine that lost its power, for all its time."""
        if request.outcome is None:
            request.end(GATEWAY_LOST, self.world.now())
            self.ended(request)

    def leave(self, name: str) -> None:
        """Ask a node to leave; requests that it has not answered by then end with it."""
        leaving = self._boots[name]
        leaving.is_leaving = True

        def stopped() -> None:
            if self._boots.get(name) is leaving:
                self._left.add(name)
                self._end_open(name)

        self.world.leave(name)
        self.world.scheduler.after(self.world.network.config.leave_grace_s, stopped)

    def pause(self, name: str, reason: str) -> None:
        """Take a node out of service as its owner's limits do; it stays member and gateway."""
        capabilities = self.node(name).membership.record.capabilities
        self.world.tell(name, CapabilitiesChanged({**capabilities, "paused": reason}))

    def resume(self, name: str) -> None:
        """Let a paused node serve again."""
        capabilities = dict(self.node(name).membership.record.capabilities)
        del capabilities["paused"]
        self.world.tell(name, CapabilitiesChanged(capabilities))

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.world.run_for(seconds)

    def run_until(self, predicate: Callable[[], bool], limit_s: float) -> float:
        """Let time pass until the predicate is true; return how long it took."""
        return self.world.run_until(predicate, limit_s)

    # Models.

    def behave(self, manifest: Manifest, behaviour: ModelBehaviour) -> Manifest:
        """Say how a model behaves, wherever it runs; return it."""
        self.library.behaviours[manifest.digest] = behaviour
        return manifest

    def deploy(
        self,
        by: str,
        *manifests: Manifest,
        replicas: int = 1,
        on: Sequence[str] = (),
        scaling: Scaling | None = None,
        **fields: Any,
    ) -> Deployment:
        """Deploy versions of one model from a node, which then has their files.

        Args:
            by: The node.
            manifests: The versions.
            replicas: On how many nodes.
            on: Names of the nodes that it is pinned to.
            scaling: What the number of replicas follows.
            fields: Further fields of the `Deployment`.
        """
        pinned = tuple(self.world.id_of(name) for name in on)
        deployment = Deployment(
            manifests[0].model, tuple(manifests), replicas, pinned, scaling=scaling, **fields
        )
        self.daemon(by).host.files.update(manifest.digest for manifest in manifests)
        self.write(by, lambda drafts, wall_s: drafts.deployment(deployment, wall_s))
        return deployment

    def undeploy(self, by: str, model: str) -> None:
        """Take a deployment back."""
        self.write(by, lambda drafts, wall_s: drafts.undeployment(model, wall_s))

    def serving(self, model: str, version: int | None = None) -> list[str]:
        """Return the running nodes whose model server has a model ready, by their own truth."""
        return [
            name
            for name in self.world.running()
            if any(
                model == served and version in (None, number)
                for served, number in self.daemon(name).host.serving()
            )
        ]

    def seen_from(self, name: str, model: str, version: int = 1) -> list[str]:
        """Return the nodes that one node's routing takes to be ready, sorted."""
        group = self.node(name).router.table.group(model, version)
        return sorted(replica.node_name for replica in group.ready) if group is not None else []

    def placed(self, model: str) -> list[str]:
        """Return where a model is placed, best first; nothing while running nodes disagree."""
        views = set()
        for name in self.world.running():
            node = self.node(name)
            deployment = node.deployment(model)
            views.add(node.placement(deployment).nodes if deployment is not None else ())
        return [self.name_of(node) for node in views.pop()] if len(views) == 1 else []

    # Requests.

    def request(
        self,
        gateway: str,
        model: str,
        *,
        version: int | None = None,
        timeout_s: float = 30.0,
        work_s: float | None = None,
        sizes: tuple[int, int] = (1024, 1024),
        on_end: Callable[[Request], None] | None = None,
        good_until: float = math.inf,
        hints: RoutingHints = NO_HINTS,
    ) -> Request:
        """Send a request to a node now; it ends as time passes.

        Args:
            gateway: The node.
            model: What for.
            version: Which version it insists on, or None.
            timeout_s: Seconds that it may take.
            work_s: How long it runs on a device of speed 1; None for what the model's behaviour says.
            sizes: Bytes of its body and of the answer's.
            on_end: Told once it has its outcome.
            good_until: When the answer has to be at the gateway, to be of use (virtual seconds).
            hints: Where it may run.
        """
        made_at = self.world.now()
        number = len(self.requests)
        request = Request(
            number,
            gateway,
            model,
            version,
            timeout_s,
            made_at,
            work_s,
            *sizes,
            on_end,
            good_until,
            hints,
        )
        self.requests.append(request)
        if self.world.is_running(gateway):
            self._unanswered.setdefault(gateway, {})[number] = request
            self.world.tell(gateway, RequestMade(request))
        else:
            request.end(GATEWAY_LOST, made_at)
            self.ended(request)
        return request

    def load(
        self, gateways: Sequence[str], model: str, *, rate_per_s: float, duration_s: float
    ) -> Load:
        """Send requests from now on, at random times and to random ones of these nodes (Poisson)."""
        self._loads += 1
        rng = random.Random(f"{self.world.seed}/load/{self._loads}")
        load = Load()
        until = self.world.now() + duration_s

        def arrive() -> None:
            if self.world.now() < until:
                load.requests.append(self.request(rng.choice(gateways), model))
                self.world.scheduler.after(rng.expovariate(rate_per_s), arrive)

        self.world.scheduler.after(rng.expovariate(rate_per_s), arrive)
        return load

    def ended(self, request: Request) -> None:
        """Note in the trace how a request ended, and tell who made it."""
        self._unanswered.get(request.gateway, {}).pop(request.number, None)
        request.ended_at = self.world.now()  # a gateway whose clock is wrong would say otherwise
        by = self.name_of(request.served_by) if request.served_by is not None else ""
        self.world.trace.record(
            self.world.now(), request.gateway, f"request.{request.outcome}", request.model, by
        )
        if request.on_end is not None:
            request.on_end(request)

    def finish(self, limit_s: float = 120.0) -> None:
        """Let all requests end, and check that nothing is left of them.

        Raises:
            NotReachedError: if some have not ended in time.
            AssertionError: if routing still counts one as in flight.
        """
        try:
            self.run_until(lambda: all(each.outcome is not None for each in self.requests), limit_s)
        except NotReachedError:
            if self.invariants is not None:
                endless = [each for each in self.requests if each.outcome is None]
                self.invariants.broken(
                    "one-answer",
                    f"{len(endless)} requests never ended, such as number {endless[0].number}, for "
                    f"{endless[0].model!r} at {endless[0].gateway}",
                )
            raise
        for name in self.world.running():
            router = self.node(name).router
            table = router.table
            for model, versions in table.models().items():
                for version in versions:
                    for replica in table.replicas(model, version):
                        load = router.book.load(replica.node, model, version)
                        if load.outstanding:
                            self._left_over(
                                f"{name} counts {load.outstanding} requests to {replica.node_name} as "
                                f"in flight with no call open"
                            )

    def _left_over(self, message: str) -> NoReturn:
        """Report that routing counts a request as in flight that is over."""
        if self.invariants is not None:
            self.invariants.broken("in-flight-conserved", message)
        raise AssertionError(message)

    def _end_open(self, name: str) -> None:
        """A node's process is gone: so are its host and all requests that were sent to it.

        Its gateway knows of those that it has begun. Others were still waiting to be read, by a process that
        stood still or was slow.
        """
        gone = self._forget(name)
        if gone is not None:
            gone.gateway.close(self.world.now())
        for request in self._unanswered.pop(name, {}).values():
            request.end(GATEWAY_LOST, self.world.now())
            self.ended(request)

    def _forget(self, name: str) -> Daemon | None:
        """A node's process is gone: so is its host."""
        gone = self._boots.pop(name, None)
        if gone is not None:
            if self.invariants is not None:
                self.invariants.node_gone(name)
            self.library.hosts.pop(gone.node.me)
            if gone.attendant is not None:
                gone.attendant.closed()
        return gone

    def _refusal(self, dialler: NodeId, acceptor: NodeId) -> str | None:
        """Let two nodes say hello; one that is refused is shown why."""
        refused = self.admissions.hello(dialler, acceptor)
        if refused is None:
            return None
        node, error = refused
        if error.evidence:
            self.world.tell(self.name_of(node), NoteReceived(node, error.evidence))
        return str(error)

    def _send(self, world: CoreWorld, source: str, effect: Stream) -> None:
        world.links.send(world.id_of(source), effect.to, effect.event)

    def _paths_changed(self) -> None:
        """Let links measure their round trips anew, as real ones do with each ping."""
        if not self._measures:
            self._measures = True
            self.world.scheduler.after(LinkConfig().idle_ping_after_s, self._measure)

    def _measure(self) -> None:
        self._measures = False
        for daemon in self._boots.values():
            daemon.measure_links()

    def _linked(self, node: NodeId) -> list[NodeId]:
        links = self.world.links
        return [peer for peer in links.peers(node) if links.stalled_since(node, peer) is None]


_STANDS_STILL: Final = 1e-9
"""The speed of a node that is down or frozen, as oracles see it: nothing is ever done there."""


class _Surroundings:
    """What is true of a mesh, for oracles."""

    def __init__(self, mesh: SimMesh) -> None:
        self._mesh = mesh

    def now(self) -> float:
        return self._mesh.world.now()

    def speed_of(self, node: NodeId) -> float:
        host = self._mesh.library.hosts.get(node)
        stands = host is None or self._mesh.world.is_frozen(self._mesh.name_of(node))
        return _STANDS_STILL if host is None or stands else host.speed

    def failing_share(self, node: NodeId) -> float:
        host = self._mesh.library.hosts.get(node)
        return host.faults.failing if host is not None else 1.0

    def mean_work_s(self, replica: Replica) -> float:
        return self._mesh.library.behaviour(replica.digest).service_s

    def rtt_s(self, node: NodeId, other: NodeId) -> float:
        if node == other:
            return 0.0
        network = self._mesh.world.network
        for way in ((node, other), (other, node)):
            if network.is_cut(*way) or network.is_held(*way):
                return math.inf
        return network.rtt_s(node, other)
