"""One node of a rehearsal at depth C: a process with the real daemon in it, and wires to its peers.

`python -m meshnode.sim.processes.node` reads its plan and then orders from standard input, and reports
on standard output (`meshnode.sim.processes.orders`); what a daemon says and logs goes to standard error.
The daemon is the one that `meshnode join` starts, but for its machine, which is the scenario's, its
event loop, whose connections go through wires, and its models, which sleep.

When standard input ends, whoever rehearsed is gone: the node says goodbye, removes its folder, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.daemon.logs import LOG_FILE, set_up_logging
from meshnode.daemon.process import Daemon
from meshnode.daemon.surroundings import real_surroundings
from meshnode.datafolder import DataFolder
from meshnode.errors import ConfigError, MeshError
from meshnode.models.serving.server import ModelServer
from meshnode.net.clock import RealClock
from meshnode.options import JoinOptions
from meshnode.sim.faults import NetworkFault
from meshnode.sim.impairments import Impairment, Rule
from meshnode.sim.network import Network
from meshnode.sim.network_faults import rule_of
from meshnode.sim.node_clock import NodeClock
from meshnode.sim.paths import network_config
from meshnode.sim.processes.loop import WiredLoop
from meshnode.sim.processes.orders import (
    FARES_EVERY_S,
    ORDER_DECODER,
    PLAN_DECODER,
    AnyOrder,
    Behave,
    Fares,
    Go,
    JumpClock,
    Lay,
    Mend,
    Plan,
    Ready,
    Report,
    Reported,
    line_of,
)
from meshnode.sim.processes.whereabouts import LOOPBACK, Whereabouts
from meshnode.sim.processes.wires import Wires
from meshnode.sim.scenario.crew import crew
from meshnode.sim.stand_in import StandInRuntime
from meshnode.sim.stand_in_machine import StandInHardware
from meshnode.sim.stand_in_server import StandInServer
from meshnode.types import Address, NodeState, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.effects import Emit
    from meshnode.models.runtimes.base import Runtime

RUNNING: Final = "running"
"""Folder with an empty file for each process that runs: the last one to go removes everything."""

PORTS_FILE: Final = "ports"
"""File of the rehearsal's folder that says who dials from which port."""

ORPHAN_LIMIT_S: Final = 10.0
"""How long a node may take for its goodbye when whoever started it is gone."""

_MAX_LINE_BYTES: Final = 4096  # what a pipe takes as a whole or not at all, on every platform
_MAX_DETAIL_LENGTH: Final = 1000
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Diary:
    """How much of the time the device's slots have worked."""

    def __init__(self) -> None:
        """Begin idle."""
        self._lock = threading.Lock()
        self._running = 0
        self._busy_s = 0.0
        self._since = time.monotonic()

    def spend(self, seconds: float) -> None:
        """Let time pass in the calling thread, and count it."""
        self._count(1)
        try:
            time.sleep(seconds)
        finally:
            self._count(-1)

    def busy_s(self) -> float:
        """Return the seconds of work so far, over all slots."""
        return self._count(0)

    def _count(self, more: int) -> float:
        with self._lock:
            now = time.monotonic()
            self._busy_s += self._running * (now - self._since)
            self._since = now
            self._running += more
            return self._busy_s


class Folder(DataFolder):
    """A data folder whose disk can be told to be full."""

    is_full = False

    def _write(self, path: Path, data: bytes) -> None:
        if self.is_full:
            raise ConfigError(
                f"cannot write {path}: no space left on device; free some space, or name another "
                "folder with --data-dir"
            )
        super()._write(path, data)


class Node:
    """What runs in the process of one node.

    Attributes:
        is_orphan: Whether whoever rehearsed is gone.
    """

    def __init__(self, plan: Plan, tell: Callable[[Report], None]) -> None:
        """Prepare; nothing runs yet.

        Args:
            plan: What it is to be.
            tell: Sends a report.
        """
        self.is_orphan = False
        self._goes = False
        self.clock = NodeClock(RealClock())
        self._plan = plan
        self._tell = tell
        self._machine = next(each for each in crew(plan.scenario) if each.name == plan.name)
        self._diary = Diary()
        self._runtime = StandInRuntime(
            self._diary.spend,
            random.Random(f"{plan.seed}/fault/{plan.name}/{plan.boot}"),
            speed=self._machine.device.speed,
            device_class=self._machine.device_class,
        )
        self._hardware = StandInHardware(self._machine.device)
        self._server: StandInServer | None = None
        self._folder: Folder | None = None
        self._daemon: Daemon | None = None
        self._rules: dict[int, Rule] = {}
        self._network = self._make_network()
        self._loop: WiredLoop | None = None

    def __repr__(self) -> str:
        return f"<Node {self._plan.name}, boot {self._plan.boot}>"

    def make_loop(self) -> WiredLoop:
        """Make the event loop."""
        self._loop = WiredLoop(self.clock)
        return self._loop

    async def run(self, follow: Callable[[Node, asyncio.AbstractEventLoop], None]) -> int:
        """Be a node until told to go; return the exit code.

        Args:
            follow: Begins to read orders.

        Raises:
            MeshError: if it cannot start.
        """
        plan, loop = self._plan, self._loop
        assert loop is not None
        place = Path(plan.folder) / plan.name
        whereabouts = Whereabouts(
            Path(plan.folder) / PORTS_FILE,
            {port: name for name, port in plan.ports.items()},
            plan.name,
        )
        loop.wires = Wires(plan.name, self._network, whereabouts, lambda: self.clock.rate)
        follow(self, loop)
        logging = set_up_logging("info", "text")
        if plan.torn:
            _tear(place, random.Random(f"{plan.seed}/torn/{plan.name}/{plan.boot}"))
        self._folder = Folder(place)
        logging.write_to(place.joinpath(*LOG_FILE))
        surroundings = replace(
            real_surroundings(),
            clock=self.clock,
            hardware=self._hardware,
            runtimes=lambda _environment: {StandInRuntime.name: self._runtime},
            model_server=self._make_server,
            reported=self._reported,
        )
        self._daemon = Daemon(self._options(), self._folder, self._ready, surroundings=surroundings)
        telling = asyncio.ensure_future(self._tell_fares())
        try:
            return await self._daemon.run()
        finally:
            telling.cancel()

    # Orders.

    def take(self, order: AnyOrder) -> None:
        """Do as told."""
        match order:
            case Lay(number=number):
                rule = self._rules[number] = _rule(order)
                self._network.lay(rule)
            case Mend(number=number):
                if (laid := self._rules.pop(number, None)) is not None:
                    self._network.mend(laid)
            case Behave():
                self._behave(order)
            case JumpClock(by_s=by_s):
                self.clock.jump(by_s)
            case Go():
                self._go()

    def orphaned(self) -> None:
        """Whoever rehearsed is gone: go too."""
        self.is_orphan = True
        self._go()

    def _go(self) -> None:
        if not self._goes:  # the daemon takes a second signal for impatience
            self._goes = True
            signal.raise_signal(signal.SIGINT)

    def _behave(self, order: Behave) -> None:
        self._runtime.slowness = order.slowness
        self._runtime.fail_share = order.fail_share
        self._hardware.battery_percent = order.battery_percent
        self._hardware.is_disk_full = order.is_disk_full
        if self._folder is not None:
            self._folder.is_full = order.is_disk_full
        if self._server is not None:
            self._server.load_share = order.load_share
            self._server.load_age_s = order.load_age_s
        if self.clock.rate != order.clock_rate:
            self.clock.run_at(order.clock_rate)

    # What the daemon takes.

    def _options(self) -> JoinOptions:
        plan, machine = self._plan, self._machine
        return JoinOptions(
            invite=plan.invite or None,
            name=plan.name,
            region=machine.region,
            region_chosen=True,
            zone="",
            labels=(("device", machine.device_class),),
            listen=Address(LOOPBACK, plan.ports[plan.name]),
            http=Address(LOOPBACK, plan.http_port) if plan.http_port else None,
            data_dir=str(Path(plan.folder) / plan.name),
            models=None,
            new=plan.founds,
            rejoin=not plan.founds and not plan.invite,
            mdns=False,
            only_on_mains=machine.device.battery,
        )

    def _make_server(self, runtimes: Mapping[str, Runtime], cores: int) -> ModelServer:
        slots = self._machine.device.slots
        self._server = StandInServer(runtimes, cores=cores, slots=slots, now=self.clock.now)
        return self._server

    def _make_network(self) -> Network:
        plan = self._plan
        rng = random.Random(f"{plan.seed}/network/{plan.name}/{plan.boot}")
        network = Network(network_config(plan.scenario), rng)
        for machine in crew(plan.scenario):
            network.place(machine.name, machine.region)
            if machine.nat:
                network.put_behind_router(machine.name)
        return network

    # Reports.

    def _ready(self) -> None:
        assert self._daemon is not None
        assert self._daemon.mesh is not None
        self._tell(Ready(node_id=self._daemon.mesh.node.me))
        self._tell(self._fares())

    async def _tell_fares(self) -> None:
        while True:
            await asyncio.sleep(FARES_EVERY_S)
            if self._daemon is not None and self._daemon.was_ready:
                self._tell(self._fares())

    def _fares(self) -> Fares:
        assert self._daemon is not None
        mesh, server = self._daemon.mesh, self._server
        assert mesh is not None
        assert server is not None
        alive = sorted(
            member.record.name
            for member in mesh.node.membership.members.values()
            if member.state is NodeState.ALIVE
        )
        ready = [key for key, own in mesh.node.own.items() if own.state is ReplicaState.READY]
        loads = []
        for model, version in ready:
            with contextlib.suppress(MeshError):  # it is being unloaded
                loads.append(ModelServer.load_report(server, model, version))
        return Fares(
            alive=len(alive),
            in_system=sum(load.in_system for load in loads),
            is_busy=mesh.busy,
            busy_s=self._diary.busy_s(),
            slots=sum(load.slots for load in loads),
            serving=tuple(sorted(ready)),
            digest=hashlib.sha256("\n".join(alive).encode()).hexdigest()[:16],
        )

    def _reported(self, emit: Emit) -> None:
        mesh = None if self._daemon is None else self._daemon.mesh
        members = {} if mesh is None else mesh.node.membership.members

        def named(text: str) -> str:
            for node_id, member in members.items():
                if node_id in text:
                    text = text.replace(node_id, member.record.name)
            return text

        detail = named(emit.detail[:_MAX_DETAIL_LENGTH])
        self._tell(Reported(kind=emit.kind, subject=named(str(emit.subject)), detail=detail))


def _rule(order: Lay) -> Rule:
    if isinstance(order.fault, NetworkFault):
        return rule_of(order.fault, order.sources, order.targets, order.salt)
    return Rule(Impairment(cut=True), order.sources, order.targets)


def _tear(place: Path, rng: random.Random) -> None:
    """Leave what a machine leaves that lost its power while it wrote: a new file, half written.

    The old one is beside it still: it is replaced only when the new one is on the disk as a whole.
    """
    state = place / "state"
    written = [each for each in state.glob("*") if each.is_file()] if state.is_dir() else []
    if not written:
        return
    last = max(written, key=lambda each: (each.stat().st_mtime_ns, each.name))
    data = last.read_bytes()
    last.with_name(last.name + ".new").write_bytes(
        data[: rng.randrange(len(data))] if data else b""
    )


def _read_plan() -> tuple[Plan, bytes]:
    """Return the plan, and what of the orders came with it."""
    taken = b""
    while b"\n" not in taken:
        piece = os.read(_STDIN, 65_536)
        if not piece:
            raise SystemExit(0)  # whoever started this has changed their mind
        taken += piece
    line, _, rest = taken.partition(b"\n")
    return PLAN_DECODER.decode(line), rest


def _follow_orders(node: Node, plan: Plan, loop: asyncio.AbstractEventLoop, taken: bytes) -> None:
    """Read orders until there is nobody to give them; runs in a thread of its own."""
    while True:
        *lines, taken = taken.split(b"\n")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            for line in lines:
                loop.call_soon_threadsafe(node.take, ORDER_DECODER.decode(line))
        piece = os.read(_STDIN, 65_536)
        if not piece:
            break
        taken += piece
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(node.orphaned)
        time.sleep(ORPHAN_LIMIT_S)
        _clean_up(plan)
        os._exit(1)


def _teller() -> Callable[[Report], None]:
    """Take standard output for reports alone; whoever reads them may be slow, or gone."""
    pipe = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    with contextlib.suppress(OSError, AttributeError):  # Windows, before Python 3.12
        os.set_blocking(pipe, False)

    def tell(report: Report) -> None:
        line = line_of(report)
        if len(line) <= _MAX_LINE_BYTES:
            with contextlib.suppress(OSError):  # it is full, or closed: the next one tells more
                os.write(pipe, line)

    return tell


def _clean_up(plan: Plan) -> None:
    """Remove what this node had of the rehearsal's folder, and the folder if it was the last, if nobody keeps it."""
    if plan.keep:
        return
    folder = Path(plan.folder)
    shutil.rmtree(folder / plan.name, ignore_errors=True)
    running = folder / RUNNING
    with contextlib.suppress(OSError):
        (running / plan.name).unlink()
        if not any(running.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Be the node of the plan on standard input; return the exit code."""
    if hasattr(signal, "SIGHUP"):
        # The kernel sends it to a process that stands still when its parent dies, and lets it run on;
        # the end of standard input then says all, and a second signal would be taken for impatience.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    plan, rest = _read_plan()
    node = Node(plan, _teller())

    def follow(node: Node, loop: asyncio.AbstractEventLoop) -> None:
        threading.Thread(target=_follow_orders, args=(node, plan, loop, rest), daemon=True).start()

    code = 1
    try:
        with asyncio.Runner(loop_factory=node.make_loop) as runner:
            code = runner.run(node.run(follow))
    except MeshError as error:
        sys.stderr.write(f"error: {error}\n")
    except KeyboardInterrupt:  # told to go before the daemon took signals
        code = 0
    if node.is_orphan:
        _clean_up(plan)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
