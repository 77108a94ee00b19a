"""Depth B: a scenario on whole daemons in virtual time.

Calls are HTTP requests from a client in the gateway's region, models run through the real model server,
and what nodes tell each other goes over links and datagrams of the real code. What it costs is CPU
(`bench.virtual_daemons`, 20 nodes): 0.7 ms for each second of each node at rest, 0.6 ms for each call, and
80 ms for the start of each node, which grows with their number (all check the signatures of all).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_BODY_BYTES
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.fault_steps import cover
from meshnode.sim.invariants import InvariantBroken, Invariants
from meshnode.sim.paths import network_config
from meshnode.sim.policies.catalogue import MESH, chooser
from meshnode.sim.scenario.crew import crew
from meshnode.sim.scenario.selection import select
from meshnode.sim.stage import NodeSample, Sample
from meshnode.sim.stand_in import StandInModel
from meshnode.sim.standings import standings
from meshnode.sim.trace import Trace
from meshnode.sim.virtual.daemon import work_of
from meshnode.sim.virtual.faults import Faults
from meshnode.sim.virtual.leaks import LeakWatch, left_over
from meshnode.sim.virtual.log_watch import told
from meshnode.sim.virtual.mesh import LOOK_EVERY_S, VirtualMesh

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    import aiohttp

    from meshnode.effects import Emit
    from meshnode.node import Node
    from meshnode.sim.faults import Fault
    from meshnode.sim.scenario.model import Model, Scenario
    from meshnode.sim.stage import Call, Outcome
    from meshnode.sim.virtual.daemon import VirtualNode
    from meshnode.sim.virtual.host import Process, VirtualHost
    from meshnode.sim.virtual.loop import VirtualLoop

    T = TypeVar("T")

DEPLOY_LIMIT_S: Final = 120.0
"""How long all models may take until all gateways know all their replicas."""

QUIET_S: Final = 1.0
"""Rest after the last call, before what is left over is looked for: timers of the last answers end."""


class VirtualStage:
    """Whole daemons on which a scenario is played; see `meshnode.sim.stage.Stage`.

    Attributes:
        scenario: What is played.
        seed: Decides every draw.
        trace: Every delivery between hosts, what nodes reported, and the outcomes of calls.
        machines: The nodes.
        mesh: Their daemons, and clients.
        invariants: What must hold all the time, over all daemons' cores and all calls.
    """

    def __init__(self, scenario: Scenario, seed: int, policy: str = MESH) -> None:
        """Make the world; nothing runs yet.

        Raises:
            UsageError: if the scenario has too many nodes for whole daemons, or a policy is asked for
                that needs more than to be asked (`meshnode.sim.policies.catalogue.chooser`).
        """
        if policy != MESH:
            chooser(policy)
        self._policy = policy
        self.scenario = scenario
        self.seed = seed
        self.trace = Trace()
        self.machines = crew(scenario)
        self.mesh = VirtualMesh(self.machines, seed, network_config(scenario), self.trace)
        self.invariants = Invariants(seed, self.now)
        self.invariants.daemon_of = lambda name: self.mesh.nodes[name].daemon
        self._leaks = LeakWatch(self.mesh.nodes.values, self.invariants.broken)
        self.invariants.looks.append(self._leaks.look)
        self.mesh.on_emit = self._emitted
        self.mesh.on_made = self._made
        self.mesh.on_ended = lambda node: self.invariants.node_gone(node.name)
        self.mesh.on_event = self._noted
        self.mesh.gateway_watch.broken = self._broken
        self.loop.on_unhandled = self._unhandled
        self._faults = Faults(self.mesh)
        self._numbers = {each.name: number for number, each in enumerate(self.machines)}
        self._open: dict[int, Call] = {}
        self._sampled_at = 0.0

    def __repr__(self) -> str:
        return (
            f"<VirtualStage of {self.scenario.name}: {self.mesh!r}, {len(self._open)} calls open>"
        )

    @property
    def loop(self) -> VirtualLoop:
        """The world's loop."""
        return self.mesh.loop

    # Time.

    def start(self, progress: Callable[[str], None]) -> None:
        """Boot all nodes, wait until all know all, deploy the models, wait until all know that they are ready."""
        self.mesh.start(progress)
        for model in self.scenario.models:
            progress(f"deploying {model.name}")
            self._deploy(model)
        for model in self.scenario.models:
            self.mesh.wait_for(
                lambda model=model: self._is_served(model),  # type: ignore[misc]
                f"{model.name} is ready on its nodes, and all know it",
                DEPLOY_LIMIT_S,
            )
        self._sampled_at = self.now()

    def now(self) -> float:
        """Return the world's seconds."""
        return self.loop.now()

    def at(self, time_s: float, call: Callable[..., object], *args: object) -> None:
        """Call something at a time of the world; what it raises ends the run."""
        self.loop.at(time_s, self._guarded, call, args)

    def run_to(self, time_s: float) -> None:
        """Let time pass."""
        self.loop.run_to(time_s)
        self.invariants.check()

    def run(self, work: Coroutine[Any, Any, T], host: VirtualHost | None = None) -> T:
        """Run a coroutine until it is done, on a host or in the world; return its result."""
        if host is None:
            return self.loop.run_until_complete(work)
        # Programs of others' making may send what they like.
        self.invariants.largest_body_bytes = MAX_BODY_BYTES
        return self.loop.run_until_complete(host.run(work))

    # Faults.

    def apply(self, fault: Fault) -> None:
        """Do a fault now."""
        cover(self.trace, self.now(), fault, self.machines, undone=False)
        self._faults.apply(fault)

    def undo(self, fault: Fault) -> None:
        """Undo a fault now."""
        cover(self.trace, self.now(), fault, self.machines, undone=True)
        self._faults.undo(fault)

    def unsupported(self, fault: Fault) -> str | None:
        """Return None: whole daemons can be done everything to."""
        del fault
        return None

    # Calls.

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        """Let a client of the gateway's region make a call now."""
        self._open[call.number] = call
        region = self.mesh.nodes[call.gateway].machine.region
        self.mesh.client_host(region).run(self._call(call, done))

    def client_host(self, region: str) -> VirtualHost:
        """Return the host of a region's clients."""
        return self.mesh.client_host(region)

    def session(self) -> aiohttp.ClientSession:
        """Return an aiohttp session with the clients' API key; make it in code that runs on a client host.

        `run` runs code there. Its connections belong to that host.
        """
        import aiohttp

        from meshnode.sim.virtual.connector import VirtualConnector

        return aiohttp.ClientSession(connector=VirtualConnector(), headers=self.mesh.client_headers)

    def url(self, name: str) -> str:
        """Return the URL of a node's gateway."""
        return f"http://{self.mesh.nodes[name].http_address}"

    # Looking.

    def sample(self) -> Sample:
        """Look at all nodes."""
        for node in self.mesh.nodes.values():
            node.host.process.drop_done()
        now, before = self.now(), self._sampled_at
        self._sampled_at = now
        return Sample(
            now, {name: self._look(node, before) for name, node in self.mesh.nodes.items()}
        )

    def settle(self, limit_s: float) -> None:
        """Let time pass until no call is open and all nodes that are up agree; then look for what is left."""
        self.mesh.wait_for(
            lambda: not self._open and self.mesh.agrees(),
            "no call is open, and all nodes that run agree on who is there",
            limit_s,
        )
        self.loop.run_for(QUIET_S)
        until = self.now() + limit_s  # a run that nobody waits for any more still runs to its end
        while self.now() < until and any(map(left_over, self.mesh.nodes.values())):
            self.loop.run_for(QUIET_S)
        self._look_for_unhandled()
        self._leaks.quiet()

    def close(self) -> None:
        """End all nodes and drop what they have."""
        self.mesh.close()

    # Inside.

    async def _call(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        outcome = await self.mesh.ask(call)
        self._open.pop(call.number, None)
        said = f"{call.number} {outcome.code} {outcome.served_by} {outcome.attempts}"
        self.trace.step(self.now(), self._numbers[call.gateway], said.encode())
        self._guarded(done, (call, outcome))

    def _broken(self, invariant: str, what: str) -> None:
        """End the run with an invariant that broke, unless another one did before."""
        self._guarded(self._report, (invariant, what))

    def _report(self, invariant: str, what: str) -> None:
        self.invariants.check()
        self.invariants.broken(invariant, what)

    def _unhandled(self, process: Process, what: str, error: BaseException | None) -> None:
        """Nobody has caught what a daemon, or the world itself, has raised; clients may do as they like."""
        name = "the world" if process.host is None else process.host.name
        if process.host is None or name in self.mesh.nodes:
            invariant = getattr(error, "invariant", "no-unhandled")
            self._broken(invariant, f"{name}: {what}" + (f": {told(error)}" if error else ""))

    def _look_for_unhandled(self) -> None:
        """Look for tasks of daemons that ended with an exception which nobody will ask for any more."""
        for node in self.mesh.nodes.values():
            for task in node.host.process.failed_tasks():
                name = f"the task {task.get_name()} failed, and nobody asked for it"
                self._unhandled(node.host.process, name, task.exception())
        self.invariants.check()

    def _guarded(self, call: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            call(*args)
        except (Exception, NotReachedError, InvariantBroken) as error:  # noqa: BLE001 - raised by `run_to`
            self.loop.fail(error)

    def _deploy(self, model: Model) -> None:
        on = [each.name for each in select(model.on, self.machines)] if model.on else []
        stand_in = StandInModel(mean_s=model.service.mean_ms / 1000, load_s=model.load_s)
        scaling = model.scaling
        replicas = model.begins_with(len(on or self.machines))
        self.mesh.deploy(model.name, stand_in, replicas, on, model.standby, scaling)
        self.loop.run_for(LOOK_EVERY_S)

    def _is_served(self, model: Model) -> bool:
        on = select(model.on, self.machines) if model.on else self.machines
        wanted = min(model.begins_with(len(on)) + model.standby, len(on))
        return len(self.mesh.serving(model.name)) >= wanted and self.mesh.known_ready(model.name)

    def _made(self, node: VirtualNode, cores: Node) -> None:
        if self._policy != MESH:
            router = cores.router
            router.choose = chooser(self._policy).choose
            # As at depth A: what is chosen for a hedge would count as one more turn.
            router.config = replace(router.config, hedge_ratio=0.0)
        self.invariants.watch_node(node.name, cores)

    def _emitted(self, node: VirtualNode, emit: Emit) -> None:
        subject = self.mesh.name_of(emit.subject)
        if subject == emit.subject and node.mesh is not None:
            member = node.mesh.node.membership.members.get(emit.subject)  # type: ignore[call-overload]
            subject = subject if member is None else member.record.name
        self.trace.record(self.now(), node.name, emit.kind, subject, emit.detail)

    def _noted(self, node: str, kind: str, subject: str, detail: str) -> None:
        self.trace.record(self.now(), node, kind, subject, detail)

    def _look(self, node: VirtualNode, before: float) -> NodeSample:
        server = node.models
        if node.state != "up" or server is None:
            return NodeSample(node.state)
        work = work_of(server)
        seconds = (self.now() - before) * work.slots
        busy = min(1.0, node.busy_between(before, self.now()) / seconds) if seconds > 0 else 0.0
        return NodeSample(
            "up",
            alive=len(self.mesh.alive(node)),
            in_system=work.in_system,
            busy=busy,
            slots=work.slots,
            serving=work.serving,
            releases=standings(node.parts.node.router, self.mesh.released),
        )
