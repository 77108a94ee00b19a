"""The wire between two nodes of one machine: what arrives from a peer is handed on when it would have.

A wire stands between the socket and whoever reads it, in the process that receives. So what a peer had
sent before it was killed still arrives, the end of its connection arrives after that, and a cut hides
both. What lies on the wire is bounded as by a TCP window: beyond that nothing more is read, and the
sender's socket fills up.

The wires of one process share a `Network`, as at depths A and B: it says how late something comes and
whether it comes at all. Each process draws for what it receives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from asyncio.sslproto import SSLProtocol
    from collections.abc import Callable, Iterable

    from meshnode.sim.network import Network
    from meshnode.sim.processes.whereabouts import Whereabouts

WINDOW_BYTES: Final = 4 * 2**20
"""What lies on one stream's wire at most: about what Linux lets a TCP window grow to."""

MAX_HELD_DATAGRAMS: Final = 10_000
"""Datagrams that wait for the release of a hold; more are lost, as in a router's memory."""

TIMER_LATENESS_S: Final = 0.0005
"""By how much a loop's timer is late on average, since it waits in whole milliseconds. It is taken off
every delay."""

_HASTE_S: Final = 0.0003
"""Delays below this are none: loopback and the loop's own turn take as much."""


class Wires:
    """All wires that end in one process.

    Attributes:
        me: The node that runs here.
        whereabouts: Who speaks from which address.
        network: What the wires do.
    """

    def __init__(
        self, me: str, network: Network, whereabouts: Whereabouts, rate: Callable[[], float]
    ) -> None:
        """Begin without wires.

        Args:
            me: The node that runs here.
            network: Has all nodes in their places, this one too.
            whereabouts: Who speaks from which address.
            rate: Seconds of this node's clock in one real second: wires keep real time.
        """
        self.me = me
        self.network = network
        self.whereabouts = whereabouts
        self._rate = rate
        self._streams: dict[StreamWire, None] = {}
        self._held: deque[tuple[str, bytes, Any, DatagramWire]] = deque()
        self._dials: set[asyncio.Event] = set()
        network.on_change(self._changed)

    def __repr__(self) -> str:
        return f"<Wires of {self.me}: {len(self._streams)} streams>"

    def timer_s(self, delay_s: float) -> float:
        """Return what to give a timer for a delay on the wire; 0 where none is worth it."""
        return 0.0 if delay_s < _HASTE_S else max(0.0, delay_s - TIMER_LATENESS_S) * self._rate()

    # Dials.

    async def reach(self, peer: str) -> None:
        """Wait as a dial's first packet does until it has come to a peer, perhaps for ever."""
        network = self.network
        changed = asyncio.Event()
        self._dials.add(changed)
        try:
            while not (
                network.may_dial(self.me, peer)
                and network.passes(self.me, peer)
                and network.passes(peer, self.me)
            ):
                changed.clear()
                await changed.wait()
        finally:
            self._dials.discard(changed)
        await self.travel(self.me, peer)

    async def travel(self, source: str, target: str) -> None:
        """Wait for as long as a packet of a stream takes."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(self.timer_s(self.network.stream_delay_s(source, target, 0, now)))

    # What wires tell.

    def began(self, wire: StreamWire) -> None:
        """Note a wire; it is told of changes from now on."""
        self._streams[wire] = None

    def ended(self, wire: StreamWire) -> None:
        """Forget a wire."""
        self._streams.pop(wire, None)

    def hold(self, peer: str, data: bytes, address: Any, wire: DatagramWire) -> None:
        """Keep a datagram until the hold is released."""
        if len(self._held) < MAX_HELD_DATAGRAMS:
            self._held.append((peer, data, address, wire))

    def _changed(self) -> None:
        for wire in tuple(self._streams):
            wire.changed()
        for dial in tuple(self._dials):
            dial.set()
        held, self._held = self._held, deque()
        for peer, data, address, socket_wire in held:
            socket_wire.arrived(peer, data, address)


class _End:
    """The end of what a peer sends."""


_EOF: Final = _End()


class StreamWire(asyncio.Protocol):
    """The wire of one stream; the loop's own transport feeds it, and it feeds its reader.

    Attributes:
        transport: What the reader has for one; set when the connection is made.
    """

    transport: WireTransport

    def __init__(self, wires: Wires, peer: str, reader: asyncio.Protocol | SSLProtocol) -> None:
        """Wait for the transport.

        Args:
            wires: Of this process.
            peer: The node at the other end.
            reader: Whom it feeds: a protocol, or the TLS in front of one.
        """
        self._wires = wires
        self._peer = peer
        self._reader: Any = reader
        self._is_buffered = isinstance(reader, asyncio.BufferedProtocol)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._line: deque[tuple[float, bytes | _End | Exception]] = deque()
        self._line_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._condition = wires.network.condition(peer, wires.me)
        self._is_full = False
        self._is_paused = False
        self._is_over = False

    def __repr__(self) -> str:
        return f"<StreamWire from {self._peer}: {self._line_bytes} bytes under way>"

    # What the loop's transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the reader write to the transport; what it reads goes through here."""
        self._transport = cast("asyncio.Transport", transport)
        self._wires.began(self)
        self.transport = WireTransport(self, self._transport)
        self._reader.connection_made(self.transport)

    def data_received(self, data: bytes) -> None:
        """Put bytes on the wire."""
        self._put(data, len(data))

    def eof_received(self) -> bool:
        """Put the end on the wire; the connection stays until the reader has heard of it."""
        self._put(_EOF, 0)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Put the loss on the wire, unless this side closed."""
        if exc is None:
            self._lost(None)
        else:
            self._put(exc, 0)

    def pause_writing(self) -> None:
        """Tell the reader, which writes too."""
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        """Tell the reader, which writes too."""
        self._reader.resume_writing()

    # What the reader wants, by its transport.

    def pause(self) -> None:
        """Hand nothing on for now."""
        self._is_paused = True

    def resume(self) -> None:
        """Hand on again."""
        self._is_paused = False
        self._loop.call_soon(self._deliver)

    def closed_here(self) -> None:
        """Forget what is under way: the reader has closed, so nothing is fed to it any more."""
        loss = next((each for _, each in self._line if isinstance(each, Exception)), None)
        self._line.clear()
        self._line_bytes = 0
        if loss is not None:  # the transport is gone already and says it only once
            self._loop.call_soon(self._lost, loss)

    # The wire.

    def changed(self) -> None:
        """Look again: rules have changed, and what is stuck or waits for long may be on its way."""
        condition = self._wires.network.condition(self._peer, self._wires.me)
        now = self._loop.time()
        if self._line and self._line[0][0] <= now:
            # It is stuck, and is sent again as soon as that is of use.
            if not self._passes():
                return
            soonest = now + self._delay_s(0)
            self._line = deque((max(due, soonest), item) for due, item in self._line)
        before, self._condition = self._condition, condition
        if condition.eases(before):
            self._plan_anew(now)
        self._rearm()

    def _plan_anew(self, now: float) -> None:
        """The path has become easier: nothing waits for longer than if it were sent now."""
        planned: deque[tuple[float, bytes | _End | Exception]] = deque()
        earliest = now
        for due, item in self._line:
            size_bytes = len(item) if isinstance(item, bytes | bytearray) else 0
            earliest = max(earliest, min(due, now + self._delay_s(size_bytes)))
            planned.append((earliest, item))
        self._line = planned

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._arm()

    def _put(self, item: bytes | _End | Exception, size_bytes: int) -> None:
        if self._is_over:
            return
        now = self._loop.time()
        delay_s = self._delay_s(size_bytes)
        if not self._line and delay_s == 0.0 and not self._is_paused and self._passes():
            self._hand_on(item)
            return
        due = now + delay_s
        self._line.append((max(due, self._line[-1][0]) if self._line else due, item))
        self._line_bytes += size_bytes
        if self._line_bytes > WINDOW_BYTES and not self._is_full and self._transport is not None:
            self._is_full = True
            self._transport.pause_reading()
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._line and self._passes():
            self._timer = self._loop.call_at(self._line[0][0], self._due)

    def _due(self) -> None:
        self._timer = None
        self._deliver()

    def _deliver(self) -> None:
        now = self._loop.time()
        while self._line and not self._is_paused and self._line[0][0] <= now and self._passes():
            _, item = self._line.popleft()
            if isinstance(item, bytes | bytearray):
                self._line_bytes -= len(item)
            self._hand_on(item)
        if self._is_full and self._line_bytes < WINDOW_BYTES // 2:
            self._is_full = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        if not self._is_paused:
            self._arm()

    def _hand_on(self, item: bytes | _End | Exception) -> None:
        if isinstance(item, _End):
            if not self._reader.eof_received() and self._transport is not None:
                self._transport.close()
        elif isinstance(item, Exception):
            self._lost(item)
        elif self._is_buffered:
            self._feed_buffered(item)
        else:
            self._reader.data_received(item)

    def _feed_buffered(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            buffer = self._reader.get_buffer(len(rest))
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            self._reader.buffer_updated(count)
            rest = rest[count:]

    def _lost(self, exc: Exception | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._line.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._wires.ended(self)
        self._reader.connection_lost(exc)

    def _passes(self) -> bool:
        return self._wires.network.passes(self._peer, self._wires.me)

    def _delay_s(self, size_bytes: int) -> float:
        wires = self._wires
        now = self._loop.time()
        delay_s = wires.network.stream_delay_s(self._peer, wires.me, size_bytes, now)
        return wires.timer_s(delay_s)


class WireTransport(asyncio.Transport):
    """What a reader has for a transport: it writes to the socket, and reads from the wire."""

    _start_tls_compatible = True

    def __init__(self, wire: StreamWire, transport: asyncio.Transport) -> None:
        """Stand before the loop's transport."""
        super().__init__()
        self._wire = wire
        self._transport = transport
        self._reads = True

    def __repr__(self) -> str:
        return f"<WireTransport before {self._transport!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the loop's transport."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """As the loop's transport."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Send what is buffered, and close."""
        self._wire.closed_here()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._wire.closed_here()
        self._transport.abort()

    def _force_close(self, exc: BaseException | None) -> None:
        """Close at once: what TLS calls after an error."""
        del exc
        self.abort()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Refuse: a wire has one reader."""
        raise NotImplementedError("a wire has one reader for all its time")

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return what the loop's transport feeds."""
        return self._wire

    def is_reading(self) -> bool:
        """Whether the reader wants more."""
        return self._reads and not self.is_closing()

    def pause_reading(self) -> None:
        """Let the wire hand on nothing."""
        self._reads = False
        self._wire.pause()

    def resume_reading(self) -> None:
        """Let the wire hand on again."""
        self._reads = True
        self._wire.resume()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As the loop's transport."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """As the loop's transport."""
        return self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As the loop's transport."""
        return self._transport.get_write_buffer_limits()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As the loop's transport: the wire is at the receiver."""
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """As the loop's transport."""
        self._transport.writelines(list_of_data)

    def write_eof(self) -> None:
        """As the loop's transport."""
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """As the loop's transport."""
        return self._transport.can_write_eof()


class DatagramWire(asyncio.DatagramProtocol):
    """All datagrams that one socket receives, handed on when they would have come, if they would."""

    def __init__(self, wires: Wires, reader: asyncio.DatagramProtocol) -> None:
        """Feed a reader."""
        self._wires = wires
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._is_open = False

    def __repr__(self) -> str:
        return f"<DatagramWire to {self._wires.me}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the reader; what it sends is noted, for the router before this node if there is one."""
        self._is_open = True
        socket = cast("asyncio.DatagramTransport", transport)
        self._reader.connection_made(_NotingTransport(self, socket))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader; what is under way is lost."""
        self._is_open = False
        self._reader.connection_lost(exc)

    def error_received(self, exc: Exception) -> None:
        """Tell the reader."""
        self._reader.error_received(exc)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Put a datagram on the wire; one of a stranger is handed on as it is."""
        peer = self._wires.whereabouts.listener_at(addr)
        if peer is None or peer == self._wires.me:
            self._reader.datagram_received(data, addr)
        else:
            self.arrived(peer, data, addr)

    def arrived(self, peer: str, data: bytes, addr: Any) -> None:
        """Let a peer's datagram travel from now on."""
        wires = self._wires
        if wires.network.is_held(peer, wires.me):
            wires.hold(peer, data, addr, self)
            return
        now = self._loop.time()
        for delay_s in wires.network.arrivals(peer, wires.me, len(data), now):
            timer_s = wires.timer_s(delay_s)
            if timer_s:
                self._loop.call_later(timer_s, self._hand_on, data, addr)
            else:
                self._hand_on(data, addr)

    def sent(self, size_bytes: int, addr: Any) -> None:
        """Note that this node has sent a datagram: a router before it lets answers in."""
        wires = self._wires
        peer = wires.whereabouts.listener_at(addr)
        if peer is not None and not wires.network.may_dial(peer, wires.me):
            wires.network.arrivals(wires.me, peer, size_bytes, self._loop.time())

    def _hand_on(self, data: bytes, addr: Any) -> None:
        if self._is_open:
            self._reader.datagram_received(data, addr)


class _NotingTransport(asyncio.DatagramTransport):
    """Sends datagrams as the loop's transport, and tells the wire."""

    def __init__(self, wire: DatagramWire, transport: asyncio.DatagramTransport) -> None:
        super().__init__()
        self._wire = wire
        self._transport = transport

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._wire.sent(len(data), addr)
        self._transport.sendto(data, addr)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
