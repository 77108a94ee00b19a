"""TCP as far as programs can tell: ordered bytes with delay, windows, FIN, RST, stalls and giving up.

A connection is a pair of `StreamEnd`s, one in each host's kernel. What one sends arrives at the other
after the network's delay, in order. At most `WINDOW_BYTES` are on their way or unread at the other end;
the rest waits in the sender's outbox, which is what a transport counts as its write buffer. While the
path is cut or held, what is sent waits too: after a cut it goes out at the next retransmission, whose
waits double as TCP's do, after a hold at once; who waits for too long gives up.

Not modelled: slow start, and acknowledgements: a receiver's window opens at the sender one way later only
if that waits for it, and a cut of one direction does not stop the other.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from meshnode.sim.lines import Line
from meshnode.sim.virtual.tasks import VirtualHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual.host import Process, VirtualHost
    from meshnode.sim.virtual.transports import StreamTransport

WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes on their way or unread at the other end: Linux's greatest send buffer (tcp_wmem)."""

GIVE_UP_S: Final = 924.6
"""Seconds after which what cannot be sent breaks the connection: Linux's tcp_retries2 of 15."""

FIRST_RETRY_S: Final = 0.2
"""Linux's least retransmission timeout; it doubles with each attempt."""

MAX_RETRY_S: Final = 120.0
"""Linux's greatest one."""

LOOPBACK_S: Final = 20e-6
"""What bytes take from a host to itself."""

_CONTROL_BYTES: Final = 40  # a packet without data

_MERGE_BYTES: Final = 65_536
"""What is sent at one instant arrives as one piece up to this size, as a receiver's loop reads it."""

_READ_BYTES: Final = 262_144
"""What a loop reads at a time, as in asyncio."""

FIN: Final = b""
"""Stands for the end of a stream among the pieces that are to be read."""

SocketAddress = tuple[object, ...]

_STEP = struct.Struct("<IIQ")


class Segment:
    """Bytes on their way; more may be added until they arrive."""

    __slots__ = ("arrived", "chunks", "sent_at", "size")

    def __init__(self, data: bytes, sent_at: float) -> None:
        self.chunks = [data]
        self.size = len(data)
        self.sent_at = sent_at
        self.arrived = False


class StreamEnd:
    """One end of a connection, as its host's kernel keeps it.

    Attributes:
        host: Whose kernel.
        process: Whose socket it is.
        number: Of the connection; the same at both ends.
        sockname: Its own address.
        peername: The other end's.
        family: The address family of its socket.
        peer: The other end.
        transport: Who reads it; None before there is one.
        outbox_bytes: What waits to be sent.
        read_at: When its program last read something.
        sent_at: When it last sent something.
        closed: Whether nothing reads here any more: what arrives is answered with a reset.
    """

    __slots__ = (
        "_fin_sent", "_fin_wanted", "_in_flight", "_last_arrival", "_line", "_lost_bytes", "_outbox",
        "_pumping", "_segment", "_stalled_at", "_stalled_by_cut", "_unread", "closed", "error", "family", "fin_received",
        "host", "number", "outbox_bytes", "peer", "peername", "process", "read_at", "sent_at", "sockname",
        "transport",
    )  # fmt: skip

    def __init__(
        self,
        host: VirtualHost,
        process: Process,
        number: int,
        family: int,
        sockname: SocketAddress,
        peername: SocketAddress,
    ) -> None:
        """Make one end; `join` connects it with the other."""
        self.host = host
        self.process = process
        self.number = number
        self.family = family
        self.sockname = sockname
        self.peername = peername
        self.peer: StreamEnd = self
        self.transport: StreamTransport | None = None
        self.outbox_bytes = 0
        self.read_at = 0.0
        self.sent_at = 0.0
        self.closed = False
        self.fin_received = False
        self.error: OSError | None = None
        self._outbox: deque[bytes] = deque()
        self._unread: deque[bytes] = deque()
        self._in_flight = 0
        self._last_arrival = 0.0  # on this host itself; between hosts the line knows
        self._line: Line | None = None
        self._segment: Segment | None = None
        self._stalled_at: float | None = None
        self._stalled_by_cut = False
        self._lost_bytes = False
        self._fin_wanted = False
        self._fin_sent = False
        self._pumping = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<StreamEnd {self.number} {self.host.name} to {self.peer.host.name}, {state}>"

    # Sending.

    def send(self, data: bytes) -> None:
        """Send bytes, now or as soon as the window and the path let them."""
        if self._outbox or self._in_flight + len(data) > WINDOW_BYTES or not self._passes():
            self._outbox.append(data)
            self.outbox_bytes += len(data)
            self.flush()
        else:
            self._transmit(data)

    def send_fin(self) -> None:
        """End the stream after all that was sent."""
        self._fin_wanted = True
        self.flush()

    def reset(self) -> None:
        """Break the connection: nothing more is sent, and the other end is told once the path lets it."""
        if not self.closed:
            self.close()
        self._outbox.clear()
        self.outbox_bytes = 0
        if self._passes():
            self.tell_peer(self.peer._reset_arrives)

    def hang_up(self) -> None:
        """Send nothing of what waits, and end, as closing a socket does: with a reset if something is unread."""
        self._outbox.clear()
        self.outbox_bytes = 0
        if self.has_unread:
            self.reset()
        else:
            self.send_fin()
            self.close()

    def close(self) -> None:
        """Read no more; what was sent goes on its way."""
        self.closed = True
        self._unread.clear()
        self.transport = None
        if self._fin_sent or not self._fin_wanted:
            self.host.kernel.ends.pop(self, None)

    def abandon(self) -> None:
        """Let its transport, whose process has died, tell nobody anything any more."""
        if self.transport is not None:
            self.transport.forget()
            self.transport = None

    def flush(self) -> None:
        """Send what waits, as far as the window and the path let it."""
        if not self._outbox and not (self._fin_wanted and not self._fin_sent):
            return
        if not self._passes():
            self._stall()
            return
        self._stalled_at = None
        outbox = self._outbox
        while outbox and self._in_flight + min(len(outbox[0]), WINDOW_BYTES) <= WINDOW_BYTES:
            data = outbox.popleft()
            room = WINDOW_BYTES - self._in_flight
            if len(data) > room:
                outbox.appendleft(data[room:])
                data = data[:room]
            self.outbox_bytes -= len(data)
            self._transmit(data)
        if not outbox and self._fin_wanted and not self._fin_sent:
            self._fin_sent = True
            self.tell_peer(self.peer._fin_arrives)
            if self.closed:
                self.host.kernel.ends.pop(self, None)
        if self.transport is not None:
            self.transport.outbox_changed()

    def _passes(self) -> bool:
        host, other = self.host, self.peer.host
        return host is other or host.loop.network.passes(host.name, other.name)

    def _transmit(self, data: bytes) -> None:
        loop = self.host.loop
        now = self.sent_at = loop.now()
        self._in_flight += len(data)
        segment = self._segment
        if (
            segment is not None
            and segment.sent_at == now
            and not segment.arrived
            and segment.size < _MERGE_BYTES
            and self._is_wide()
        ):
            segment.chunks.append(data)
            segment.size += len(data)
            return
        segment = self._segment = Segment(data, now)
        self._carry(len(data), self.peer._arrive, segment)

    def _is_wide(self) -> bool:
        """Whether bytes cost no time of their own on the path: where they do, each piece has to be counted."""
        host, other = self.host, self.peer.host
        return host is other or (
            host.loop.network.condition(host.name, other.name).bytes_per_s is None
        )

    def _carry(self, size_bytes: int, call: Callable[..., object], *args: object) -> None:
        """Let something arrive at the other end, after what was sent before it."""
        host, other = self.host, self.peer.host
        loop = host.loop
        if host is other:
            self._last_arrival = max(loop.now() + LOOPBACK_S, self._last_arrival)
            loop.at(self._last_arrival, call, *args)
            return
        if self._line is None:
            self._line = Line(loop.lines, host.name, other.name)
        self._line.send(size_bytes, call, *args)

    def tell_peer(self, call: Callable[..., object], *args: object) -> None:
        """Let the other end's kernel hear of something that has no size, in its order."""
        self._segment = None
        self._carry(_CONTROL_BYTES, call, *args)

    # Stalls.

    def _stall(self) -> None:
        if self._stalled_at is None:
            host, other = self.host, self.peer.host
            self._stalled_at = host.loop.now()
            self._stalled_by_cut = host.loop.network.is_cut(host.name, other.name)
            host.loop.after(GIVE_UP_S, self._give_up, self._stalled_at)

    def path_changed(self) -> None:
        """The rules of the network are others: what waits may go out, at the next attempt."""
        if self._stalled_at is None or not self._passes():
            return
        loop = self.host.loop
        stalled_s = loop.now() - self._stalled_at
        loop.after(next_retry_s(stalled_s) if self._stalled_by_cut else 0.0, self.flush)

    def _give_up(self, stalled_at: float) -> None:
        if self._stalled_at == stalled_at and not self.closed:
            self.fail(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))

    def vanished(self) -> None:
        """The other end's machine lost its power: nothing that is sent arrives, nothing comes back."""
        if not self._lost_bytes and not self.closed:
            self._lost_bytes = True
            self.host.loop.after(GIVE_UP_S, self._nothing_heard)

    def machine_is_back(self) -> None:
        """The other end's machine booted and knows nothing: what is sent again is answered by a reset."""
        if self._lost_bytes:
            self.host.loop.after(FIRST_RETRY_S, self._reset_arrives)

    def _nothing_heard(self) -> None:
        if not self.closed:
            self.fail(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))

    # Receiving.

    def _arrive(self, segment: Segment) -> None:
        segment.arrived = True
        chunks = segment.chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        host = self.host
        if host.off:
            self.peer.vanished()
            return
        loop = host.loop
        source = self.peer.host
        told = _STEP.pack(source.number, self.number, len(data))
        loop.trace.step(loop.now(), host.number, told, data if source.covers_content else b"")
        if self.closed:
            self._refuse()
            return
        transport = self.transport
        if self._unread or transport is None or self.process.gated or not transport.reads:
            self._unread.append(data)
            self._pump_later()
            return
        self._consumed(len(data))
        transport.receive(data)

    def _refuse(self) -> None:
        """Answer with a reset: nobody reads here."""
        if not self.peer.closed and (self.host is self.peer.host or self._passes()):
            self.tell_peer(self.peer._reset_arrives)

    def _fin_arrives(self) -> None:
        if self.host.off or self.closed:
            return
        self.fin_received = True
        transport = self.transport
        if self._unread or transport is None or self.process.gated or not transport.reads:
            self._unread.append(FIN)
            self._pump_later()
        else:
            transport.receive_eof()

    def _reset_arrives(self) -> None:
        if not self.host.off and not self.closed:
            self.fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def fail(self, error: OSError) -> None:
        """Break this end: its transport is lost with the error, or whoever takes it up next."""
        transport = self.transport
        self.error = error
        self._outbox.clear()
        self.outbox_bytes = 0
        self._fin_wanted = False
        self.close()
        if transport is not None:
            transport.broken(error)

    def attach(self, transport: StreamTransport) -> None:
        """Let a transport read; what came before is read soon."""
        self.transport = transport
        if self._unread:
            self._pump_later()

    def _pump(self) -> None:
        """Let the transport read what has come: one piece of up to what a loop reads at a time."""
        self._pumping = False
        transport, unread = self.transport, self._unread
        if not unread or transport is None or not transport.reads:
            return
        if not unread[0]:
            unread.clear()
            transport.receive_eof()
            return
        data = unread.popleft()
        while unread and unread[0] and len(data) + len(unread[0]) <= _READ_BYTES:
            data += unread.popleft()
        self._consumed(len(data))
        transport.receive(data)
        self._pump_later()

    def _pump_later(self) -> None:
        transport = self.transport
        if self._pumping or not self._unread or transport is None or not transport.reads:
            return
        self._pumping = True
        loop = self.host.loop
        loop.ready(VirtualHandle(self._pump, (), self.process, loop.kernel_context))

    def _consumed(self, size_bytes: int) -> None:
        """Open the other end's window by what was read here."""
        self.read_at = self.host.loop.now()
        peer = self.peer
        peer._in_flight -= size_bytes
        if peer._outbox:
            self.tell_peer(peer.flush)

    @property
    def was_read(self) -> bool:
        """Whether the other end's program has read all that this one sent."""
        return self._in_flight == 0 and self.outbox_bytes == 0

    @property
    def has_unread(self) -> bool:
        """Whether something has come that nobody read."""
        return any(self._unread)


def next_retry_s(stalled_s: float) -> float:
    """Return after how many seconds TCP tries again, for so long stalled; its waits double."""
    due_s = wait_s = FIRST_RETRY_S
    while due_s < stalled_s:
        wait_s = min(2 * wait_s, MAX_RETRY_S)
        due_s += wait_s
    return due_s - stalled_s


def join(one: StreamEnd, other: StreamEnd) -> None:
    """Connect two ends, and let their kernels know them."""
    one.peer, other.peer = other, one
    for end in (one, other):
        end.host.kernel.ends[end] = None
