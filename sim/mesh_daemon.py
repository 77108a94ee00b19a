"""One boot of a node in a `SimMesh`, and the device that it boots on.

`Daemon` does for a virtual node what `meshnode.daemon.driver` does for a real one: it carries out what
the cores ask for, runs the model server and the gateway, and watches the machine for its owner.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    LoadModel,
    OfferModel,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
    UnloadModel,
)
from meshnode.errors import ConfigError, ProtocolError
from meshnode.events import (
    DatagramReceived,
    Event,
    LinkDown,
    LinkUp,
    NoteReceived,
    Start,
    TimerFired,
)
from meshnode.membership.messages import MemberRecord, read_members, sign_record
from meshnode.membership.timers import MembershipTimer
from meshnode.node import Node, NodeConfig, NodeTrust
from meshnode.node_events import CapabilitiesChanged, FilesHere, LoadSampled, RequestsWait
from meshnode.owner_limits import OwnerLimits, OwnerPolicy, Reading
from meshnode.routing.load import LinkState
from meshnode.sim.gateway import Gateway
from meshnode.sim.policies.policy import Job, ReplicaKey
from meshnode.sim.requests import (
    Ask,
    ClientGone,
    GatewayTimer,
    ProbeAnswered,
    Probed,
    RequestMade,
    Stream,
    Withdrawn,
)
from meshnode.sim.serving import Answered, Asked, Host, HostTimer, Reply, Told
from meshnode.sim.serving_faults import ServingFaults
from meshnode.sim.stand_in_machine import CHARGE_ON_MAINS_PERCENT
from meshnode.state.desired import PERSIST_KEY as DESIRED_KEY
from meshnode.state.desired_store import unpack

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from meshnode.advertisement import NodeLoad
    from meshnode.models.manifest import Manifest
    from meshnode.sim.core_node import Boot
    from meshnode.sim.mesh import SimMesh
    from meshnode.sim.trust import Papers
    from meshnode.state.desired import Draft
    from meshnode.types import Address, NodeId

LOAD_INTERVAL_S: Final = 1.0
"""How often a node looks at its own load, as the real daemon does."""


_FOR_THE_WORLD: Final = frozenset({SendDatagram, SendNote, StartTimer, Persist, Dial, CloseLink})
"""Effects with which a daemon itself has nothing to do."""

_FROM_PEERS: Final = frozenset({DatagramReceived, NoteReceived})
"""Events that are the cores' alone."""

_NO_LIMITS: Final = OwnerLimits()


@dataclass(frozen=True, slots=True)
class _LoadTick:
    """Time for a node to look at its own load."""


@dataclass(eq=False, slots=True)
class Device:
    """What lasts through a node's boots, beyond its disk in the world.

    Attributes:
        papers: Its key, its admission, whom it knows.
        cpus: What it advertises.
        speed: Of its model server.
        folder: Models in its own folder.
        seeds: Where it looks for the mesh.
        slots: Runs of one version at once; None for what the model's behaviour says.
        memory_bytes: What it advertises; 0 for nothing.
        limits: What its owner allows.
        obedient: Whether it ends when the mesh excludes it.
        files: Digests of the models on its disk.
        faults: What is wrong with its model server.
        has_battery: Whether it runs on one while it is unplugged.
        drained_to: Charge of that while it is off the mains; None on them.
        device_class: What a scenario calls such devices.
    """

    papers: Papers
    cpus: int
    speed: float
    folder: tuple[Manifest, ...]
    seeds: tuple[Address, ...]
    slots: int | None = None
    memory_bytes: int = 0
    limits: OwnerLimits = _NO_LIMITS
    obedient: bool = True
    files: set[str] = field(default_factory=set)
    faults: ServingFaults = field(default_factory=ServingFaults)
    has_battery: bool = False
    drained_to: float | None = None
    device_class: str = ""

    @property
    def on_mains(self) -> bool:
        """Whether it is plugged in."""
        return self.drained_to is None

    @property
    def battery_percent(self) -> float | None:
        """Charge of its battery; None without one."""
        if self.drained_to is None:
            return CHARGE_ON_MAINS_PERCENT if self.has_battery else None
        return self.drained_to


class Daemon:
    """One boot of a virtual node: drives its `Node` as the real driver does.

    Attributes:
        node: The cores.
        host: Its model server.
        gateway: Its gateway.
        attendant: What attends its model server for a policy, or None.
    """

    def __init__(self, mesh: SimMesh, device: Device, boot: Boot, config: NodeConfig) -> None:
        """Boot from what the device has on disk."""
        self._mesh = mesh
        self._device = device
        papers = device.papers
        desired = self._desired(boot)
        papers.boot(desired)
        self.node = Node(
            record=_record(device, boot),
            trust=NodeTrust(papers.identity, papers.authority),
            rng=random.Random(boot.rng.getrandbits(64)),
            config=config,
            seeds=device.seeds,
            known=self._known(boot),
            stored_desired=desired,
        )
        if mesh.invariants is not None:
            mesh.invariants.watch_node(boot.name, self.node)
        links = mesh.world.links
        me = self.node.me
        device.faults.forget()
        self.host = Host(
            me,
            device.speed,
            device.files,
            mesh.library,
            random.Random(boot.rng.getrandbits(64)),
            now=mesh.world.now,
            slots=device.slots,
            faults=device.faults,
            sheds=mesh.regime.sheds,
            device_class=device.device_class,
        )
        self.gateway = Gateway(
            me,
            self.node.router,
            lambda peer: peer in links.peers(me),
            self._stalled_since,
            mesh.ended,
            mesh.regime.for_gateway(me),
        )
        self.attendant = mesh.regime.for_server(me)
        self._told: NodeLoad | None = None
        self._files_told: frozenset[str] = frozenset()
        self._waits_told: Collection[str] = frozenset[str]()  # models for which requests wait
        self._owner = OwnerPolicy(device.limits)
        self._clock = mesh.world.clock_of(boot.name)
        self._live_count: int | None = None
        self._looks = False  # at its load, every second
        self.is_leaving = False
        """Whether it has said goodbye and is about to end."""

    def __repr__(self) -> str:
        return f"<Daemon of {self.node!r}>"

    @property
    def live_count(self) -> int:
        """How many nodes it takes to be there, itself included."""
        if self._live_count is None:
            members = self.node.membership.members.values()
            self._live_count = sum(member.live for member in members)
        return self._live_count

    def measure_links(self) -> None:
        """Tell routing the round trips of all links that flow."""
        links, network, me = self._mesh.world.links, self._mesh.world.network, self.node.me
        for peer in links.peers(me):
            if links.stalled_since(me, peer) is None:
                self.node.router.rtt_measured(peer, network.rtt_s(me, peer))

    def _stalled_since(self, peer: NodeId) -> float | None:
        """Return since when nothing gets through on a link, by this node's clock."""
        world = self._mesh.world
        since = world.links.stalled_since(self.node.me, peer)
        if since is None or self._clock.is_true:
            return since
        return self._clock.now() - (world.now() - since)

    def _desired(self, boot: Boot) -> bytes | None:
        """Return the desired state on disk. A torn one stops the real daemon; its owner moves it away."""
        stored = boot.disk.get(DESIRED_KEY)
        if stored is None:
            return None
        try:
            unpack(stored)
        except ConfigError as error:
            self._mesh.world.damaged(boot.name, DESIRED_KEY, str(error))
            return None
        return stored

    def _known(self, boot: Boot) -> tuple[MemberRecord, ...]:
        """Return the members on disk; a torn list counts as none, as in the real daemon."""
        saved = boot.disk.get("members")
        if saved is None:
            return ()
        try:
            return tuple(read_members(saved))
        except ProtocolError as error:
            self._mesh.world.damaged(boot.name, "members", str(error))
            return ()

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Take an event of the world; return what is left for the world to do."""
        if type(event) in _FROM_PEERS or (
            type(event) is TimerFired and isinstance(event.timer, MembershipTimer)
        ):  # most of what a node at rest is told
            return self.carry_out(self.node.handle(event, now, wall_s), now, wall_s)
        return self.carry_out(self._react(event, now, wall_s), now, wall_s)

    def carry_out(self, effects: Iterable[Effect], now: float, wall_s: float) -> list[Effect]:
        """Do what concerns models and requests here; return the rest, in order."""
        rest: list[Effect] = []
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            if type(effect) in _FOR_THE_WORLD:
                rest.append(effect)
                continue
            match effect:
                case LoadModel() | UnloadModel() | OfferModel():
                    queue += self._host_model(effect)
                case Emit("trust.evicted") if self._device.obedient:
                    rest.append(effect)
                    self._mesh.world.scheduler.after(0, self._end)
                case Told(event):
                    queue += self.node.handle(event, now, wall_s)
                case Ask(asked):
                    queue += self._ask(asked, now)
                case Reply():
                    queue.appendleft(self._reply(effect, now))
                case Stream(to, event) if to == self.node.me:
                    queue += self._react(event, now, wall_s)
                case Emit(kind):
                    rest.append(effect)
                    if kind.startswith("member."):
                        self._live_count = None
                case _:
                    rest.append(effect)
        return rest

    def _host_model(self, effect: LoadModel | UnloadModel | OfferModel) -> list[Effect]:
        """Load or unload a model; how one is offered concerns gateways, which read it from its deployment."""
        if isinstance(effect, LoadModel):
            manifest = self.node.own[effect.model, effect.version].to_load
            return [*self.host.load(manifest, effect.holders), *self._begin_to_look()]
        if isinstance(effect, UnloadModel):
            return [*self.host.unload(effect.model, effect.version)]
        return []

    def write(self, draft: Draft, now: float, wall_s: float) -> list[Effect]:
        """Let a change of this node count.

        Raises:
            ConfigError: if its disk is full; nothing has changed then, as in the real daemon.
        """
        if draft.persist is not None and not self._mesh.world.has_room(
            self._mesh.name_of(self.node.me)
        ):
            raise ConfigError("no space left on the node's disk; free some and try again")
        durable = [] if draft.persist is None else [draft.persist]
        return [*durable, *self.carry_out(self.node.commit(draft, now), now, wall_s)]

    def _react(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        match event:
            case TimerFired(HostTimer() as timer):
                return [*self.host.due(timer), *self._tell_files()]
            case TimerFired(GatewayTimer() as timer):
                return self._with_waits(self.gateway.due(timer, now), now, wall_s)
            case TimerFired(_LoadTick()):
                return self._look_at_load(now, wall_s)
            case Asked():
                return self._ask(event, now)
            case Answered():
                return self.gateway.answered(event, now)
            case RequestMade(request):
                return self._with_waits(self.gateway.begin(request, now), now, wall_s)
            case ClientGone(number):
                return self._with_waits(self.gateway.abandon(number, now), now, wall_s)
            case Withdrawn() | Probed() | ProbeAnswered():
                return self._aside(event, now)
            case _:
                return self._tell_node(event, now, wall_s)

    def _aside(self, event: Withdrawn | Probed | ProbeAnswered, now: float) -> list[Effect]:
        """Take what concerns requests and is none, nor an answer."""
        match event:
            case Withdrawn(number, attempt):
                self.host.cancel(number, attempt)
                if self.attendant is not None:
                    self.attendant.withdrawn(Job(number, attempt))
            case Probed(gateway, replica) if self.attendant is not None:
                return [Stream(gateway, ProbeAnswered(event, self.attendant.probe(replica)))]
            case Probed(gateway, replica):
                report = self.host.load_report(replica.model, replica.version)
                if report is not None:
                    return [Stream(gateway, ProbeAnswered(event, report))]
            case ProbeAnswered():
                self.gateway.probed(event, now)
        return []

    def _with_waits(self, effects: list[Effect], now: float, wall_s: float) -> list[Effect]:
        """Tell the cores where requests wait for other models than before, as the real gateway does."""
        waiting = self.gateway.waiting()
        if waiting.keys() == self._waits_told:
            return effects
        self._waits_told = waiting.keys()
        return [*effects, *self.node.handle(RequestsWait(waiting), now, wall_s)]

    def _reply(self, reply: Reply, now: float) -> Stream:
        answered = reply.answered
        if self.attendant is not None:
            job = Job(answered.number, answered.attempt)
            self.attendant.ended(job, now, answered=not answered.code)
        return Stream(reply.to, answered)

    def _ask(self, asked: Asked, now: float) -> list[Effect]:
        if self.attendant is not None:
            replica = ReplicaKey(self.node.me, asked.model, asked.version)
            self.attendant.arrived(replica, Job(asked.number, asked.attempt), asked.work_s, now)
        return self.host.ask(asked)

    def _tell_node(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        effects: list[Effect] = []
        if isinstance(event, LinkUp):
            self._device.papers.authority.learn(self._mesh.admissions.papers[event.peer].member)
            self.node.router.link_changed(event.peer, LinkState.UP, now)
            rtt_s = self._mesh.world.network.rtt_s(self.node.me, event.peer)
            self.node.router.rtt_measured(event.peer, rtt_s)
        elif isinstance(event, LinkDown):
            effects = self.gateway.lost(event.peer, now)
        elif isinstance(event, Start):
            if self.node.has_friends:
                self.gateway.starts(now)
            for manifest in self._device.folder:
                effects += self.host.load(manifest, deployed=False)
            effects += [*self._begin_to_look(), *self._tell_files()]
        return [*effects, *self.node.handle(event, now, wall_s)]

    def _tell_files(self) -> list[Effect]:
        """Tell which models' files are on the disk, if that has changed."""
        if self.host.files == self._files_told:
            return []
        self._files_told = frozenset(self.host.files)
        return [Told(FilesHere(self._files_told))]

    def _end(self) -> None:
        """The mesh has excluded this node: its process ends."""
        name = self._mesh.name_of(self.node.me)
        if name in self._mesh.world.running() and self._mesh.daemon(name) is self:
            self._mesh.crash(name)

    def _begin_to_look(self) -> Iterator[Effect]:
        """Look at the load every second, unless that is done, or there is nothing to see yet."""
        if not self._looks and (self.host.has_models or self._device.limits.only_on_mains):
            self._looks = True
            yield StartTimer(_LoadTick(), LOAD_INTERVAL_S)

    def _look_at_load(self, now: float, wall_s: float) -> list[Effect]:
        self._looks = False
        effects = [*self._begin_to_look()]
        if self._device.limits.only_on_mains:
            effects += self._look_at_power(now, wall_s)
        load = msgspec.structs.replace(
            self.host.load_now(), battery_percent=self._device.battery_percent
        )
        # A node that has never served says nothing of its load: in a large mesh that would be the square
        # of its size in notes. (The real daemon does tell its free memory.)
        says_something = load.models or not self._device.on_mains or self._told is not None
        if load != self._told and says_something:
            self._told = load
            effects += self.node.handle(LoadSampled(load), now, wall_s)
        return effects

    def _look_at_power(self, now: float, wall_s: float) -> list[Effect]:
        """Pause and resume as the owner's limits say; requests that still come are refused from then on."""
        decision = self._owner.decide(Reading(0, self._device.on_mains), now)
        self.host.refusing = decision.paused
        if decision.paused == self.node.paused:
            return []
        capabilities = dict(self.node.membership.record.capabilities)
        capabilities.pop("paused", None)
        if decision.paused:
            capabilities["paused"] = decision.paused
        return self.node.handle(CapabilitiesChanged(capabilities), now, wall_s)


def _capabilities(device: Device) -> dict[str, object]:
    model = f"stand-in of speed {device.speed:g}"  # its class of devices, as at depth B
    told: dict[str, object] = {"cpus": device.cpus, "cpu": {"model": model}, "runtimes": ["onnx"]}
    if device.memory_bytes:
        told["memory_bytes"] = device.memory_bytes
    return told


def _record(device: Device, boot: Boot) -> MemberRecord:
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
        capabilities=_capabilities(device),
        chain=papers.member.chain,
    )
    return sign_record(unsigned, papers.identity.sign)
