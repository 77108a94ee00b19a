"""A virtual node as its world keeps it, and what a core learns when it boots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshnode.sim.disk import Disk

if TYPE_CHECKING:
    import random

    from meshnode.effects import Effect
    from meshnode.events import Event, TimerFired
    from meshnode.sim.links import LinkHost
    from meshnode.sim.node_clock import NodeClock
    from meshnode.types import Address, NodeId


class Core(Protocol):
    """What a world drives."""

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """React to an event at monotonic second `now` and Unix time `wall_s`."""
        ...


@dataclass(frozen=True, slots=True)
class Boot:
    """What a core learns when it is made.

    Attributes:
        node: The node's id.
        name: Its name in the world.
        region: Where it is.
        address: Where it listens.
        epoch: 1 at the first boot, one more at each later one.
        disk: What earlier boots persisted.
        rng: This boot's own stream of random numbers.
    """

    node: NodeId
    name: str
    region: str
    address: Address
    epoch: int
    disk: Mapping[str, bytes]
    rng: random.Random


Factory = Callable[[Boot], Core]
"""Makes a node's core at each of its boots."""


class CoreNode:
    """One node: what lasts through its boots, and its present core.

    Attributes:
        name: Its name.
        number: Counts the nodes of a world.
        host: How links see it.
        factory: Makes its core at each boot.
        clock: Its clocks.
        disk: Its disk.
        tries_to_write: Whether what a full disk kept out will be tried again.
        inbox: What waits for a frozen process; timers and links bound it.
        frozen_datagrams: How many datagrams came while it was frozen.
        is_on_network: Whether its machine is awake.
        sleeping_timers: Timers that were due while its machine slept: boot, event, and when by `timer_s`.
        still_since: The second of its clock in which its process last began to stand still.
        asleep_since: Likewise its machine.
        slept_s: For how long its machine has slept, by its clock.
        hindered_at: When it last ran on after standing still, or its speed changed.
        handling_s: What each event costs it; 0 unless it is slow.
        busy_until: When it has handled all that is queued (seconds of the world).
        queued: Events that a slow node has yet to handle.
        core: The present boot's core; None while it does not run.
    """

    __slots__ = (
        "asleep_since", "busy_until", "clock", "core", "disk", "factory", "frozen_datagrams", "handling_s", "hindered_at", "host",
        "inbox", "is_on_network", "name", "number", "queued", "sleeping_timers", "slept_s",
        "still_since", "tries_to_write",
    )  # fmt: skip

    def __init__(
        self, name: str, number: int, host: LinkHost, factory: Factory, clock: NodeClock
    ) -> None:
        """Describe a node that has not booted."""
        self.name = name
        self.number = number
        self.host = host
        self.factory = factory
        self.clock = clock
        self.disk = Disk()
        self.tries_to_write = False
        self.inbox: deque[Event] = deque()
        self.frozen_datagrams = 0
        self.is_on_network = True
        self.sleeping_timers: list[tuple[int, TimerFired, float]] = []
        self.still_since = 0.0
        self.asleep_since = 0.0
        self.slept_s = 0.0
        self.hindered_at = float("-inf")
        self.handling_s = 0.0
        self.busy_until = 0.0
        self.queued = 0
        self.core: Core | None = None

    def __repr__(self) -> str:
        return f"<CoreNode {self.name}: {self.host!r}>"

    @property
    def timer_s(self) -> float:
        """The seconds by which its timers run: those of its clock without those in which its machine slept."""
        return self.clock.now() - self.slept_s
