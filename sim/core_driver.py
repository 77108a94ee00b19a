"""Drives virtual nodes: boots their cores, tells them what happens, and carries out what they want.

`CoreWorld` (`core_world.py`) adds what can happen to nodes and between them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
)
from meshnode.errors import UsageError
from meshnode.events import DatagramReceived, Event, NoteReceived, Start, TimerFired
from meshnode.options import DEFAULT_MESH_PORT
from meshnode.sim.core_node import Boot, CoreNode, Factory
from meshnode.sim.links import LinkHost, Links
from meshnode.sim.network import Network, NetworkConfig
from meshnode.sim.node_clock import NodeClock
from meshnode.sim.scheduler import Scheduler
from meshnode.sim.trace import Trace
from meshnode.state.desired import PERSIST_KEY as DESIRED_KEY
from meshnode.state.desired_messages import DESIRED, DesiredEntries
from meshnode.trust.datagrams import OVERHEAD_BYTES
from meshnode.types import Address, NodeId, node_id_of
from meshnode.wire.codec import message_type

MAX_FROZEN_DATAGRAMS: Final = 256
"""Datagrams that wait for a frozen node: Linux' default socket buffer (208 KiB) of small ones."""

MAX_HELD_DATAGRAMS: Final = 65_536
"""Datagrams that a hold keeps back in the whole world; the oldest are lost first."""

PERSIST_RETRY_S: Final = 5.0
"""How often something is tried to be written that could not be, as in the real driver."""

DATAGRAM_OVERHEAD_BYTES: Final = OVERHEAD_BYTES + 28
"""What the seal, UDP and IPv4 add to a datagram."""

SAME_TIME_S: Final = 1e-6
"""A clock's rounding: a timer this early is on time."""


Driver = Callable[[Any, str, Any], None]
"""Carries out an effect that worlds do not know: gets the world, the node's name and the effect."""


class NotReachedError(AssertionError):
    """A predicate did not come true in time; the message has the seed that replays the run."""


class CoreDriver:
    """Nodes, a network between them, and time."""

    def __init__(
        self,
        seed: int,
        network: NetworkConfig | None = None,
        on_effect: Mapping[type[Effect], Driver] | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        """Make an empty world.

        Args:
            seed: Decides every random draw.
            network: How the network behaves; the default has no loss.
            on_effect: Who carries out other effects, such as `LoadModel`.
            scheduler: Time; virtual by default.
        """
        self.seed = seed
        self.trace = Trace()
        self.scheduler = scheduler or Scheduler()
        self.network = Network(network or NetworkConfig(), random.Random(f"{seed}/network"))
        self.network.on_change(self._paths_changed)
        self.links = Links(self.scheduler, self.network)
        self._nodes: dict[str, CoreNode] = {}
        self._by_id: dict[NodeId, CoreNode] = {}
        self._held: deque[tuple[CoreNode, SendDatagram]] = deque(maxlen=MAX_HELD_DATAGRAMS)
        self._drivers = dict(on_effect or {})
        self._carry: dict[type[Effect], Callable[[CoreNode, Any], None]] = {
            SendDatagram: self._send_datagram,
            SendNote: self._send_note,
            Dial: self._dial,
            CloseLink: self._close_link,
            StartTimer: self._start_timer,
            Persist: self._persist,
            Emit: self._emit,
        }

    def __repr__(self) -> str:
        up = sum(node.host.running for node in self._nodes.values())
        return f"<CoreWorld seed {self.seed} at {self.now():.3f} s: {up} of {len(self._nodes)} nodes run>"

    def now(self) -> float:
        """Return virtual seconds since the world began."""
        return self.scheduler.now()

    def wall_s(self) -> float:
        """Return virtual seconds since the Unix epoch."""
        return self.scheduler.wall_s()

    # Nodes.

    def add_node(
        self, name: str, region: str, factory: Factory, node_id: NodeId | None = None
    ) -> NodeId:
        """Add a node and boot it; return its id, made from its name if none is given."""
        if name in self._nodes:
            raise UsageError(f"there is a node {name!r} already")
        number = len(self._nodes)
        node_id = node_id or node_id_of(hashlib.sha256(name.encode()).digest())
        address = self._place(number)

        def tell(boot: int, event: Event) -> None:
            self._tell(node, boot, event)

        host = LinkHost(node_id, address, region, tell)
        node = CoreNode(name, number, host, factory, NodeClock(self.scheduler))
        self._nodes[name] = self._by_id[node_id] = node
        self.network.place(node_id, region)
        self.links.add(node.host)
        self._boot(node)
        return node_id

    def names(self) -> list[str]:
        """Return all nodes' names in the order they were added."""
        return [*self._nodes]

    def is_running(self, name: str) -> bool:
        """Whether a node's process runs, frozen or not."""
        return self._node(name).host.running

    def running(self) -> list[str]:
        """Return the names of the nodes whose process runs, frozen ones included."""
        return [name for name, node in self._nodes.items() if node.host.running]

    def id_of(self, name: str) -> NodeId:
        """Return a node's id."""
        return self._node(name).host.node

    def boot_of(self, name: str) -> int:
        """Return how often a node has booted."""
        return self._node(name).host.boot

    def address_of(self, name: str) -> Address:
        """Return where a node listens."""
        return self._node(name).host.address

    def disk_of(self, name: str) -> dict[str, bytes]:
        """Return what a node has persisted; tests may tamper with it."""
        return self._node(name).disk.stored

    def clock_of(self, name: str) -> NodeClock:
        """Return a node's clocks, to be set or made fast."""
        return self._node(name).clock

    def is_reachable(self, name: str) -> bool:
        """Whether a node's machine is on and awake, whatever its process does."""
        node = self._node(name)
        return node.is_on_network and (node.host.running or not node.host.frozen)

    def is_frozen(self, name: str) -> bool:
        """Whether a node's process stands still, or its machine is off."""
        return self._node(name).host.frozen

    def core(self, name: str) -> Any:
        """Return a node's present core, as its factory made it.

        Raises:
            UsageError: if the node does not run.
        """
        return self._running(name).core

    def act(self, name: str, action: Callable[[float, float], list[Effect]]) -> None:
        """Call a core's method from outside and carry out what it returns.

        Args:
            name: The node.
            action: Gets `now` and `wall_s`, returns the core's effects.
        """
        node = self._running(name)
        self._perform(node, action(node.clock.now(), node.clock.wall_s()))

    def tell(self, name: str, event: Event) -> None:
        """Tell a node of something from outside, now; a frozen one hears it when it runs on."""
        node = self._running(name)
        self._tell(node, node.host.boot, event)

    # Time.

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.scheduler.run_to(self.now() + seconds)

    def run_until(
        self, predicate: Callable[[], bool], limit_s: float, step_s: float = 0.05
    ) -> float:
        """Let time pass until the predicate is true, looked at every `step_s`.

        Returns:
            The virtual seconds that it took.

        Raises:
            NotReachedError: if it is not true after `limit_s`.
        """
        start_s = self.now()
        while not predicate():
            if self.now() - start_s >= limit_s:
                raise NotReachedError(
                    f"not true within {limit_s} s, at {self.now():.3f} s of CoreWorld(seed={self.seed})"
                )
            self.run_for(step_s)
        return self.now() - start_s

    def _paths_changed(self) -> None:
        self.links.recheck()
        held, self._held = self._held, deque(maxlen=MAX_HELD_DATAGRAMS)
        for node, effect in held:
            self._send_datagram(node, effect)  # what is held still is kept back again

    # Carrying out effects.

    def _perform(self, node: CoreNode, effects: list[Effect]) -> None:
        for effect in effects:
            carry = self._carry.get(type(effect))
            if carry is not None:
                carry(node, effect)
            elif type(effect) in self._drivers:
                self._drivers[type(effect)](self, node.name, effect)
            else:
                raise UsageError(
                    f"no driver carries out {type(effect).__name__}: give on_effect one"
                )

    def _send_datagram(self, node: CoreNode, effect: SendDatagram) -> None:
        source, network = node.host.node, self.network
        target = self._by_id.get(effect.to)
        if target is None or not node.is_on_network:
            return
        if network.is_held(source, effect.to):
            self._held.append((node, effect))
            return
        scheduler = self.scheduler
        size_bytes = len(effect.payload) + DATAGRAM_OVERHEAD_BYTES
        for delay_s in network.arrivals(source, effect.to, size_bytes, scheduler.now()):
            event = DatagramReceived(source, effect.payload)
            scheduler.after(delay_s, self._datagram_arrives, target, event)

    def _datagram_arrives(self, target: CoreNode, event: DatagramReceived) -> None:
        if target.host.frozen:
            target.frozen_datagrams += 1
            if target.frozen_datagrams > MAX_FROZEN_DATAGRAMS or not target.is_on_network:
                return
        elif target.queued > MAX_FROZEN_DATAGRAMS:
            return
        self._tell(target, target.host.boot, event)

    def _send_note(self, node: CoreNode, effect: SendNote) -> None:
        if node.disk.unsaved and _is_withheld(effect.payload, node.disk.unsaved):
            return
        self.links.send_note(node.host.node, effect.to, effect.payload)

    def _dial(self, node: CoreNode, effect: Dial) -> None:
        self.links.dial(node.host.node, effect)

    def _close_link(self, node: CoreNode, effect: CloseLink) -> None:
        self.links.close(node.host.node, effect.to, effect.reason)

    def _start_timer(self, node: CoreNode, effect: StartTimer) -> None:
        event, boot, clock = TimerFired(effect.timer), node.host.boot, node.clock
        delay_s = effect.delay_s
        due_s = node.timer_s + delay_s
        if not clock.is_true:
            delay_s /= clock.rate
        self.scheduler.after(delay_s, self._timer_due, node, boot, event, due_s)

    def _timer_due(self, node: CoreNode, boot: int, event: TimerFired, due_s: float) -> None:
        """Tell a node of a timer, once it is that late by its own clock."""
        clock = node.clock
        if not clock.is_true or node.slept_s or not node.is_on_network:
            if not node.is_on_network:  # it sleeps: the rest of the wait is to come
                node.sleeping_timers.append((boot, event, due_s))
                return
            wait_s = due_s - node.timer_s
            if wait_s > SAME_TIME_S:
                self.scheduler.after(wait_s / clock.rate, self._timer_due, node, boot, event, due_s)
                return
        self._tell(node, boot, event)

    def _persist(self, node: CoreNode, effect: Persist) -> None:
        if not node.disk.write(effect.key, effect.value):
            self._write_later(node)

    def _write_later(self, node: CoreNode) -> None:
        if not node.tries_to_write:
            node.tries_to_write = True
            self.scheduler.after(PERSIST_RETRY_S, self._write_again, node)

    def _write_again(self, node: CoreNode) -> None:
        node.tries_to_write = False
        if not node.disk.write_unsaved():
            self._write_later(node)

    def _emit(self, node: CoreNode, effect: Emit) -> None:
        subject, detail = (
            _NODE_ID.sub(self._name_in, text) for text in (effect.subject, effect.detail)
        )
        self.trace.record(self.now(), node.name, effect.kind, subject, detail)

    def _name_in(self, found: re.Match[str]) -> str:
        """Return the name of a node whose id stands in a text."""
        node = self._by_id.get(NodeId(found[0]))
        return found[0] if node is None else node.name

    def _place(self, number: int) -> Address:
        """Return where the node with this number listens."""
        return Address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", DEFAULT_MESH_PORT)

    # Telling cores.

    def _tell(self, node: CoreNode, boot: int, event: Event) -> None:
        host = node.host
        if host.boot != boot or not host.running:
            return
        if host.frozen:
            node.inbox.append(event)
            return
        if node.handling_s:
            self._queue(node, boot, event)
        else:
            self._hand(node, event)

    def _queue(self, node: CoreNode, boot: int, event: Event) -> None:
        """A slow node takes up one event after the other, and acts on it when it has thought."""
        now = self.scheduler.now()
        node.busy_until = max(node.busy_until, now) + node.handling_s
        node.queued += 1
        self.scheduler.at(node.busy_until, self._next_in_queue, node, boot, event)

    def _next_in_queue(self, node: CoreNode, boot: int, event: Event) -> None:
        node.queued -= 1
        host = node.host
        if host.boot != boot or not host.running:
            return
        if host.frozen:
            node.inbox.append(event)
        else:
            self._hand(node, event)

    def _hand(self, node: CoreNode, event: Event) -> None:
        """Let a core react to an event, now."""
        world_now = self.scheduler.now()
        self.trace.step(world_now, node.number, _fingerprint(event))
        clock = node.clock
        assert node.core is not None
        try:
            effects = node.core.handle(event, clock.now(), clock.wall_s())
        except Exception as error:
            error.add_note(
                f"at {world_now:.6f} s of CoreWorld(seed={self.seed}), {node.name} handling {event}"
            )
            raise
        self._perform(node, effects)

    def _boot(self, node: CoreNode) -> None:
        host, disk = node.host, node.disk
        host.boot += 1
        host.running = True
        rng = random.Random(f"{self.seed}/node/{node.name}/{host.boot}")
        node.core = node.factory(
            Boot(host.node, node.name, host.region, host.address, host.boot, dict(disk.stored), rng)
        )
        self.scheduler.after(0, self._tell, node, host.boot, Start())

    def _stop_boot(self, node: CoreNode, boot: int) -> None:
        if node.host.boot == boot and node.host.running:
            node.disk.write_unsaved()  # once more at the end, as the real driver does
            self._stop(node, "the node left")

    def _stop(self, node: CoreNode, reason: str) -> None:
        node.host.running = False
        node.core = None
        node.disk.lose_memory()
        self.links.drop_all(node.host.node, reason)

    # Looking nodes up.

    def _node(self, name: str) -> CoreNode:
        node = self._nodes.get(name)
        if node is None:
            raise UsageError(f"there is no node {name!r}")
        return node

    def _running(self, name: str) -> CoreNode:
        node = self._node(name)
        if not node.host.running:
            raise UsageError(f"{name!r} does not run")
        return node

    def _ids(self, names: Iterable[str]) -> list[NodeId]:
        return [self._node(name).host.node for name in names]


def _is_withheld(payload: bytes, unsaved: Mapping[str, bytes]) -> bool:
    """Whether a note must not be sent yet: entries of the desired state that are not on disk."""
    return DESIRED_KEY in unsaved and message_type(payload) == _ENTRIES


_NODE_ID: Final = re.compile(r"\b[a-z2-7]{32}\b")

_ENTRIES: Final = message_type(DESIRED.encode(DesiredEntries(())))

_NAMES: dict[type, bytes] = {}  # one entry per class of event or timer


def _fingerprint(event: Event) -> bytes:
    """Return what the trace's hash covers of an event."""
    if isinstance(event, NoteReceived | DatagramReceived):
        return event.sender.encode() + event.payload
    what = type(event.timer) if isinstance(event, TimerFired) else type(event)
    name = _NAMES.get(what)
    if name is None:
        name = _NAMES[what] = what.__name__.encode()
    return name
