"""Depth C: a scenario on real processes of this machine, in real time.

What is real: processes, their kernels' sockets, TLS, HTTP, disks, and the machine's own hiccups. What is
not: the distance between nodes (wires, in the process that receives), the time of models (they sleep),
and how nodes' machines look. So no two runs are alike, and there is no trace hash: a seed decides what
wires and models draw, and nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import MeshError, PeerError, UsageError
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.faults import (
    ClockJump,
    Crash,
    Fault,
    Flap,
    GossipDelay,
    Leave,
    NetworkFault,
    OrderRelease,
    PowerOff,
    RegionDown,
    Release,
    Restart,
    Thaw,
)
from meshnode.sim.invariants import Invariants
from meshnode.sim.network import Network
from meshnode.sim.paths import network_config
from meshnode.sim.processes.clients import Clients
from meshnode.sim.processes.conditions import BEHAVIOURS, CUTS, KEEPS_DOWN, STOPS, behaviour
from meshnode.sim.processes.rehearsal import Rehearsal
from meshnode.sim.scenario.selection import select, sides
from meshnode.sim.stage import NodeSample, Sample
from meshnode.sim.standings import DEPLOYED
from meshnode.sim.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from meshnode.sim.processes.orders import Reported
    from meshnode.sim.processes.rehearsal import Member
    from meshnode.sim.scenario.model import Scenario
    from meshnode.sim.stage import Call, Machine, Outcome

POWER_FAILS_S: Final = 0.05
"""How long after its wires are cut a machine's process is killed: the orders must have come through, or
peers would hear its kernel close its connections."""

_POLL_S: Final = 0.05


@dataclass(eq=False, slots=True)
class _Standing:
    """A fault that is on.

    Attributes:
        fault: What.
        members: Whom it is about, by name, with the number of the rule that cuts each off, or 0.
        rule: The number of the rule that a fault of the network laid, or 0.
    """

    fault: Fault
    members: dict[str, int]
    rule: int = 0


class ProcessStage:
    """A `Stage` of processes.

    Attributes:
        scenario: What is played.
        seed: Decides what wires and models draw.
        trace: What nodes reported; its hash says nothing here.
        machines: The nodes.
        rehearsal: The processes.
        invariants: Told of calls alone: the cores are in other processes.
        is_started: Whether all nodes and models have been ready.
        on_started: Called then.
        stays: Whether `close` leaves everything as it is, so that it outlives a play.
    """

    def __init__(
        self, scenario: Scenario, seed: int, *, base_port: int = 0, keep: Path | None = None
    ) -> None:
        """Choose ports and make the folder; `close` removes it.

        Args:
            scenario: One without mistakes.
            seed: Decides what wires and models draw.
            base_port: The first gateway's port; 0 for one that is free.
            keep: A folder that is kept; None for one that vanishes at the end.

        Raises:
            ConfigError: if there are too many nodes, a port is taken, or no folder can be made.
        """
        self.scenario = scenario
        self.seed = seed
        self.trace = Trace()
        self._began_s = time.monotonic()
        self.rehearsal = Rehearsal(scenario, seed, base_port=base_port, keep=keep)
        self.rehearsal.on_reported = self._reported
        self.rehearsal.on_gone = self._gone
        self.is_started = False
        self.on_started: Callable[[], None] = lambda: None
        self.stays = False
        self.invariants = Invariants(seed, self.now)
        self.machines: Sequence[Machine] = tuple(
            member.machine for member in self.rehearsal.members.values()
        )
        self._loop = asyncio.new_event_loop()
        self._network = Network(network_config(scenario), random.Random(seed))
        for machine in self.machines:
            self._network.place(machine.name, machine.region)
        self._clients = Clients(self._url_of, self._network.rtt_s)
        self._standing: list[_Standing] = []
        self._work: set[asyncio.Task[None]] = set()
        self._waits: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._looked_at_s = 0.0
        self._busy_s: dict[str, tuple[int, float]] = {}  # boot and seconds, at the last sample

    def __repr__(self) -> str:
        return f"<ProcessStage of {self.rehearsal!r}>"

    # Time.

    def start(self, progress: Callable[[str], None]) -> None:
        """Start all processes; see `Stage.start`.

        Raises:
            NotReachedError: if a node does not start, or they do not find together.
        """
        try:
            self._run(self.rehearsal.start(progress))
        except Exception as error:
            first = _first(error)
            if isinstance(first, MeshError):
                raise NotReachedError(f"{first} (seed {self.seed})") from first
            raise
        self.is_started = True
        self.on_started()

    def now(self) -> float:
        """Return the seconds since this stage was made."""
        return time.monotonic() - self._began_s

    def at(self, time_s: float, call: Callable[..., object], *args: object) -> None:
        """Call something at a time of the stage."""
        delay_s = max(0.0, time_s - self.now())
        self._loop.call_later(delay_s, self._guarded, call, *args)

    def run_to(self, time_s: float) -> None:
        """Wait until that time, and let happen what happens; what fails is raised here."""
        self._run(self._wait_until(time_s))

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Let things happen until something is so."""
        self._run(self._wait_for(is_over))

    async def _wait_for(self, is_over: Callable[[], bool]) -> None:
        while not is_over() and not self._failed.is_set():  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(_POLL_S)

    async def _wait_until(self, time_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, time_s - self.now())):
                await self._failed.wait()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._waits = self._loop.create_task(work)  # an interrupt leaves it behind
        self._loop.run_until_complete(self._waits)
        failure, self._failure = self._failure, None
        self._failed.clear()
        if failure is not None:
            raise failure

    def _fail(self, error: BaseException) -> None:
        """Let whoever waits in `_run` raise this."""
        self._failure = self._failure or error
        self._failed.set()

    def _guarded(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001 - raised in `run_to`, where the player waits
            self._fail(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, MeshError):
            self.trace.record(self.now(), "", "rehearsal.failed", "", str(error))
        elif error is not None:
            self._fail(error)

    # Faults.

    def unsupported(self, fault: Fault) -> str | None:
        """Return why this depth cannot do a fault, or None."""
        if isinstance(fault, GossipDelay):
            return (
                "gossip that travels on links is inside TLS there, so it cannot be told from "
                "requests; play it at depth A, or delay everything with latency"
            )
        return None

    def apply(self, fault: Fault) -> None:
        """Do a fault now."""
        if (reason := self.unsupported(fault)) is not None:
            raise UsageError(f"{fault.verb} is not possible at depth C: {reason}")
        match fault:
            case Restart(torn=torn):
                for member in self._members(fault):
                    self._forget(member, KEEPS_DOWN)
                    self._boot(member, torn=torn)
            case Thaw():
                for member in self._members(fault):
                    self._forget(member, STOPS)
                    self._settle_down(member)
            case Release(model=name):
                model = next(each for each in self.scenario.models if each.name == name)
                if fault.release:
                    version = str(self.rehearsal.next_version(name))
                    self.trace.record(self.now(), fault.node, DEPLOYED, name, version)
                self._spawn(self.rehearsal.deploy(model, fault))
            case OrderRelease():
                self._spawn(self.rehearsal.order(fault))
            case _:
                self._begin(fault)

    def undo(self, fault: Fault) -> None:
        """Undo a fault now; nothing happens to nodes that another fault keeps down."""
        standing = next((each for each in self._standing if each.fault == fault), None)
        if standing is None:
            return
        self._standing.remove(standing)
        self.rehearsal.mend(standing.rule)
        for name, rule in standing.members.items():
            self.rehearsal.mend(rule)
            self._undo_for(self.rehearsal.members[name], fault)

    def _undo_for(self, member: Member, fault: Fault) -> None:
        if isinstance(fault, ClockJump):
            self.rehearsal.jump_clock(member, -fault.by_s)
        elif isinstance(fault, BEHAVIOURS):
            self._behave(member)
        elif isinstance(fault, (*KEEPS_DOWN, Flap)):
            self._boot(member, torn=isinstance(fault, Crash | PowerOff) and fault.torn)
        elif isinstance(fault, STOPS):
            self._settle_down(member)

    def _begin(self, fault: Fault) -> None:
        standing = _Standing(fault, {member.name: 0 for member in self._members(fault)})
        self._standing.append(standing)
        if isinstance(fault, NetworkFault):
            standing.rule = self._lay(fault)
            return
        if isinstance(fault, Flap):
            self._flap(standing, fault)
            return
        for name in standing.members:
            if isinstance(fault, CUTS):
                standing.members[name] = self.rehearsal.isolate(name)
            self._begin_for(self.rehearsal.members[name], fault)

    def _begin_for(self, member: Member, fault: Fault) -> None:
        if isinstance(fault, ClockJump):
            self.rehearsal.jump_clock(member, fault.by_s)
        elif isinstance(fault, BEHAVIOURS):
            self._behave(member)
        elif isinstance(fault, Leave):
            if member.is_up:
                self.rehearsal.leave(member)
        elif isinstance(fault, Crash):
            self._kill(member, "down")
        elif isinstance(fault, KEEPS_DOWN):
            self._kill_later(member)
        elif isinstance(fault, STOPS) and member.is_up:
            self.rehearsal.freeze(member)

    def _lay(self, fault: NetworkFault) -> int:
        one, other = sides(fault, self.machines)
        return self.rehearsal.lay(
            fault,
            tuple(machine.name for machine in one),
            tuple(machine.name for machine in other),
            salt=f"{self.seed}/{fault.at_s}",
        )

    def _kill(self, member: Member, state: str) -> None:
        if member.state in ("up", "frozen"):
            self.rehearsal.kill(member, state)

    def _kill_later(self, member: Member) -> None:
        """Kill a process without its power, once all its peers have cut it off."""
        if member.state in ("up", "frozen"):
            boot = member.boot

            def kill() -> None:
                if member.boot == boot:
                    self.rehearsal.kill(member, "off")

            self.at(self.now() + POWER_FAILS_S, kill)

    def _flap(self, standing: _Standing, fault: Flap) -> None:
        """Crash and boot until the fault is undone."""
        members = [self.rehearsal.members[name] for name in standing.members]

        def down() -> None:
            if standing in self._standing:
                for member in members:
                    self._kill(member, "down")
                self.at(self.now() + fault.down_s, up)

        def up() -> None:
            if standing in self._standing:
                for member in members:
                    self._boot(member)
                self.at(self.now() + fault.up_s, down)

        down()

    def _boot(self, member: Member, *, torn: bool = False) -> None:
        """Boot a node that is down, unless a fault keeps it there."""
        if member.state in ("up", "frozen") or self._has(member, KEEPS_DOWN):
            return
        member.state = "up"  # from now on: two faults that are undone at once boot it once
        self._spawn(self._boot_after(member, torn))

    async def _boot_after(self, member: Member, torn: bool) -> None:
        if member.process is not None:
            await member.process.ended.wait()
        if self._has(member, KEEPS_DOWN):
            member.state = "down"
            return
        try:
            await self.rehearsal.boot(member, torn=torn)
        except PeerError:
            if member.state == "up":  # it was not killed by another fault meanwhile
                member.state = "down"
                raise

    def _settle_down(self, member: Member) -> None:
        """Let a process that stands still run on, unless another fault stops it."""
        if member.state == "frozen" and not self._has(member, STOPS):
            self.rehearsal.thaw(member)

    def _behave(self, member: Member) -> None:
        on = [each.fault for each in self._standing if member.name in each.members]
        self.rehearsal.behave(member, behaviour(on))

    def _has(self, member: Member, kinds: tuple[type[Fault], ...]) -> bool:
        return any(
            isinstance(each.fault, kinds) and member.name in each.members for each in self._standing
        )

    def _forget(self, member: Member, kinds: tuple[type[Fault], ...]) -> None:
        """Let the faults of these kinds no longer be about this node."""
        for each in self._standing:
            if isinstance(each.fault, kinds):
                self.rehearsal.mend(each.members.pop(member.name, 0))

    def _members(self, fault: Fault) -> list[Member]:
        """Return the nodes that a fault is about."""
        if isinstance(fault, RegionDown):
            names = [each.name for each in self.machines if each.region == fault.region]
        else:
            chosen = select(getattr(fault, "nodes", ()), self.machines)
            names = [machine.name for machine in chosen]
        return [self.rehearsal.members[name] for name in names]

    # Calls and looks.

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        """Let a client make a call now."""

        def told(call: Call, outcome: Outcome) -> None:
            self._guarded(done, call, outcome)

        self._clients.send(call, told)

    def sample(self) -> Sample:
        """Look at all nodes, as they have told of themselves last."""
        now = self.now()
        since_s, self._looked_at_s = now - self._looked_at_s, now
        return Sample(
            now,
            {name: self._look(each, since_s) for name, each in self.rehearsal.members.items()},
        )

    def _look(self, member: Member, since_s: float) -> NodeSample:
        fares = member.fares
        if fares is None or not member.is_up:
            return NodeSample(member.state)
        boot, before_s = self._busy_s.get(member.name, (0, 0.0))
        worked_s = fares.busy_s - (before_s if boot == member.boot else 0.0)
        self._busy_s[member.name] = (member.boot, fares.busy_s)
        room_s = since_s * fares.slots
        return NodeSample(
            state=member.state,
            alive=fares.alive,
            in_system=fares.in_system,
            busy=min(1.0, worked_s / room_s) if room_s > 0 else 0.0,
            slots=fares.slots,
            serving=len(fares.serving),
        )

    def settle(self, limit_s: float) -> None:
        """Wait until no call is open, nothing runs, and all nodes agree on who is there.

        Raises:
            NotReachedError: if that does not come about.
        """
        until_s = self.now() + limit_s
        self.run_until(lambda: self.now() >= until_s or self._is_quiet())
        if not self._is_quiet():
            seen = ", ".join(
                f"{each.name} sees {each.fares.alive if each.fares else 0}"
                f"{' and is busy' if each.fares and each.fares.is_busy else ''}"
                for each in self.rehearsal.up()
            )
            raise NotReachedError(
                f"the mesh is not quiet after {limit_s:g} s: {self._clients.open_calls} calls are open; "
                f"{len(self.rehearsal.up())} nodes run, {seen} (seed {self.seed})"
            )

    def _is_quiet(self) -> bool:
        return (
            not self._clients.open_calls
            and not self._work
            and self.rehearsal.agree()
            and not any(each.fares and each.fares.is_busy for each in self.rehearsal.up())
        )

    # The end.

    def leave(self) -> None:
        """Let all nodes say goodbye, and end as `close` does."""
        if not self._loop.is_closed():
            self._end(self.rehearsal.leave_all)

    def close(self, *, for_good: bool = False) -> None:
        """Kill all processes and remove what they had; see `stays`.

        Args:
            for_good: Whether that shall be even if this stage stays.
        """
        if not self._loop.is_closed() and (for_good or not self.stays):
            self._end(self.rehearsal.close)

    def _end(self, ending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stop what is under way, an interrupted `_end` too, then do this and close the loop."""
        left = [*self._work, *([self._waits] if self._waits is not None else [])]

        async def end() -> None:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self._clients.close()
            await ending()

        self._waits = self._loop.create_task(end())
        self._loop.run_until_complete(self._waits)
        self._loop.close()

    def _url_of(self, name: str) -> str:
        return self.rehearsal.members[name].url

    def _gone(self, name: str, how: str) -> None:
        self._fail(PeerError(f"{name} {how}"))

    def _reported(self, name: str, report: Reported) -> None:
        self.trace.record(self.now(), name, report.kind, report.subject, report.detail)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
