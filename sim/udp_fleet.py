"""A fleet over real sockets: its datagrams are sealed, sent by UDP on loopback, and opened.

Everything else is as in a fleet in virtual time, so the same cases run on both: cores, links and the
network's cuts and losses. Time is real but faster: with a `speed` of 40 a second of the fleet takes
25 ms, and every node takes it to be a second. All nodes share one process and one event loop.

What this adds to virtual time is what only the world does: datagrams in a kernel's buffers, sockets
that are closed and bound again, no two runs alike, and the seals of `meshnode.trust`, with the boots
that each node has really learnt of each other. What a busy machine adds is taken out again: while it
gives this process no time, the fleet's clock stands still.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from meshnode.events import DatagramReceived, Event, LinkUp
from meshnode.membership import LAN
from meshnode.net.udp import DatagramSocket
from meshnode.sim.core_world import CoreWorld
from meshnode.sim.fleet_process import Places, Process
from meshnode.sim.scheduler import Scheduler
from meshnode.sim.virtual_fleet import LAN_NETWORK, SimFleet
from meshnode.trust.datagrams import DatagramError, DatagramSeal
from meshnode.trust.identity import Identity
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.effects import Effect, Emit, SendDatagram
    from meshnode.membership import Membership, MembershipConfig
    from meshnode.sim.network import NetworkConfig

DEFAULT_SPEED: Final = 40.0
"""Seconds of the fleet in one real second: a probe's timeout of 0.5 s is 12 ms, of which loopback and
the seals take 0.3."""

HICCUP_S: Final = 0.1
"""Fleet's seconds by which a timer may be late before that is taken for the machine's doing: what one
node's turn takes is far less."""

QUIET_S: Final = 3.0
"""Rest of a fleet after it has settled: real time is dear."""

_LOOPBACK: Final = "127.0.0.1"

_FOLLOWED: Final = frozenset(
    {"member.alive", "member.updated", "member.refuted", "member.conflict"}
)
"""Events after which a member's record may name another boot."""


class RealTime(Scheduler):
    """Real seconds, a number of times faster, on an event loop that runs only inside `run_to`."""

    def __init__(self, speed: float) -> None:
        """Begin at second 0.

        Args:
            speed: Seconds of this clock in one real second.
        """
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self._speed = speed
        self._start_s = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._is_running = False
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<RealTime {self._speed:g} times as fast, at {self.now():.3f} s>"

    def now(self) -> float:
        """Return seconds since the world began."""
        return (self.loop.time() - self._start_s) * self._speed

    def wall_s(self) -> float:
        """Return seconds since the Unix epoch, as the world counts them."""
        return self._wall_start_s + self.now()

    def at(self, time_s: float, call: Callable[..., object], *args: Any) -> None:
        """Run `call(*args)` at a time, or as soon as possible after it."""
        self._now = self.now()
        super().at(time_s, call, *args)
        self._arm()

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        """Run `call(*args)` after `delay_s` seconds."""
        self.at(self.now() + delay_s, call, *args)

    def run_to(self, time_s: float) -> None:
        """Let real time pass until this one.

        Raises:
            BaseException: what a call raised.
        """
        self._is_running = True
        self._arm()
        while self.now() < time_s and self._failure is None:
            due_s = self.now() + min(HICCUP_S, time_s - self.now())
            stop = self.loop.call_later((due_s - self.now()) / self._speed, self.loop.stop)
            self.loop.run_forever()
            stop.cancel()
            self._stand_still(self.now() - due_s)
        self._is_running = False
        self._disarm()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def guarded(self, call: Callable[..., object], *args: Any) -> None:
        """Run something now; what it raises ends `run_to`."""
        try:
            call(*args)
        except BaseException as error:  # noqa: BLE001  # it is raised where the test waits
            self._failure = error
            self.loop.stop()

    def close(self) -> None:
        """End the loop."""
        self.loop.close()

    def _arm(self) -> None:
        self._disarm()
        if self._calls and self._is_running:
            delay_s = max(0.0, self._calls[0][0] - self.now()) / self._speed
            self._timer = self.loop.call_later(delay_s, self._run_due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stand_still(self, late_s: float) -> None:
        """Take back the time that this process was not given."""
        if late_s > HICCUP_S:
            self._start_s += late_s / self._speed

    def _run_due(self) -> None:
        self._timer = None
        if self._calls:
            self._stand_still(self.now() - self._calls[0][0])
        self.guarded(super().run_to, self.now())
        self._arm()


class SealedProcess(Process):
    """A process whose datagrams are really sealed for those boots that it has learnt of."""

    __slots__ = ("seal",)

    def __init__(
        self, places: Places, place: NodeId, name: str, membership: Membership, boot: int
    ) -> None:
        """Drive a core that has not started."""
        super().__init__(places, place, name, membership, boot)
        self.seal = DatagramSeal(seal_identity(membership.node_id), boot)

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Take an event of the world; a link tells with which boot its peer runs."""
        if isinstance(event, LinkUp):
            self.seal.set_peer_boot(event.peer, self.places.boot_at(event.peer))
        return super().handle(event, now, wall_s)

    def _has_boot(self, peer: NodeId, boot: int) -> bool:
        """Leave it to the seals."""
        del peer, boot
        return True

    def _told(self, emit: Emit, now: float) -> None:
        super()._told(emit, now)
        member = self.membership.members.get(NodeId(emit.subject))
        if emit.kind in _FOLLOWED and member is not None and member.node_id != self.node_id:
            self.seal.follow_record(member.node_id, member.record.boot)


class SocketWorld(CoreWorld):
    """A world in real time, whose datagrams go through UDP sockets on loopback."""

    def __init__(self, seed: int, network: NetworkConfig, time: RealTime) -> None:
        """Make an empty world; `close` ends it."""
        super().__init__(seed, network, scheduler=time)
        self._time = time
        self._sockets: dict[NodeId, DatagramSocket] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def power_off(self, name: str) -> None:
        """Cut a node's power."""
        super().power_off(name)
        self._unbind(self.id_of(name))

    def close(self) -> None:
        """End all nodes and the loop."""
        for node in [*self._sockets]:
            self._unbind(node)
        self._time.loop.run_until_complete(self._closed())
        self._time.close()

    def _place(self, number: int) -> Address:
        del number
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((_LOOPBACK, 0))
            return Address(_LOOPBACK, free.getsockname()[1])

    def _boot(self, node: Any) -> None:
        self._sockets[node.host.node] = self._time.loop.run_until_complete(self._bind(node))
        super()._boot(node)

    def _stop(self, node: Any, reason: str) -> None:
        super()._stop(node, reason)
        self._unbind(node.host.node)

    async def _bind(self, node: Any) -> DatagramSocket:
        await self._closed()

        def receive(data: bytes, source: Address) -> None:
            del source  # loopback has no routers that would change it
            self._time.guarded(self._received, node, data)

        return await DatagramSocket.open(node.host.address, receive)

    def _unbind(self, node: NodeId) -> None:
        """Close a node's socket; it may be called while the loop runs, so it does not wait."""
        bound = self._sockets.pop(node, None)
        if bound is not None:
            self._closing.add(self._time.loop.create_task(bound.close()))

    async def _closed(self) -> None:
        closing, self._closing = self._closing, set()
        await asyncio.gather(*closing)

    def _send_datagram(self, node: Any, effect: SendDatagram) -> None:
        source, network = node.host.node, self.network
        if not network.arrivals(source, effect.to, len(effect.payload), self.now()):
            return
        process: SealedProcess = node.core
        member = process.membership.members.get(effect.to)
        bound = self._sockets.get(source)
        if member is None or bound is None:
            return
        key = seal_identity(effect.to).public_key
        try:
            sealed = process.seal.seal(effect.to, key, effect.payload)
        except DatagramError:
            return  # it has yet to learn with which boot the receiver runs
        bound.send(sealed, Address(*member.record.addresses[0]))

    def _received(self, node: Any, data: bytes) -> None:
        if node.core is None:
            return
        try:
            sender, payload = node.core.seal.open(data, _public_key)
        except DatagramError:
            return
        self._datagram_arrives(node, DatagramReceived(sender, payload))


class UdpFleet(SimFleet):
    """A `Fleet` in real time over real sockets."""

    _process_type = SealedProcess

    def __init__(
        self,
        seed: int = 1,
        config: MembershipConfig = LAN,
        *,
        speed: float = DEFAULT_SPEED,
        **record: Any,
    ) -> None:
        """Begin without nodes.

        Args:
            seed: Decides what chance the nodes and the losses draw; the order of events stays real.
            config: Of all nodes.
            speed: Seconds of the fleet in one real second.
            record: Fields of all nodes' records.
        """
        super().__init__(seed, config, LAN_NETWORK, **record)
        self._sockets = SocketWorld(seed, LAN_NETWORK, RealTime(speed))
        self.world = self._sockets

    def settled(self, count: int, *, limit_s: float = 60.0, quiet_s: float = QUIET_S) -> list[str]:
        """Start nodes that join through the first one; wait until all know all, and rest a little."""
        return super().settled(count, limit_s=limit_s, quiet_s=min(quiet_s, QUIET_S))

    def close(self) -> None:
        """End all nodes and free their ports."""
        self._sockets.close()


@cache
def seal_identity(node: NodeId) -> Identity:
    """Return the key that a node of a fleet seals with, under the NodeId that it has there."""
    identity = Identity(hashlib.sha256(b"seal of " + node.encode()).digest())
    identity.node_id = node
    return identity


def _public_key(node: NodeId) -> bytes:
    return seal_identity(node).public_key
