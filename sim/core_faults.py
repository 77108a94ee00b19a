"""Faults of nodes at depth A: each verb done and undone, however many of them overlap.

A node runs while no fault keeps it down, and its process runs on while none freezes it; what has a
measure (slowness, skew, lies) is what all present faults make of it together. So every fault is kept
with its nodes until it is undone. A new process is free of what froze the one before.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from meshnode.errors import UsageError
from meshnode.sim.faults import (
    ClockJump,
    ClockSkew,
    Crash,
    DiskFull,
    Drain,
    FailRequests,
    Fault,
    Flap,
    Freeze,
    Leave,
    LyingLoad,
    PowerOff,
    RegionDown,
    Restart,
    Sleep,
    SlowDown,
    StaleLoad,
    Thaw,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.sim.mesh import SimMesh

RESTART_S: Final = 5.0
"""After how long a supervisor tries again to start a node that could not write to its disk."""

_KEEP_DOWN: Final = (Crash, PowerOff, RegionDown, Leave, Flap)
_FREEZE: Final = (Freeze, Sleep)


class _Standing:
    """A fault that has been done and not undone; compared by identity."""

    __slots__ = ("fault", "names")

    def __init__(self, fault: Fault, names: tuple[str, ...]) -> None:
        self.fault = fault
        self.names = names


class CoreFaults:
    """The faults that nodes of a mesh suffer now."""

    def __init__(self, mesh: SimMesh) -> None:
        """Begin with a sound mesh."""
        self._mesh = mesh
        self._world = mesh.world
        self._rng = random.Random(f"{mesh.world.seed}/fault")
        self._standing: list[_Standing] = []
        self._down: dict[str, list[_Standing]] = {}
        self._frozen: dict[str, list[_Standing]] = {}

    def __repr__(self) -> str:
        return f"<CoreFaults: {len(self._standing)} stand>"

    def do(self, fault: Fault, names: Sequence[str]) -> None:
        """Do a fault to these nodes."""
        standing = _Standing(fault, tuple(names))
        match fault:
            case Restart(torn=torn):
                for name in names:
                    self._free(name, torn=torn)
                return
            case Thaw():
                for name in names:
                    self._frozen.pop(name, None)
                    self._refreeze(name)
                return
            case _ if isinstance(fault, _KEEP_DOWN):
                for name in names:
                    self._take_down(name, standing)
            case _ if isinstance(fault, _FREEZE):
                for name in names:
                    if self._world.is_running(name):
                        self._frozen.setdefault(name, []).append(standing)
                    self._refreeze(name)
            case ClockJump(by_s=by_s):
                for name in names:
                    self._world.clock_of(name).jump(by_s)
        self._standing.append(standing)
        self._measure(fault, names)

    def undo(self, fault: Fault) -> None:
        """Undo the oldest such fault that stands; nothing happens if none does."""
        standing = next((each for each in self._standing if each.fault == fault), None)
        if standing is None:
            return
        self._standing.remove(standing)
        for name in standing.names:
            if isinstance(fault, _KEEP_DOWN):
                self._let_up(name, standing)
            elif isinstance(fault, _FREEZE):
                if standing in self._frozen.get(name, ()):
                    self._frozen[name].remove(standing)
                self._refreeze(name)
            elif isinstance(fault, ClockJump):
                self._world.clock_of(name).jump(-fault.by_s)
        self._measure(fault, standing.names)

    # Down and up.

    def _take_down(self, name: str, standing: _Standing) -> None:
        fault = standing.fault
        self._down.setdefault(name, []).append(standing)
        if isinstance(fault, PowerOff | RegionDown):
            self._mesh.power_off(name)
            self._frozen.pop(name, None)
            if isinstance(fault, PowerOff) and fault.torn:
                self._tear(name)
        elif self._world.is_running(name):
            if isinstance(fault, Leave) and not self._world.is_frozen(name):
                self._mesh.leave(name)
                return
            self._crash(name, torn=isinstance(fault, Crash) and fault.torn)
        if isinstance(fault, Flap):
            self._world.scheduler.after(fault.down_s, self._flap_up, name, standing)

    def _crash(self, name: str, *, torn: bool) -> None:
        self._mesh.crash(name)
        self._frozen.pop(name, None)
        if torn:
            self._tear(name)

    def _tear(self, name: str) -> None:
        done = self._world.tear_disk(name, self._rng)
        if done:
            self._world.trace.record(self._world.now(), name, "disk.torn", name, done)

    def _let_up(self, name: str, standing: _Standing) -> None:
        """A fault keeps a node down no more; it boots unless another one does."""
        down = self._down.get(name, [])
        if standing in down:
            down.remove(standing)
            if not any(isinstance(each.fault, PowerOff | RegionDown) for each in down):
                self._world.power_on(name)
            self._boot(name)
        elif isinstance(standing.fault, Flap):
            self._boot(name)

    def _free(self, name: str, *, torn: bool) -> None:
        """Boot a node whatever kept it down; one that runs stays as it is."""
        self._down.pop(name, None)
        if torn and not self._world.is_running(name):
            self._tear(name)
        self._boot(name)

    def _boot(self, name: str) -> None:
        """Boot a node that nothing keeps down any more."""
        world = self._world
        if self._down.get(name):
            return
        if world.is_running(name):
            if not self._mesh.is_leaving(name):
                return
            self._mesh.crash(name)  # it is to start again before it has quite ended
        if not world.has_room(name):
            # The epoch of a start has to be written down, so it fails; the supervisor tries again.
            world.trace.record(world.now(), name, "node.start_failed", name, "its disk is full")
            world.scheduler.after(RESTART_S, self._boot, name)
            return
        world.restart(name)

    def _flap_up(self, name: str, standing: _Standing) -> None:
        down = self._down.get(name, [])
        if standing not in down:
            return  # it was undone, or the node was restarted by hand
        assert isinstance(standing.fault, Flap)
        down.remove(standing)
        self._boot(name)
        self._world.scheduler.after(standing.fault.up_s, self._flap_down, name, standing)

    def _flap_down(self, name: str, standing: _Standing) -> None:
        if standing in self._standing:
            self._take_down(name, standing)

    # Standing still.

    def _refreeze(self, name: str) -> None:
        """Let a node's process stand still, or run on, as its present faults say."""
        world = self._world
        if not world.is_running(name):
            return
        faults = [standing.fault for standing in self._frozen.get(name, ())]
        if any(isinstance(fault, Sleep) for fault in faults):
            world.sleep(name)
            return
        if world.is_frozen(name):
            world.wake(name)
        if faults:
            world.freeze(name)

    # What has a measure.

    def _measure(self, fault: Fault, names: Sequence[str]) -> None:
        for name in names:
            present = [
                standing.fault
                for standing in self._standing
                if name in standing.names and type(standing.fault) is type(fault)
            ]
            self._set(name, fault, present)

    def _set(self, name: str, kind: Fault, present: Sequence[Fault]) -> None:
        """Let all present faults of one kind have their effect on a node."""
        world = self._world
        device = self._mesh.device(name)
        match kind:
            case SlowDown():
                factor = math.prod(f.factor for f in present if isinstance(f, SlowDown))
                device.faults.slowness = factor
                world.slow_down(name, factor)
            case ClockSkew():
                rate = math.prod(1 + f.rate for f in present if isinstance(f, ClockSkew))
                world.clock_of(name).run_at(rate)
            case DiskFull():
                (world.fill_disk if present else world.empty_disk)(name)
            case Drain():
                charges = [f.percent for f in present if isinstance(f, Drain)]
                device.drained_to = min(charges, default=None)
            case LyingLoad():
                shares = [f.share for f in present if isinstance(f, LyingLoad)]
                device.faults.told_share = shares[-1] if shares else 1.0
            case StaleLoad():
                ages_s = [f.age_s for f in present if isinstance(f, StaleLoad)]
                device.faults.told_late_s = max(ages_s, default=0.0)
                device.faults.forget()
            case FailRequests():
                sound = math.prod(1 - f.share for f in present if isinstance(f, FailRequests))
                device.faults.failing = 1 - sound
            case _ if isinstance(kind, (*_KEEP_DOWN, *_FREEZE, ClockJump)):
                pass
            case _:
                raise UsageError(f"depth A knows no fault {kind.verb!r} of nodes")
