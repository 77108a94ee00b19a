"""A world of virtual nodes: the simulator's driver for any core, at depth A.

Each node runs one core in virtual time, and the world carries out the core's effects as the daemon
would: datagrams and links over a modelled network, timers, a disk that survives a crash. One seed
decides everything: same seed, same world, same `trace.digest()`. The network and each boot of each
node draw from streams of their own, so that one more draw here does not change what happens there.

    world = CoreWorld(seed=7, network=NetworkConfig(loss=0.1))
    for name in ("a", "b", "c"):
        world.add_node(name, "eu", make_core)
    world.run_for(5.0)
    world.partition(["a"], ["b", "c"])
    world.run_until(lambda: world.core("a").alone, limit_s=30.0)

What can happen to a node:

| verb | its process | its disk | its links |
|---|---|---|---|
| `crash` | gone at once, timers too | stays | peers hear of it one latency later |
| `power_off` | gone at once, timers too | stays | stall; peers give them up in time |
| `restart` | a new boot, with a new core | is given to the core | none |
| `freeze` | stands still; timers and notes queue up, datagrams beyond a socket's buffer are lost | stays | stall; peers give them up in time |
| `thaw` | runs on, everything queued first | stays | those not given up flow again |
| `sleep` | stands still; its clocks count on; the machine is off the network | stays | as if frozen |
| `wake` | runs on: timers have as long to go as when it fell asleep; told that it slept | stays | as after a thaw |
| `slow_down` | takes up one event after another, each a while later | stays | stay |
| `leave` | is told, and stops after a grace | stays | closed at the end |

What can happen to its clocks is in `node_clock`, to its disk in `disk`, on the paths in `network`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import UsageError
from meshnode.events import Leave, Woke
from meshnode.limits import SLEPT_S, WAKE_LOOK_S
from meshnode.sim.core_driver import MAX_FROZEN_DATAGRAMS, CoreDriver, NotReachedError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

__all__ = ["MAX_FROZEN_DATAGRAMS", "CoreWorld", "NotReachedError"]

HANDLING_S: Final = 0.0001
"""What an event costs a daemon's loop, about; it counts only where a node is slowed down."""


class CoreWorld(CoreDriver):
    """Nodes, a network between them, time, and what can happen; see the module's docstring."""

    # What happens to nodes.

    def crash(self, name: str) -> None:
        """Kill a node's process; what it persisted stays."""
        self.wake(name, run_on=False)
        self._stop(self._running(name), "connection reset")

    def tear_disk(self, name: str, rng: random.Random) -> str:
        """Damage what a node wrote last, as a loss of power does; return what was done, in words."""
        return self._node(name).disk.tear(rng)

    def damaged(self, name: str, key: str, why: str) -> None:
        """A node found a file damaged as it booted, and goes on without it."""
        self.trace.record(self.now(), name, "disk.damaged", key, why)

    def fill_disk(self, name: str) -> None:
        """Let nothing more be written to a node's disk."""
        self._node(name).disk.is_full = True

    def empty_disk(self, name: str) -> None:
        """Let a node's disk have room again."""
        self._node(name).disk.is_full = False

    def has_room(self, name: str) -> bool:
        """Whether a node can write to its disk."""
        return not self._node(name).disk.is_full

    def power_off(self, name: str) -> None:
        """Cut a node's power: its machine says nothing more, not even that connections are closed."""
        node = self._node(name)
        if not node.is_on_network:
            node.is_on_network = True
            node.sleeping_timers.clear()
        node.host.running = False
        node.host.frozen = True
        node.core = None
        node.inbox.clear()
        node.disk.lose_memory()
        self.links.recheck()

    def power_on(self, name: str) -> None:
        """Give a machine its power back; it knows none of its former connections, and runs no node yet."""
        node = self._node(name)
        if node.host.frozen and not node.host.running:
            node.host.frozen = False
            node.frozen_datagrams = 0
            self.links.recheck()
            self.links.drop_all(node.host.node, "connection reset")

    def restart(self, name: str) -> None:
        """Boot a node again after a crash, a power cut or a leave."""
        node = self._node(name)
        if node.host.running:
            raise UsageError(f"{name!r} runs already")
        self.power_on(name)
        self._boot(node)

    def freeze(self, name: str) -> None:
        """Stop a node's process as SIGSTOP does."""
        node = self._running(name)
        if not node.host.frozen:
            node.still_since = node.clock.now()
        node.host.frozen = True
        self.links.recheck()

    def thaw(self, name: str, *, run_on: bool = True) -> None:
        """Let a frozen node run on; without `run_on` what it missed is lost."""
        node = self._running(name)
        if not node.host.frozen:
            return
        node.host.frozen = False
        node.hindered_at = self.now()
        node.frozen_datagrams = 0
        missed = [*node.inbox] if run_on else []
        node.inbox.clear()
        for event in missed:
            self.scheduler.after(0, self._tell, node, node.host.boot, event)
        still_s = node.clock.now() - node.still_since
        if run_on and still_s >= SLEPT_S:
            # The daemon looks once a second; a sleeping machine's timers stood still meanwhile.
            self.scheduler.after(WAKE_LOOK_S, self._tell, node, node.host.boot, Woke(still_s))
        self.links.recheck()

    def sleep(self, name: str) -> None:
        """Send a node's machine to sleep, as closing a laptop's lid does."""
        node = self._running(name)
        if node.is_on_network:
            node.is_on_network = False
            node.asleep_since = node.clock.now()
        self.freeze(name)

    def wake(self, name: str, *, run_on: bool = True) -> None:
        """Wake a node's machine up, or thaw it; without `run_on` what it missed is lost."""
        node = self._running(name)
        if not node.is_on_network:
            node.is_on_network = True
            node.slept_s += node.clock.now() - node.asleep_since
            timers, node.sleeping_timers = node.sleeping_timers, []
            for boot, event, due_s in timers:
                self._timer_due(node, boot, event, due_s)
        self.thaw(name, run_on=run_on)

    def slow_down(self, name: str, factor: float) -> None:
        """Let a node take `factor` times as long for each event as usual; 1 for no time at all."""
        node = self._node(name)
        node.handling_s = HANDLING_S * factor if factor > 1 else 0.0
        node.hindered_at = self.now()

    def ran_freely(self, name: str, since_s: float) -> bool:
        """Whether a node has run all the time since then, as fast as ever and with clocks of one rate."""
        node = self._node(name)
        if not node.host.running or node.host.frozen or not node.is_on_network or node.handling_s:
            return False
        return node.hindered_at < since_s and node.clock.since_s <= since_s

    def leave(self, name: str) -> None:
        """Ask a node to leave, and stop it after the network's `leave_grace_s`."""
        node = self._running(name)
        boot = node.host.boot
        self._tell(node, boot, Leave())
        self.scheduler.after(self.network.config.leave_grace_s, self._stop_boot, node, boot)

    # What happens between nodes.

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut all paths between nodes of different groups, both ways."""
        sides = [self._ids(group) for group in groups]
        for side in sides:
            for other in sides:
                if side is not other:
                    self.network.cut(side, other)

    def partition_one_way(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose what the sources send to the targets; the other way stays open."""
        self.network.cut(self._ids(sources), self._ids(targets))

    def block_datagrams(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose the datagrams that the sources send to the targets, as a firewall does."""
        self.network.block(self._ids(sources), self._ids(targets))

    def heal(self) -> None:
        """Undo all partitions and blocks."""
        self.network.mend_all(lambda laid: laid.cut or laid.blocked)

    def hold(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Keep back what the sources send to the targets."""
        self.network.hold(self._ids(sources), self._ids(targets))

    def release(self) -> None:
        """Undo all holds; what was kept back is on its way now."""
        self.network.mend_all(lambda laid: laid.held)
