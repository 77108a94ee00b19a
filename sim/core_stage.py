"""Depth A: a scenario on the pure cores, as discrete events.

    stage = CoreStage(scenario, seed=7)
    stage.start(print)
    stage.send(call, done)
    stage.run_to(stage.now() + 60.0)

Each node is a `meshnode.node.Node` with its real identity, admission, gateway and routing, in a `SimMesh`;
its model server, its disk, its clocks and the network are models. What that leaves out: HTTP, TLS and the
bytes on connections (depth B has them), the operating system (depth C), and what cores cost, but for nodes
that are slowed down. All verbs can be done here.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING, Final

from meshnode.owner_limits import OwnerLimits
from meshnode.release_file import read_release
from meshnode.sim.acquaintance import acquaint
from meshnode.sim.clients import Clients
from meshnode.sim.core_faults import CoreFaults
from meshnode.sim.core_releases import GIB, CoreReleases
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.fault_steps import cover
from meshnode.sim.faults import NetworkFault, OrderRelease, RegionDown, Release
from meshnode.sim.invariants import Invariants
from meshnode.sim.mesh import SimMesh
from meshnode.sim.network import NetworkConfig, PathConfig
from meshnode.sim.network_faults import BYTES_PER_S_OF_MBPS, rule_of
from meshnode.sim.policies.catalogue import MESH
from meshnode.sim.scenario.crew import crew
from meshnode.sim.scenario.geography import matrix
from meshnode.sim.scenario.selection import select, sides
from meshnode.sim.stage import NodeSample, Sample
from meshnode.sim.standings import standings
from meshnode.sim.virtual_fleet import sees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.sim.faults import Fault
    from meshnode.sim.impairments import Rule
    from meshnode.sim.mesh_daemon import Daemon
    from meshnode.sim.scenario.model import Model, Scenario
    from meshnode.sim.stage import Call, Machine, Outcome
    from meshnode.sim.trace import Trace

MAX_MEETING: Final = 48
"""Nodes that meet for the first time as a scenario starts, which takes some seconds of computing; those of
a larger one have met before (`meshnode.sim.acquaintance`)."""

LINK_UP_S: Final = 2.0
"""Seconds in which acquainted nodes dial their neighbours: some round trips, and dials that cross."""

JOIN_LIMIT_S: Final = 120.0
"""Seconds of the stage in which all nodes must have found each other."""

READY_LIMIT_S: Final = 300.0
"""Seconds beyond a model's fetching and loading in which it must be ready on all its nodes."""

STEP_S: Final = 0.25
"""How often the stage looks whether what it waits for has come about."""

_RARE_COLLECTIONS: Final = (50_000, 20, 100)  # of `gc`: a world makes hardly any cycles


class CoreStage:
    """A scenario's mesh of cores in virtual time; a `meshnode.sim.stage.Stage`."""

    def __init__(self, scenario: Scenario, seed: int, *, policy: str = MESH) -> None:
        """Make the mesh; nothing runs yet.

        Args:
            scenario: What is played.
            seed: Decides every draw.
            policy: Who chooses between replicas; one of `meshnode.sim.policies.catalogue`.
        """
        self.scenario = scenario
        self.seed = seed
        self.machines: Sequence[Machine] = crew(scenario)
        self.mesh = SimMesh(seed, network_config(scenario), policy=policy)
        self.world = self.mesh.world
        self.trace: Trace = self.world.trace
        self.invariants = self.mesh.invariants = Invariants(seed, self.now)
        self._clients = Clients(self.mesh)
        self._faults = CoreFaults(self.mesh)
        self._rules: list[tuple[Fault, Rule]] = []
        self._laid = 0
        self._releases = CoreReleases(self.mesh, self.machines, self._up)
        self._seen_busy_s: dict[Daemon, float] = {}
        self._sampled_at = 0.0
        self._disagreeing = ""
        self._thresholds: tuple[int, int, int] | None = None  # to be restored, if others are set

    def __repr__(self) -> str:
        return f"<CoreStage {self.scenario.name}, seed {self.seed}, {len(self.machines)} nodes>"

    # Starting.

    def start(self, progress: Callable[[str], None]) -> None:
        """Boot all nodes, wait until all know all, deploy the models, wait until they are ready.

        Args:
            progress: Told what it waits for.

        Raises:
            NotReachedError: if that does not come about; its message names the seed.
        """
        self._thresholds = gc.get_threshold()
        gc.set_threshold(*_RARE_COLLECTIONS)
        is_large = len(self.machines) > MAX_MEETING
        progress(f"{len(self.machines)} nodes {'link up' if is_large else 'find each other'}")
        # Whoever founds the mesh must be there to be dialled.
        machines = sorted(self.machines, key=lambda machine: machine.nat)
        for machine in machines:
            self._add(machine, is_acquainted=is_large)
        if is_large:
            self.run_to(self.now())  # each hears of its start
            acquaint(self.mesh, [machine.name for machine in machines])
            # What was made until now stays until the end. A full collection would look through all of
            # it, gigabytes, again and again.
            gc.freeze()
            self.run_to(self.now() + LINK_UP_S)
        self._until(self._agree, JOIN_LIMIT_S, "not all nodes know all others")
        for model in self.scenario.models:
            progress(f"{model.name} is loaded")
            self._releases.deploy(model)
        for model in self.scenario.models:
            limit_s = model.fetch_s + model.load_s + READY_LIMIT_S
            self._until(partial(self._is_ready, model), limit_s, f"{model.name} is not ready")
        self._sampled_at = self.now()

    def _add(self, machine: Machine, *, is_acquainted: bool) -> None:
        device = machine.device
        self.mesh.add(
            machine.name,
            machine.region,
            cpus=device.cpus,
            speed=device.speed,
            slots=device.slots,
            memory_bytes=int(device.memory_gb * GIB),
            limits=OwnerLimits(only_on_mains=device.battery),
            nat=machine.nat,
            is_acquainted=is_acquainted,
            device_class=machine.device_class,
        )
        self.mesh.device(machine.name).has_battery = device.battery

    def _is_ready(self, model: Model) -> bool:
        """Whether all nodes that are to serve a model do, and all gateways know."""
        version = self._releases.newest[model.name]
        founder = self.mesh.node(self.machines[0].name)
        deployment = founder.deployment(model.name)
        if deployment is None:
            return False
        placed = founder.placement(deployment).hosts
        hosts = self.mesh.library.hosts
        if not placed or not all(
            (model.name, version) in hosts[node].serving() for node in placed if node in hosts
        ):
            return False
        return all(
            len(self.mesh.seen_from(machine.name, model.name, version)) >= len(placed)
            for machine in self.machines
            if machine.gateway
        )

    # Time.

    def now(self) -> float:
        """Return the stage's own seconds; `start` takes some."""
        return self.world.now()

    def at(self, time_s: float, call: Callable[..., object], *args: object) -> None:
        """Call something at a time of the stage, at once if it has passed; equal times keep their order."""
        self.world.scheduler.at(time_s, call, *args)

    def run_to(self, time_s: float) -> None:
        """Let time pass."""
        self.world.scheduler.run_to(time_s)

    def _until(self, is_so: Callable[[], bool], limit_s: float, otherwise: str) -> None:
        """Let time pass until something is so.

        Raises:
            NotReachedError: if it is not after `limit_s`.
        """
        until = self.now() + limit_s
        while not is_so():
            if self.now() >= until:
                raise NotReachedError(
                    f"{otherwise} after {limit_s:g} s, at {self.now():.3f} s (seed {self.seed})"
                    f"{self._why_not()}"
                )
            self.run_to(self.now() + STEP_S)

    def _why_not(self) -> str:
        return f"; {self._disagreeing} sees other nodes than run" if self._disagreeing else ""

    # Faults.

    def apply(self, fault: Fault) -> None:
        """Do a fault now."""
        cover(self.trace, self.now(), fault, self.machines, undone=False)
        if isinstance(fault, Release):
            model = next(each for each in self.scenario.models if each.name == fault.model)
            self._releases.deploy(model, fault)
        elif isinstance(fault, OrderRelease):
            self._releases.order(fault)
        elif isinstance(fault, NetworkFault):
            self._laid += 1
            sources, targets = (self._ids(side) for side in sides(fault, self.machines))
            rule = rule_of(fault, sources, targets, f"{self.seed}/fault/{self._laid}")
            self._rules.append((fault, rule))
            self.world.network.lay(rule)
        else:
            self._faults.do(fault, self._hurt(fault))

    def undo(self, fault: Fault) -> None:
        """Undo a fault now; nothing happens to nodes that another fault keeps down."""
        cover(self.trace, self.now(), fault, self.machines, undone=True)
        if not isinstance(fault, NetworkFault):
            self._faults.undo(fault)
            return
        laid = next((each for each in self._rules if each[0] == fault), None)
        if laid is not None:
            self._rules.remove(laid)
            self.world.network.mend(laid[1])

    def unsupported(self, fault: Fault) -> str | None:
        """Return why depth A cannot do a fault, or None: it gives no answers that could be compared."""
        if not isinstance(fault, Release) or not fault.release:
            return None
        plan = read_release(fault.release, [], ())
        mirrors = plan is not None and any(step.mirror for step in plan.steps)
        if mirrors or fault.differs_share:
            return "the cores alone give no answers that could be compared; depth B does"
        return None

    def _hurt(self, fault: Fault) -> list[str]:
        selection: tuple[str, ...] = getattr(fault, "nodes", ())
        if isinstance(fault, RegionDown):
            selection = (f"region:{fault.region}",)
        return [machine.name for machine in select(selection, self.machines)]

    def _ids(self, machines: Iterable[Machine]) -> list[str]:
        return [self.world.id_of(machine.name) for machine in machines]

    # Calls.

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        """Let a client make a call now; `done` is told once what became of it."""
        self._clients.send(call, done)

    # Looking.

    def sample(self) -> Sample:
        """Look at all nodes."""
        now = self.now()
        passed_s = now - self._sampled_at
        self._sampled_at = now
        return Sample(now, {each.name: self._sample(each, passed_s) for each in self.machines})

    def _sample(self, machine: Machine, passed_s: float) -> NodeSample:
        name, world = machine.name, self.world
        if not world.is_running(name):
            return NodeSample(self._why_down(name))
        daemon = self.mesh.daemon(name)
        host = daemon.host
        worked_s = host.busy_s
        before_s = self._seen_busy_s.get(daemon, 0.0)
        self._seen_busy_s[daemon] = worked_s
        slots = host.slots
        busy = (worked_s - before_s) / (slots * passed_s) if slots and passed_s > 0 else 0.0
        return NodeSample(
            state="frozen" if world.is_frozen(name) else "up",
            alive=daemon.live_count,
            in_system=host.in_system,
            busy=min(busy, 1.0),
            slots=slots,
            serving=len(host.serving()),
            releases=standings(daemon.node.router, self._releases.released),
        )

    def _why_down(self, name: str) -> str:
        if not self.world.is_reachable(name):
            return "off"
        return "left" if self.mesh.has_left(name) else "down"

    def _up(self) -> list[str]:
        """Return the nodes whose process runs and does not stand still."""
        world = self.world
        names = (machine.name for machine in self.machines)
        return [name for name in names if world.is_running(name) and not world.is_frozen(name)]

    def _agree(self) -> bool:
        """Whether all nodes that are up hold each other for alive, as they are now, and nobody else."""
        up = self._up()
        nodes = {name: self.mesh.node(name) for name in up}
        truth = {node.me: node.membership.record.version for node in nodes.values()}
        if self._disagreeing in nodes:  # most likely it still does
            up.insert(0, self._disagreeing)
        for name in up:
            if not sees(nodes[name].membership, truth):
                self._disagreeing = name
                return False
        self._disagreeing = ""
        return True

    # Ending.

    def settle(self, limit_s: float) -> None:
        """Let time pass until no call is open and all running nodes agree on who is there; then check.

        Raises:
            NotReachedError: if that does not come about.
            AssertionError: if routing still counts a request as in flight.
        """
        until = self.now() + limit_s
        self._until(lambda: not self._clients.open_calls, limit_s, "some calls are still open")
        self._until(
            self._agree, max(until - self.now(), 0.0), "not all nodes agree on who is there"
        )
        self.mesh.finish(max(until - self.now(), STEP_S))

    def close(self) -> None:
        """Drop the mesh; nothing of it outlives the stage."""
        if self._thresholds is not None:
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()
            self._thresholds = None


def network_config(scenario: Scenario) -> NetworkConfig:
    """Return how a scenario's network behaves."""
    network = scenario.network
    paths = {
        pair: PathConfig(
            rtt_s=None if path.rtt_ms is None else path.rtt_ms / 1000,
            jitter=path.jitter,
            loss=path.loss,
            bytes_per_s=(
                None if path.bandwidth_mbps is None else path.bandwidth_mbps * BYTES_PER_S_OF_MBPS
            ),
        )
        for pair, path in matrix(scenario).items()
    }
    return NetworkConfig(
        near_rtt_s=network.near_rtt_ms / 1000,
        jitter=network.jitter,
        loss=network.loss,
        paths=paths,
    )
