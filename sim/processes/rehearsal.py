"""A mesh of processes on this machine: its folder, its ports, who runs, and what lies on the wires.

Everything lies in one folder: a data folder and a log for each node, the models, the file of ports.
Nodes listen on loopback alone: the gateways at one port each, the mesh at another.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from meshnode.client.control import control_address, remove_control
from meshnode.client.mesh import MeshClient
from meshnode.deployment_writing import scaling_document
from meshnode.errors import ConfigError, MeshError, PeerError
from meshnode.sim.faults import Release
from meshnode.sim.processes.node import PORTS_FILE, RUNNING
from meshnode.sim.processes.orders import (
    AnyReport,
    Behave,
    Fares,
    Go,
    JumpClock,
    Lay,
    Mend,
    Plan,
    Ready,
    Reported,
)
from meshnode.sim.processes.ports import choose_ports
from meshnode.sim.processes.process import NodeProcess
from meshnode.sim.processes.whereabouts import LOOPBACK, Whereabouts
from meshnode.sim.scenario.crew import crew
from meshnode.sim.scenario.selection import select
from meshnode.sim.stand_in import StandInModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.faults import AnyFault, NetworkFault, OrderRelease
    from meshnode.sim.processes.orders import Order
    from meshnode.sim.scenario.model import Model, Scenario
    from meshnode.sim.stage import Machine

MAX_NODES: Final = 30
"""Nodes at depth C: each is a process of 60 MB and a few percent of a processor."""

START_LIMIT_S: Final = 60.0
"""Longest start of a node; it takes half a second, and thirty at once share two processors."""

LEAVE_LIMIT_S: Final = 8.0
"""How long nodes may take to say goodbye before they are killed."""

_STARTS_AT_ONCE: Final = 4
_INVITE_S: Final = 86_400


@dataclass(slots=True)
class Member:
    """A node of the rehearsal, whether it runs or not.

    Attributes:
        machine: What the scenario says of it.
        http_port: Where its gateway listens; 0 if it has none.
        mesh_port: Where it listens for others.
        boot: Counts its boots.
        state: As in `NodeSample`.
        node_id: Its id, once it is a member.
        fares: What it told last, in this boot.
        behaviour: How it is to be.
        process: Its process, or the last one.
    """

    machine: Machine
    http_port: int
    mesh_port: int
    boot: int = 0
    state: str = "down"
    node_id: str = ""
    fares: Fares | None = None
    behaviour: Behave = field(default_factory=Behave)
    process: NodeProcess | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.machine.name

    @property
    def url(self) -> str:
        """Where its gateway is, or an empty text."""
        return f"http://{LOOPBACK}:{self.http_port}" if self.http_port else ""

    @property
    def is_up(self) -> bool:
        """Whether it runs and is not stopped."""
        return self.state == "up"

    @property
    def pid(self) -> int:
        """Its process id, or 0 if none runs."""
        is_there = self.process is not None and self.state in ("up", "frozen")
        return self.process.pid if is_there and self.process is not None else 0


class Rehearsal:
    """The processes of a scenario; everything but the choice of a folder happens on one event loop.

    Attributes:
        folder: Where everything lies.
        members: By name, in the scenario's order.
        on_reported: Told of what nodes report: the node's name and the report.
        on_gone: Told the name of a node whose process is gone though nobody here ended it, and how.
    """

    def __init__(
        self, scenario: Scenario, seed: int, *, base_port: int = 0, keep: Path | None = None
    ) -> None:
        """Choose ports and make the folder.

        Args:
            scenario: One without mistakes.
            seed: Decides what wires and models draw.
            base_port: The first gateway's port; 0 for one that is free.
            keep: A folder that is kept; None for one that vanishes at the end.

        Raises:
            ConfigError: if there are too many nodes, a port is taken, or no folder can be made.
        """
        machines = crew(scenario)
        if len(machines) > MAX_NODES:
            raise ConfigError(
                f"{scenario.name} has {len(machines)} nodes; as processes at most {MAX_NODES} run: "
                "play it at depth A or B, or with fewer nodes"
            )
        first, self._guard = choose_ports(len(machines), base_port)
        self.members = {
            machine.name: Member(
                machine, first + at if machine.gateway else 0, first + len(machines) + at
            )
            for at, machine in enumerate(machines)
        }
        self.on_reported: Callable[[str, Reported], None] = lambda _node, _report: None
        self.on_gone: Callable[[str, str], None] = lambda _node, _how: None
        self._scenario = scenario
        self._seed = seed
        self._keeps = keep is not None
        self._invite = ""
        self._rules: dict[int, Lay] = {}
        self._next_rule = 1
        self._releases: dict[str, int] = {}
        try:
            self.folder = _make_folder(keep)
        except ConfigError:
            self._guard.close()
            raise

    def __repr__(self) -> str:
        up = sum(member.is_up for member in self.members.values())
        return f"<Rehearsal of {self._scenario.name}, {up} of {len(self.members)} nodes up>"

    @property
    def founder(self) -> Member:
        """The first node that others can dial."""
        return next(each for each in self.members.values() if not each.machine.nat)

    def up(self) -> list[Member]:
        """Return the nodes that run."""
        return [member for member in self.members.values() if member.is_up]

    # Boots.

    async def start(self, progress: Callable[[str], None]) -> None:
        """Start all nodes and deploy all models; returns when all know all and replicas are ready.

        Raises:
            PeerError: if a node does not start, or they do not find together; with its last words.
            MeshError: if a deployment fails.
        """
        founder = self.founder
        progress(f"{founder.name} founds the mesh")
        await self.boot(founder)
        client = MeshClient.local(self.folder / founder.name)
        wish = {"ttl_s": _INVITE_S, "uses": max(1, len(self.members))}
        answer = await asyncio.to_thread(client.post, "/mesh/v1/invites", wish)
        self._invite = str(answer["invite"])
        started = 1
        turns = asyncio.Semaphore(_STARTS_AT_ONCE)

        async def join(member: Member) -> None:
            nonlocal started
            async with turns:
                await self.boot(member)
            started += 1
            progress(f"{started} of {len(self.members)} nodes have joined")

        async with asyncio.TaskGroup() as joining:
            for member in self.members.values():
                if member is not founder:
                    joining.create_task(join(member))
        await self._wait(self._all_know_all, "every node sees the others", progress)
        for model in self._scenario.models:
            progress(f"{model.name} is being deployed")
            await self.deploy(model)

    async def boot(self, member: Member, *, torn: bool = False) -> None:
        """Start a node's process and wait until it is a member.

        Raises:
            PeerError: if it ends, or takes too long; with its last words.
        """
        member.boot += 1
        member.node_id = ""
        member.fares = None
        member.state = "up"
        (self.folder / RUNNING / member.name).touch()
        ready = asyncio.Event()
        process = member.process = NodeProcess(
            member.name,
            self.folder / f"{member.name}.log",
            lambda report: self._heard(member, report, ready),
            lambda process: self._gone(member, process),
        )
        await process.start(self._plan(member, torn=torn))
        for order in (*self._rules.values(), member.behaviour):
            process.order(order)
        over = asyncio.ensure_future(process.ended.wait())
        begun = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait(
                (over, begun), timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            over.cancel()
            begun.cancel()
        if not ready.is_set():
            if process.ended.is_set():
                raise PeerError(f"{member.name} ended {process.how_it_ended()}")
            raise PeerError(f"{member.name} does not start: {process.last_words()}")

    def _plan(self, member: Member, *, torn: bool) -> Plan:
        is_first = member.boot == 1
        return Plan(
            scenario=self._scenario,
            seed=self._seed,
            boot=member.boot,
            name=member.name,
            folder=str(self.folder),
            ports={each.name: each.mesh_port for each in self.members.values()},
            http_port=member.http_port,
            invite=self._invite if is_first else "",
            founds=is_first and member is self.founder,
            torn=torn,
            keep=self._keeps,
        )

    def _heard(self, member: Member, report: AnyReport, ready: asyncio.Event) -> None:
        match report:
            case Ready(node_id=node_id):
                member.node_id = node_id
                ready.set()
            case Fares():
                member.fares = report
            case Reported():
                self.on_reported(member.name, report)

    def _gone(self, member: Member, process: NodeProcess) -> None:
        if member.process is not process or member.state not in ("up", "frozen"):
            return
        member.state = "down"
        member.fares = None
        (self.folder / RUNNING / member.name).unlink(missing_ok=True)
        if member.node_id:  # a start that fails is told by `boot`
            self.on_gone(member.name, f"ended {process.how_it_ended()}")

    # Ends.

    def kill(self, member: Member, state: str = "down") -> None:
        """End a node's process with no goodbye."""
        member.state = state
        member.fares = None
        (self.folder / RUNNING / member.name).unlink(missing_ok=True)
        if member.process is not None:
            member.process.kill()

    def leave(self, member: Member) -> None:
        """Let a node say goodbye and end."""
        member.state = "left"
        if member.process is not None:
            member.process.order(Go())

    def freeze(self, member: Member) -> None:
        """Let a process stand still."""
        member.state = "frozen"
        if member.process is not None:
            member.process.suspend()

    def thaw(self, member: Member) -> None:
        """Let a process that stands still run on."""
        member.state = "up"
        if member.process is not None:
            member.process.resume()

    async def leave_all(self) -> None:
        """Let all nodes say goodbye, kill those that take too long, and remove everything."""
        running = [each for each in self.members.values() if each.state in ("up", "frozen")]
        for member in running:
            if member.state == "frozen":
                self.thaw(member)
            self.leave(member)
        ends = [each.process.ended.wait() for each in running if each.process is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_LIMIT_S):
                await asyncio.gather(*ends)
        await self.close()

    async def close(self) -> None:
        """Kill what runs, and remove everything that is not to be kept."""
        for member in self.members.values():
            if member.state in ("up", "frozen"):
                self.kill(member)
            if member.process is not None:
                await member.process.close()
        self.remove()

    def remove(self) -> None:
        """Remove the folder, and the sockets of daemons that were killed; give the ports back."""
        self._guard.close()
        for name in self.members:
            with contextlib.suppress(MeshError):
                remove_control(self.folder / name, control_address(self.folder / name))
        if not self._keeps:
            shutil.rmtree(self.folder, ignore_errors=True)

    # Rules and behaviour.

    def lay(
        self,
        fault: NetworkFault | None,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        salt: str = "",
    ) -> int:
        """Lay a rule on all wires; return its number.

        Args:
            fault: A fault of the network, or None to cut everything between the sides.
            sources: Names of the nodes on one side.
            targets: On the other side.
            salt: Decides the draw of pairs.
        """
        number, self._next_rule = self._next_rule, self._next_rule + 1
        order = Lay(
            number=number,
            fault=cast("AnyFault | None", fault),
            sources=sources,
            targets=targets,
            salt=salt,
        )
        self._rules[number] = order
        self._tell_all(order)
        return number

    def isolate(self, name: str) -> int:
        """Cut a node off from all others; return the rule's number."""
        return self.lay(None, (name,), tuple(self.members))

    def mend(self, number: int) -> None:
        """Take a rule off all wires."""
        if self._rules.pop(number, None) is not None:
            self._tell_all(Mend(number=number))

    def behave(self, member: Member, behaviour: Behave) -> None:
        """Let a node be so from now on, in this and all later boots."""
        member.behaviour = behaviour
        if member.process is not None:
            member.process.order(behaviour)

    def jump_clock(self, member: Member, by_s: float) -> None:
        """Set a node's wall clock."""
        if member.process is not None:
            member.process.order(JumpClock(by_s=by_s))

    def _tell_all(self, order: Order) -> None:
        for member in self.members.values():
            if member.process is not None and member.state in ("up", "frozen"):
                member.process.order(order)

    # Models.

    async def deploy(self, model: Model, fault: Release | None = None) -> None:
        """Deploy the next version of a model, and wait until its replicas are ready, unless it is released in steps.

        Args:
            model: The model.
            fault: How the version behaves, and takes the other one's place; None for the first one.

        Raises:
            MeshError: if that fails, or no node runs that could do it.
        """
        fault = Release(model=model.name) if fault is None else fault
        release = self._releases[model.name] = self.next_version(model.name)
        folder = self.folder / "published" / model.name
        StandInModel(
            mean_s=model.service.mean_ms / 1000,
            load_s=model.load_s,
            release=release,
            slowness=fault.slowness,
            fail_share=fault.fail_share,
            fails_on=fault.fails_on,
            differs_share=fault.differs_share,
            load_error=fault.load_error,
        ).write(folder)
        client = self._client(fault.node, f"{model.name} cannot be deployed")
        on = [each.name for each in select(model.on, [m.machine for m in self.members.values()])]
        await asyncio.to_thread(
            client.deploy,
            folder,
            name=model.name,
            replicas=model.begins_with(len(on) or len(self.members)),
            on=on,
            autoscaling=scaling_document(model.scaling) or None,
            release=fault.release or None,
            wait=not fault.release,
            timeout_s=START_LIMIT_S,
        )

    def next_version(self, model: str) -> int:
        """Return the number that the next version of a model gets."""
        return self._releases.get(model, 0) + 1

    async def order(self, fault: OrderRelease) -> None:
        """Ask something of a release.

        Raises:
            MeshError: if it is refused, or no node runs that could be asked.
        """
        client = self._client(fault.node, f"nobody can {fault.order} {fault.model}")
        await asyncio.to_thread(client.rollout_do, fault.model, fault.order)

    def _client(self, node: str, otherwise: str) -> MeshClient:
        """Return a client of a node, or of the first that runs if none is named."""
        running = [each.name for each in self.up() if node in ("", each.name)]
        if not running:
            raise PeerError(f"{otherwise}: no node runs")
        return MeshClient.local(self.folder / running[0])

    # Waiting.

    def agree(self) -> bool:
        """Whether all nodes that run see exactly each other."""
        running = self.up()
        told = [member.fares for member in running]
        return all(each is not None and each.alive == len(running) for each in told) and (
            len({each.digest for each in told if each is not None}) <= 1
        )

    def _all_know_all(self) -> bool:
        return len(self.up()) == len(self.members) and self.agree()

    async def _wait(
        self, is_so: Callable[[], bool], what: str, progress: Callable[[str], None]
    ) -> None:
        progress(f"waiting until {what}")
        try:
            async with asyncio.timeout(START_LIMIT_S):
                while not is_so():
                    for member in self.members.values():
                        if member.process is not None and member.process.ended.is_set():
                            raise PeerError(f"{member.name} ended {member.process.how_it_ended()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            seen = ", ".join(
                f"{each.name}: {each.fares.alive if each.fares else 0}"
                for each in self.members.values()
            )
            raise PeerError(
                f"{what}: not after {START_LIMIT_S:g} s (nodes that each sees: {seen})"
            ) from None


def _make_folder(keep: Path | None) -> Path:
    try:
        if keep is None:
            folder = Path(tempfile.mkdtemp(prefix="meshnode-up-"))
        else:
            folder = keep.absolute()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(f"{folder} is not empty; name a new folder with --keep")
        (folder / RUNNING).mkdir()
        Whereabouts.make_file(folder / PORTS_FILE)
    except OSError as error:
        raise ConfigError(
            f"no folder for the rehearsal can be made ({error}); name one with --keep"
        ) from error
    return folder
