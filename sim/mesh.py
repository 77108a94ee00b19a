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

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, Emit, LoadModel, StartTimer, UnloadModel
from meshnode.events import Event, LinkDown, LinkUp, NoteReceived, Start, TimerFired
from meshnode.membership.messages import MemberRecord, read_members, sign_record
from meshnode.node import CapabilitiesChanged, LoadSampled, Node, NodeConfig, NodeTrust
from meshnode.routing.load import LinkState
from meshnode.sim.core_world import Boot, CoreWorld
from meshnode.sim.requests import (
    GATEWAY_LOST,
    Ask,
    Gateway,
    GatewayTimer,
    Request,
    RequestMade,
    Stream,
    Withdrawn,
)
from meshnode.sim.serving import (
    Answered,
    Asked,
    Host,
    HostTimer,
    Library,
    ModelBehaviour,
    Reply,
    Told,
)
from meshnode.sim.trust import Admissions, Papers
from meshnode.state.deployment import Deployment
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.advertisement import NodeLoad
    from meshnode.drafts import Drafts
    from meshnode.models.manifest import Manifest
    from meshnode.sim.network import NetworkConfig
    from meshnode.state.desired import Draft
    from meshnode.trust.invite import Invite
    from meshnode.types import Address

LOAD_INTERVAL_S: Final = 1.0
"""How often a node looks at its own load, as the real daemon does."""


@dataclass(frozen=True, slots=True)
class _LoadTick:
    """Time for a node to look at its own load."""


@dataclass(eq=False, slots=True)
class _Device:
    """What lasts through a node's boots, beyond its disk in the world."""

    papers: Papers
    cpus: int
    speed: float
    folder: tuple[Manifest, ...]
    seeds: tuple[Address, ...]
    files: set[str] = field(default_factory=set)
    obedient: bool = True


class Daemon:
    """One boot of a virtual node: drives its `Node` as the real driver does.

    Attributes:
        node: The cores.
        host: Its model server.
        gateway: Its gateway.
    """

    def __init__(self, mesh: SimMesh, device: _Device, boot: Boot, config: NodeConfig) -> None:
        """Boot from what the device has on disk."""
        self._mesh = mesh
        self._device = device
        papers = device.papers
        papers.boot(boot.disk.get("desired"))
        saved = boot.disk.get("members")
        self.node = Node(
            record=_record(device, boot),
            trust=NodeTrust(papers.identity, papers.authority),
            rng=random.Random(boot.rng.getrandbits(64)),
            config=config,
            seeds=device.seeds,
            known=read_members(saved) if saved is not None else (),
            stored_desired=boot.disk.get("desired"),
        )
        links = mesh.world.links
        me = self.node.me
        self.host = Host(
            me, device.speed, device.files, mesh.library, random.Random(boot.rng.getrandbits(64))
        )
        self.gateway = Gateway(
            me,
            self.node.router,
            lambda peer: peer in links.peers(me),
            lambda peer: links.stalled_since(me, peer),
            mesh.ended,
        )
        self._told: NodeLoad | None = None

    def __repr__(self) -> str:
        return f"<Daemon of {self.node!r}>"

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Take an event of the world; return what is left for the world to do."""
        return self.carry_out(self._react(event, now, wall_s), now, wall_s)

    def carry_out(self, effects: Iterable[Effect], now: float, wall_s: float) -> list[Effect]:
        """Do what concerns models and requests here; return the rest, in order."""
        rest: list[Effect] = []
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            match effect:
                case LoadModel(model, version, _, holders):
                    manifest = self.node.own[model, version].manifest
                    queue += self.host.load(manifest, holders)
                case UnloadModel(model, version):
                    queue += self.host.unload(model, version)
                case Emit("trust.evicted") if self._device.obedient:
                    rest.append(effect)
                    self._mesh.world.scheduler.after(0, self._end)
                case Told(event):
                    queue += self.node.handle(event, now, wall_s)
                case Ask(asked):
                    queue += self.host.ask(asked)
                case Reply(to, answered) if to == self.node.me:
                    queue += self.gateway.answered(answered, now)
                case Reply(to, answered):
                    rest.append(Stream(to, answered))
                case Stream(to, event) if to == self.node.me:
                    queue += self._react(event, now, wall_s)
                case _:
                    rest.append(effect)
        return rest

    def write(self, draft: Draft, now: float, wall_s: float) -> list[Effect]:
        """Let a change of this node count; a simulated disk takes everything."""
        durable = [] if draft.persist is None else [draft.persist]
        return [*durable, *self.carry_out(self.node.commit(draft, now), now, wall_s)]

    def _react(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        match event:
            case TimerFired(HostTimer() as timer):
                return self.host.due(timer)
            case TimerFired(GatewayTimer() as timer):
                return self.gateway.due(timer, now)
            case TimerFired(_LoadTick()):
                return self._look_at_load(now, wall_s)
            case RequestMade(request):
                return self.gateway.begin(request, now)
            case Asked():
                return self.host.ask(event)
            case Answered():
                return self.gateway.answered(event, now)
            case Withdrawn(number, attempt):
                self.host.cancel(number, attempt)
                return []
            case _:
                return self._tell_node(event, now, wall_s)

    def _tell_node(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        effects: list[Effect] = []
        if isinstance(event, LinkUp):
            self._device.papers.authority.learn(self._mesh.admissions.papers[event.peer].member)
            self.node.router.link_changed(event.peer, LinkState.UP)
            rtt_s = self._mesh.world.network.rtt_s(self.node.me, event.peer)
            self.node.router.rtt_measured(event.peer, rtt_s)
        elif isinstance(event, LinkDown):
            effects = self.gateway.lost(event.peer, now)
        elif isinstance(event, Start):
            effects = [StartTimer(_LoadTick(), LOAD_INTERVAL_S)]
            for manifest in self._device.folder:
                effects += self.host.load(manifest, deployed=False)
        return [*effects, *self.node.handle(event, now, wall_s)]

    def _end(self) -> None:
        """The mesh has excluded this node: its process ends."""
        name = self._mesh.name_of(self.node.me)
        if name in self._mesh.world.running() and self._mesh.daemon(name) is self:
            self._mesh.crash(name)

    def _look_at_load(self, now: float, wall_s: float) -> list[Effect]:
        effects: list[Effect] = [StartTimer(_LoadTick(), LOAD_INTERVAL_S)]
        load = self.host.load_now()
        if load != self._told:
            self._told = load
            effects += self.node.handle(LoadSampled(load), now, wall_s)
        return effects


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
    """

    def __init__(
        self, seed: int, network: NetworkConfig | None = None, config: NodeConfig | None = None
    ) -> None:
        """Make a mesh without nodes.

        Args:
            seed: Decides everything.
            network: How the network behaves.
            config: Settings of all nodes.
        """
        self.world = CoreWorld(seed, network, {Stream: self._send})
        self.world.links.refusal = self._refusal
        self.admissions = Admissions(seed)
        self.library = Library(self._linked)
        self.requests: list[Request] = []
        self._config = config or NodeConfig()
        self._devices: dict[str, _Device] = {}
        self._boots: dict[str, Daemon] = {}
        self._loads = 0

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
        device = self._devices[name] = _Device(
            papers, cpus, speed, tuple(folder), seeds, obedient=obedient
        )

        def boot(boot: Boot) -> Daemon:
            self._end_open(name)
            made = self._boots[name] = Daemon(self, device, boot, self._config)
            return made

        return self.world.add_node(name, region, boot, papers.identity.node_id)

    def node(self, name: str) -> Node:
        """Return a running node's cores."""
        return self.daemon(name).node

    def daemon(self, name: str) -> Daemon:
        """Return a running node's present boot."""
        daemon: Daemon = self.world.core(name)
        return daemon

    def name_of(self, node: NodeId | None) -> str:
        """Return the name of a node."""
        names = (name for name, each in self._devices.items() if each.papers.member.node_id == node)
        return next(names)

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

    def leave(self, name: str) -> None:
        """Ask a node to leave; requests that it has not answered by then end with it."""
        leaving = self._boots[name]

        def stopped() -> None:
            if self._boots.get(name) is leaving:
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
        self, by: str, *manifests: Manifest, replicas: int = 1, on: Sequence[str] = ()
    ) -> Deployment:
        """Deploy versions of one model from a node, which then has their files."""
        pinned = tuple(self.world.id_of(name) for name in on)
        deployment = Deployment(manifests[0].model, tuple(manifests), replicas, pinned)
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
        self, gateway: str, model: str, *, version: int | None = None, timeout_s: float = 30.0
    ) -> Request:
        """Send a request to a node now; it ends as time passes."""
        made_at = self.world.now()
        number = len(self.requests)
        request = Request(number, gateway, model, version, timeout_s, made_at)
        self.requests.append(request)
        if gateway in self.world.running():
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
        """Note in the trace how a request ended."""
        by = self.name_of(request.served_by) if request.served_by is not None else ""
        self.world.trace.record(
            self.world.now(), request.gateway, f"request.{request.outcome}", request.model, by
        )

    def finish(self, limit_s: float = 120.0) -> None:
        """Let all requests end, and check that nothing is left of them.

        Raises:
            NotReachedError: if some have not ended in time.
            AssertionError: if routing still counts one as in flight.
        """
        self.run_until(lambda: all(each.outcome is not None for each in self.requests), limit_s)
        for name in self.world.running():
            router = self.node(name).router
            table = router.table
            for model, versions in table.models().items():
                for version in versions:
                    for replica in table.replicas(model, version):
                        load = router.book.load(replica.node, model, version)
                        assert load.outstanding == 0, f"{name} counts {load} in {self!r}"

    def _end_open(self, name: str) -> None:
        """A node's process is gone: so are its host and the requests that its gateway had."""
        gone = self._boots.pop(name, None)
        if gone is not None:
            self.library.hosts.pop(gone.node.me)
            gone.gateway.close(self.world.now())

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

    def _linked(self, node: NodeId) -> list[NodeId]:
        links = self.world.links
        return [peer for peer in links.peers(node) if links.stalled_since(node, peer) is None]


def _record(device: _Device, boot: Boot) -> MemberRecord:
    papers = device.papers
    unsigned = MemberRecord(
        public_key=papers.identity.public_key,
        name=boot.name,
        region=boot.region,
        zone="",
        labels={},
        addresses=(boot.address,),
        http="",
        epoch=boot.epoch,
        counter=0,
        boot=boot.rng.getrandbits(64),
        capabilities={"cpus": device.cpus, "runtimes": ["onnx"]},
        chain=papers.member.chain,
    )
    return sign_record(unsigned, papers.identity.sign)
