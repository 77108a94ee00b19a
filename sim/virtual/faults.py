"""Every verb of `meshnode.sim.faults`, done to whole daemons and to the network between them.

A fault is kept with what undoes it, so that two faults on one node or path end independently: a node
runs again when nothing keeps it down any more.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

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
    NetworkFault,
    OrderRelease,
    PowerOff,
    RegionDown,
    Release,
    Restart,
    Sleep,
    SlowDown,
    StaleLoad,
    Thaw,
)
from meshnode.sim.impairments import Impairment, Rule
from meshnode.sim.network_faults import rule_of
from meshnode.sim.scenario.selection import select, sides

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.virtual.daemon import VirtualNode
    from meshnode.sim.virtual.mesh import VirtualMesh

_Undo = "Callable[[], None]"


class Faults:
    """Does faults to a mesh of virtual daemons, and undoes them."""

    def __init__(self, mesh: VirtualMesh) -> None:
        """Do them to a mesh."""
        self._mesh = mesh
        self._rng = random.Random(f"{mesh.seed}/fault")
        self._active: list[tuple[Fault, list[Callable[[], None]]]] = []
        self._down: Counter[str] = Counter()  # faults that keep a node down
        self._frozen: Counter[str] = Counter()
        self._done = 0

    def __repr__(self) -> str:
        return f"<Faults: {[fault.verb for fault, _ in self._active]}>"

    def apply(self, fault: Fault) -> None:
        """Do a fault now."""
        self._done += 1
        undos = self._do(fault)
        if fault.can_be_undone:
            self._active.append((fault, undos))

    def undo(self, fault: Fault) -> None:
        """Undo a fault that was done; one that was not is left alone."""
        for index, (active, undos) in enumerate(self._active):
            if active is fault or active == fault:
                del self._active[index]
                for undo in undos:
                    undo()
                return

    def _do(self, fault: Fault) -> list[Callable[[], None]]:
        if isinstance(fault, NetworkFault):
            return [self._lay(fault)]
        match fault:
            case Release():
                self._mesh.release(fault)
                return []
            case OrderRelease():
                self._mesh.order(fault)
                return []
            case RegionDown(region=region):
                return [self._stop(node, "power-off") for node in self._of(("region:" + region,))]
            case Flap():
                return [self._flap(node, fault) for node in self._of(fault.nodes)]
            case _:
                selection: Sequence[str] = getattr(fault, "nodes", ())
                return [self._to_node(node, fault) for node in self._of(selection)]

    def _to_node(self, node: VirtualNode, fault: Fault) -> Callable[[], None]:
        match fault:
            case Crash(torn=torn):
                return self._stop(node, "crash", torn=torn)
            case PowerOff(torn=torn):
                return self._stop(node, "power-off", torn=torn)
            case Leave():
                return self._stop(node, "leave")
            case Restart(torn=torn):
                self._restart(node, torn=torn)
            case Freeze():
                return self._freeze(node)
            case Thaw():
                self._frozen[node.name] = 0
                self._thaw(node)
            case Sleep():
                return self._sleep(node)
            case _:
                return self._impair(node, fault)
        return _nothing

    def _impair(self, node: VirtualNode, fault: Fault) -> Callable[[], None]:
        """Let something go wrong on a node that goes on running."""
        host = node.host
        match fault:
            case SlowDown(factor=factor):
                node.slow(factor)
                return lambda: node.slow(1 / factor)
            case ClockSkew(rate=rate):
                host.clock.set_rate(host.clock.rate * (1 + rate))
                return lambda: host.clock.set_rate(host.clock.rate / (1 + rate))
            case ClockJump(by_s=by_s):
                host.clock.jump(by_s)
                return lambda: host.clock.jump(-by_s)
            case DiskFull():
                return node.fill_disk()
            case Drain(percent=percent):
                return node.drain(percent)
            case LyingLoad(share=share):
                node.misbehave(load_share=share)
                return lambda: node.misbehave(load_share=1.0)
            case StaleLoad(age_s=age_s):
                node.misbehave(load_age_s=age_s)
                return lambda: node.misbehave(load_age_s=0.0)
            case FailRequests(share=share):
                node.misbehave(fail_share=share)
                return lambda: node.misbehave(fail_share=0.0)
            case _:
                raise UsageError(f"whole daemons cannot be done {fault.verb!r} to")

    # Nodes that do not run.

    def _stop(self, node: VirtualNode, how: str, *, torn: bool = False) -> Callable[[], None]:
        self._down[node.name] += 1
        self._frozen[node.name] = 0
        if how == "power-off":
            node.power_off()
        elif node.host.running:
            self._thaw(node)
            node.crash() if how == "crash" else node.leave()
        if torn:
            node.disk.tear(self._rng)

        def up_again() -> None:
            if self._down[node.name] > 0:
                self._down[node.name] -= 1
                if self._down[node.name] == 0:
                    self._mesh.start_again(node)

        return up_again

    def _restart(self, node: VirtualNode, *, torn: bool) -> None:
        if node.host.running:
            return
        self._down[node.name] = 0
        if torn:
            node.disk.tear(self._rng)
        self._mesh.start_again(node)

    def _flap(self, node: VirtualNode, fault: Flap) -> Callable[[], None]:
        state = {"ended": False, "down": False}

        def down() -> None:
            if not state["ended"]:
                state["down"] = True
                state["up"] = self._stop(node, "crash")  # type: ignore[assignment]
                self._mesh.loop.after(fault.down_s, up)

        def up() -> None:
            if state["down"]:
                state["down"] = False
                state["up"]()  # type: ignore[operator]
                self._mesh.loop.after(fault.up_s, down)

        def end() -> None:
            up()
            state["ended"] = True

        down()
        return end

    # Nodes that stand still.

    def _freeze(self, node: VirtualNode) -> Callable[[], None]:
        if not node.host.running:
            return _nothing
        self._frozen[node.name] += 1
        if not node.host.frozen:
            node.host.freeze()

        def thaw() -> None:
            if self._frozen[node.name] > 0:
                self._frozen[node.name] -= 1
                self._thaw(node)

        return thaw

    def _thaw(self, node: VirtualNode) -> None:
        if self._frozen[node.name] == 0 and node.host.frozen:
            node.host.thaw()

    def _sleep(self, node: VirtualNode) -> Callable[[], None]:
        """Close the lid: the process stands still, and its machine is off the network."""
        network = self._mesh.loop.network
        everybody = [*self._mesh.loop.hosts]
        others = [name for name in everybody if name != node.host.name]
        rule = Rule(Impairment(cut=True), [node.host.name], others)
        network.lay(rule)
        thaw = self._freeze(node)

        def wake() -> None:
            network.mend(rule)
            thaw()

        return wake

    # The network.

    def _lay(self, fault: NetworkFault) -> Callable[[], None]:
        network, machines = self._mesh.loop.network, self._mesh.machines
        nodes, others = sides(fault, machines)
        rule = rule_of(
            fault,
            [each.name for each in nodes],
            [each.name for each in others],
            f"{self._mesh.seed}/{self._done}",
        )
        network.lay(rule)
        return lambda: network.mend(rule)

    def _of(self, selection: Sequence[str]) -> list[VirtualNode]:
        return [self._mesh.nodes[each.name] for each in select(selection, self._mesh.machines)]


def _nothing() -> None:
    """Undo nothing."""
