"""One TLS connection between two nodes: first the hello, then the multiplexed link.

The deciding parts (hello, frames, credit, liveness) are sans-IO cores; this class feeds them bytes
and time, and hands what they say to a `LinkOwner`.

Writing. Output is taken from the link once per turn of the event loop, or after `FLUSH_EVERY` frames,
so that many small answers share one TLS record and one system call, and at most `FLUSH_BYTES` at a time: between two such
pieces the loop serves others, and what is small overtakes. While the socket takes no more, output
waits in the link, where streams take turns; so little is ever queued behind the link's back.

Reading. Whoever takes a part's data says so with `consumed` when it is done with it. Until then the
peer gets no new credit for that stream: a slow disk slows the sender down and fills no memory. A
request's data counts until its stream ends, since it is held for as long.

A connection that is to be replaced is *retired*: nothing new is opened on it, the peer is told to
open nothing either, and it closes when both have told each other so and nothing runs on it any
more: nothing can be on its way then. A node that leaves tells its peers the same and may still ask
them for its last clients, so a peer that hears it answers only once it has no use for the link: when
another one takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from meshnode.errors import (
    LinkLost,
    MeshError,
    Saturated,
    TooLarge,
    error_of,
)
from meshnode.limits import HANDSHAKE_TIMEOUT_S, KIB, LINK_CLOSE_TIMEOUT_S, MAX_PEER_MESSAGE_LENGTH
from meshnode.net.hello_phase import Hello, HelloPhase
from meshnode.trust.reasons import Reason, TrustError
from meshnode.types import Address, Buffer
from meshnode.wire.link import (
    Dead,
    GoingAway,
    Link,
    LinkConfig,
    LinkEvent,
    NoteReceived,
    PartReceived,
    Recovered,
    RttMeasured,
    Stalled,
    StreamOpened,
    StreamReset,
)

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.net.link_owner import LinkOwner, StreamHandler
    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.hello import HelloResult
    from meshnode.trust.invite import Invite
    from meshnode.trust.pairing import Pairing
    from meshnode.types import NodeId

FLUSH_BYTES = 256 * KIB
"""Bytes taken from the link at a time, and queued in the transport before it says that it is full:
half a millisecond of a 4 Gbit/s network, and enough to keep one of 100 ms and 20 Mbit/s busy."""

FLUSH_EVERY = 16
"""Things queued within one turn of the loop after which they are written at once: enough to share a
system call, few enough that the peer begins to work on them while more are made."""


TIMER_SLACK_S = 0.002
"""Added to a timer's delay: loops count in whole milliseconds, from the last one that began, and a tick
that comes too early finds nothing to do, again and again until it is time."""


HelloFactory = Callable[[asyncio.Transport], Hello]
"""Makes the hello once the TLS connection stands, since it is bound to its certificate."""


class Connection(asyncio.Protocol):
    """A connection in one of three phases: hello, link, closed.

    Attributes:
        dialler: Whether this side opened the connection.
        dialled: The address that was dialled, on the side that did.
        remote: The other end.
        relay: The node through which it goes; None if it is direct.
        hello: What the hello established; None before.
        lost: Set once the transport is gone, or was never made.
        dropped_notes: Notes that found no room because the peer reads nothing.
    """

    def __init__(
        self,
        owner: LinkOwner,
        make_hello: HelloFactory,
        clock: Clock,
        *,
        config: LinkConfig,
        dialled: Address | None = None,
        remote: Address | None = None,
        relay: NodeId | None = None,
        hello_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        """Wait for the transport.

        Args:
            owner: Told of everything.
            make_hello: Begins the hello.
            clock: Time for the link.
            config: Of the link.
            dialled: The address, on the side that dials; None on the side that accepts.
            remote: The other end, on the side that accepts.
            relay: The node through which it goes, if it is not direct.
            hello_timeout_s: From now until the hello must have succeeded, TLS included.
        """
        self.dialler = dialled is not None
        self.dialled = dialled
        self.relay = relay
        self.hello: HelloResult | None = None
        self.remote = dialled or remote or Address("", 0)
        self.dropped_notes = 0
        self.lost = asyncio.Event()
        self._owner = owner
        self._make_hello = make_hello
        self._clock = clock
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._hello_due = self._loop.time() + hello_timeout_s
        self._transport: asyncio.Transport | None = None
        self._phase: HelloPhase | None = None
        self._link: Link | None = None
        self._handlers: dict[int, StreamHandler] = {}
        self._writable: dict[int, asyncio.Future[None]] = {}
        self._flush_due = False
        self._unflushed = 0
        self._receipts = 0  # how often bytes came
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._ping_was_out = False  # when the timer was set
        self._retire_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._error: MeshError | None = None
        self._retiring = False
        self._closed = False

    def __repr__(self) -> str:
        phase = "closed" if self._closed else "link" if self._link else "hello"
        side = "to" if self.dialler else "from"
        return f"<Connection {side} {self.remote} {phase} {self._link!r}>"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the hello."""
        self._transport = cast("asyncio.Transport", transport)
        if self._closed:  # while TLS was being set up
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=FLUSH_BYTES)
        peer: tuple[Any, ...] = transport.get_extra_info("peername") or ("", 0)
        self.remote = Address(plain_host(str(peer[0])), int(peer[1]))
        self._phase = HelloPhase(
            self,
            self._owner,
            self._make_hello(self._transport),
            self._transport,
            due=self._hello_due,
            give_up=self.abort,
        )

    def data_received(self, data: bytes) -> None:
        """Feed the hello, then the link."""
        if self._closed:
            return
        self._receipts += 1
        try:
            if self._link is None:
                assert self._phase is not None
                result = self._phase.receive(data)
                data = b"" if result is None else self._begin_link(result)
            link = self._link
            if link is None or not data:
                return
            self._dispatch_all(link.receive(data, self._clock.now()))
        except MeshError as error:
            self.close(error)
            return
        if link.has_output or self._retiring:  # else a turn of the loop for nothing
            self._schedule_flush()
        if self._ping_was_out and not link.ping_is_out and not self._closed:
            self._arm_timer(link)  # only now it is known when the next one is due

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight; the owner hears of it once."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        if self._error is None and exc is not None:
            self._error = LinkLost(f"the connection to {self.remote} broke: {exc}")
            self._tell_failure()
        self._finish()
        self.lost.set()

    def pause_writing(self) -> None:
        """Keep output in the link, where streams take turns, until the socket takes more."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._paused = False
        self._schedule_flush()

    # What the hub and its users call

    @property
    def established(self) -> bool:
        """Whether the hello succeeded and the connection stands."""
        return self._link is not None and not self._closed

    @property
    def local_host(self) -> str:
        """The address of this machine at which it ends; empty before it stands."""
        own = self._transport.get_extra_info("sockname") if self._transport else None
        return plain_host(str(own[0])) if own else ""

    @property
    def pairing(self) -> Pairing | None:
        """The code and whom it is with, while a device waits to be approved."""
        return None if self._phase is None else self._phase.pairing

    @property
    def pairing_waits_s(self) -> int:
        """At such a device: how long the member waits yet, in seconds, as it said last."""
        return 0 if self._phase is None else self._phase.waits_s

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened and can be expected to be answered."""
        link = self._link
        return (
            link is not None
            and not self._closed
            and not self._retiring
            and not link.stalled
            and not link.spent
        )

    @property
    def stalled(self) -> bool:
        """Whether the peer has stopped answering while it owed us something."""
        return self._link is not None and self._link.stalled

    @property
    def going_away(self) -> bool:
        """Whether either side said that it takes no new streams."""
        return self._link is not None and self._link.going_away

    @property
    def peer_is_away(self) -> bool:
        """Whether the peer said so."""
        return self._link is not None and self._link.heard_goaway

    @property
    def spent(self) -> bool:
        """Whether nothing can ever be opened on it from here again."""
        return self._link is not None and (self._retiring or self._link.spent)

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round-trip time in seconds, or None before the first ping came back."""
        return self._link.rtt_s if self._link else None

    def remind(self, expires_in_s: float) -> None:
        """Tell a device that waits to be approved that it is waited for still."""
        if self._phase is not None and not self._closed:
            self._phase.remind(expires_in_s)

    def approve(self, member: VerifiedMember, invite: Invite, now_wall_s: float) -> None:
        """Admit the device that waits; this connection becomes its link.

        Args:
            member: This node, as a member.
            invite: Made by it for this device.
            now_wall_s: Wall time.

        Raises:
            LinkLost: if the device has gone.
            MeshError: if it cannot be admitted, or its link not be taken.
        """
        if self._phase is None or self._closed:
            raise LinkLost("the device has gone; let it ask again")
        result = self._phase.approve(member, invite, now_wall_s)
        try:
            leftover = self._begin_link(result)
        except MeshError as error:
            self.close(error)
            raise
        if leftover:
            self.data_received(leftover)

    def welcome(self) -> None:
        """Take the peer whose welcome was held back."""
        assert self._phase is not None
        try:
            self._begin_link(self._phase.welcome())
        except MeshError as error:
            self.close(error)

    def ping(self) -> None:
        """Ask the peer for a sign of life now; `ping_is_out` until it has answered."""
        if self._link is not None and not self._closed:
            self._link.ping(self._clock.now())
            self._schedule_flush()

    def prove(self, within_s: float) -> None:
        """Ask the peer for a sign of life, and give the connection up if no byte comes in so many seconds."""
        self.ping()
        self._loop.call_later(within_s, self._unproven, self._receipts)

    def _unproven(self, receipts: int) -> None:
        if not self._closed and self._receipts == receipts:
            self.abort(LinkLost("the peer has said nothing since this device woke"))

    @property
    def ping_is_out(self) -> bool:
        """Whether a ping waits for its answer."""
        return self._link is not None and self._link.ping_is_out

    @property
    def idle(self) -> bool:
        """Whether no stream runs on it."""
        return self._link is None or self._link.idle

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._closed

    def turn_away(self, error: TrustError) -> None:
        """Tell the peer whose welcome was held back, or the device that waits, why; and close."""
        if self._phase is not None and not self._closed:
            self._phase.refuse(error)
            self.close(error)

    def open(
        self, meta: bytes, data: Sequence[Buffer], handler: StreamHandler, *, end: bool = True
    ) -> int:
        """Open a stream; the handler receives what comes back.

        Args:
            meta: The message of the first part of ours.
            data: What follows it.
            handler: Receives what the peer sends.
            end: Whether that is all of ours; else more of it goes out with `reply`.

        Raises:
            LinkLost: if the link is not usable.
            Saturated: if too many streams are open on it.
            TooLarge: if meta or data exceed their limits.
        """
        link = self._link
        if link is None or self._closed:
            raise LinkLost(f"there is no link to {self.remote}")
        stream = link.open_stream(meta, data, end=end)
        self._handlers[stream] = handler
        self._schedule_flush()
        if len(self._handlers) == 1:
            self._arm_timer(link)
        if link.spent:  # that was its last id
            self._owner.health_changed(self)
        return stream

    def attend(self, stream: int, handler: StreamHandler) -> None:
        """Let a handler receive what else the peer sends on a stream that it opened."""
        self._handlers[stream] = handler

    def queued_bytes(self, stream: int) -> int:
        """Return what was sent on this stream and waits here for credit or its turn."""
        return 0 if self._link is None else self._link.queued_bytes(stream)

    def consumed(self, stream: int, size_bytes: int, *, at_once: bool = False) -> None:
        """Return credit for data of a part that is no longer held; does nothing if it is gone.

        The peer is told when half a window is due, or `at_once`.
        """
        if size_bytes and self._link is not None and not self._closed:
            self._link.consumed(stream, size_bytes, at_once=at_once)
            self._schedule_flush()

    def left_bytes(self, stream: int) -> int:
        """Return how much is still to come of a part that has begun to arrive; 0 if none has."""
        return 0 if self._link is None else self._link.left_bytes(stream)

    def reply(self, stream: int, meta: bytes, data: Sequence[Buffer] = (), *, end: bool) -> None:
        """Send one part on a stream, the peer's or one that we left open; nothing happens if it is gone.

        Raises:
            Saturated: if too much waits on this stream; see `drained`.
            TooLarge: if meta or data exceed their limits.
        """
        if self._link is not None and not self._closed:
            self._link.send(stream, meta, data, end=end)
            self._schedule_flush()

    def cancel(self, stream: int) -> None:
        """Tell the peer that nobody waits for this stream any more."""
        if self._handlers.pop(stream, None) is not None:
            self._reset(stream)

    def refuse(self, stream: int, error: MeshError) -> None:
        """Reset a stream that the peer opened."""
        self._reset(stream, error.code, str(error))

    def note(self, payload: bytes) -> None:
        """Send a one-way message; dropped if the link is full, since notes may be lost."""
        if self._link is None or self._closed:
            return
        try:
            self._link.send_note(payload)
        except (Saturated, TooLarge):
            self.dropped_notes += 1
        self._schedule_flush()

    def go_away(self) -> None:
        """Tell the peer to open no new streams on this link; those that run finish."""
        if self._link is not None and not self._closed:
            self._link.go_away()
            self._schedule_flush()

    async def drained(self, stream: int, most_bytes: int | None = None) -> None:
        """Wait until little of what was sent on this stream is still queued here.

        Args:
            stream: Which one.
            most_bytes: What may be; by default, and at most, one window.
        """
        most_bytes = self._config.window_bytes if most_bytes is None else most_bytes
        while (
            self._link is not None
            and not self._closed
            and self._link.queued_bytes(stream) > most_bytes
        ):
            waiter = self._writable.get(stream)
            if waiter is None:
                waiter = self._writable[stream] = self._loop.create_future()
            await asyncio.shield(waiter)

    def close(self, error: MeshError | None = None) -> None:
        """Close the connection; what the link had ready is still written, up to `FLUSH_BYTES`."""
        if self._closed:
            return
        self._error = self._error or error
        if self._transport is not None:
            # After a protocol error the link is in no defined state: nothing more is taken from it.
            if self._link is not None and not self._paused and error is None:
                self._transport.writelines(self._link.take_output(FLUSH_BYTES))
            self._transport.close()
            self._abort_timer = self._loop.call_later(LINK_CLOSE_TIMEOUT_S, self._transport.abort)
        self._finish()

    def abort(self, error: MeshError | None = None) -> None:
        """Drop the connection at once."""
        self._error = self._error or error
        if self._transport is not None:
            self._transport.abort()
        self._finish()

    def retire(self, after_s: float, grace_s: float) -> None:
        """Say after `after_s` that nothing new may be opened; close when nothing runs on it.

        Args:
            after_s: Until then the peer may believe that this is the link to use.
            grace_s: From then on; it is closed at its end whatever runs.
        """
        if self._retire_timer is None and not self._closed:
            self._retire_timer = self._loop.call_later(after_s, self._retire_now, grace_s)

    # Inside

    def _retire_now(self, grace_s: float) -> None:
        self._retiring = True
        self.go_away()
        self._retire_timer = self._loop.call_later(grace_s, self.close)

    def _reset(self, stream: int, code: str = "cancelled", message: str = "") -> None:
        if self._link is not None and not self._closed:
            self._link.reset(stream, code, message)
            self._schedule_flush()

    def _begin_link(self, hello: HelloResult) -> bytes:
        """Let the link speak from here on; return what came of it already."""
        assert self._phase is not None
        self._phase.end()
        self._phase = None
        if hello.is_trial:
            raise TrustError(
                Reason.TRIAL, "it only asked whether its hello would succeed: it would"
            )
        self.hello = hello
        self._link = Link(dialler=self.dialler, config=self._config, now=self._clock.now())
        self._owner.established(self)
        if not self._closed:
            self._arm_timer(self._link)
        return hello.leftover

    def _dispatch_all(self, events: list[LinkEvent]) -> None:
        for event in events:
            if self._closed:  # by what was done about the event before
                return
            self._dispatch(event)

    def _dispatch(self, event: LinkEvent) -> None:
        kind = type(event)
        if kind is PartReceived:
            self._part_received(cast("PartReceived", event))
        elif kind is StreamOpened:
            opened = cast("StreamOpened", event)
            if opened.end:
                self._owner.stream_opened(self, opened.stream, opened.meta, opened.data)
            else:
                self._begin_conversation(opened)
        elif kind is StreamReset:
            self._stream_reset(cast("StreamReset", event))
        elif kind is NoteReceived:
            self._owner.note_received(self, cast("NoteReceived", event).payload)
        elif kind is Dead:
            self._tell_failure()
            self.abort(LinkLost(f"{self.remote} has been silent for too long"))
        elif kind is Stalled:
            self._owner.way_failed(self)
            self._fail_handlers(LinkLost("the peer stopped answering"))
            self._owner.health_changed(self)
        elif kind in (GoingAway, Recovered, RttMeasured):
            self._owner.health_changed(self)

    def _tell_failure(self) -> None:
        """Tell the owner that the link failed, unless it stalled before, which was told."""
        if self._link is not None and not self._closed and not self._link.stalled:
            self._owner.way_failed(self)

    def _begin_conversation(self, opened: StreamOpened) -> None:
        try:
            self._owner.conversation_opened(self, opened.stream, opened.meta)
        except MeshError as error:
            self.refuse(opened.stream, error)

    def _part_received(self, event: PartReceived) -> None:
        handler = self._handlers.get(event.stream)
        if handler is None:
            return  # cancelled while this part was on its way through the loop above
        if event.end:
            del self._handlers[event.stream]
        handler.part(event.meta, event.data, event.end)

    def _stream_reset(self, event: StreamReset) -> None:
        self._release(event.stream)
        handler = self._handlers.pop(event.stream, None)
        if handler is not None:
            handler.lost(peer_error(event.code, event.message))
        else:
            self._owner.stream_cancelled(self, event.stream)

    def _release(self, stream: int) -> None:
        waiter = self._writable.pop(stream, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _schedule_flush(self) -> None:
        """See that what was queued is written: this turn of the loop, and now if it is much.

        A full turn would answer many requests before the first answer leaves, and the two ends
        would work in turns instead of at the same time.
        """
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVERY:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        self._unflushed = 0
        link = self._link
        if self._closed or link is None or self._transport is None:
            return
        if not self._paused and link.has_output:
            self._transport.writelines(link.take_output(FLUSH_BYTES))
            for stream in tuple(self._writable):
                if link.queued_bytes(stream) <= self._config.window_bytes:
                    self._release(stream)
            if link.has_output:
                self._schedule_flush()
        if self._retiring and link.heard_goaway and link.idle:
            self.close()

    def _arm_timer(self, link: Link) -> None:
        """See that `_tick` runs when the link wants it; an earlier run does no harm."""
        now = self._clock.now()
        due = link.next_tick(now)
        self._ping_was_out = link.ping_is_out
        if due is None:
            return
        if self._timer is not None:
            if self._tick_at <= due:
                return
            self._timer.cancel()
        self._tick_at = due
        self._timer = self._loop.call_later(max(0.0, due - now) + TIMER_SLACK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        link = self._link
        assert link is not None
        self._dispatch_all(link.tick(self._clock.now()))
        if not self._closed:
            self._flush()
        if not self._closed:
            self._arm_timer(link)

    def _fail_handlers(self, error: MeshError) -> None:
        handlers, self._handlers = self._handlers, {}
        for stream, handler in handlers.items():
            self._reset(stream)
            handler.lost(error)

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._phase is not None:
            self._phase.end()
        for timer in (self._timer, self._retire_timer):
            if timer is not None:
                timer.cancel()
        for stream in tuple(self._writable):
            self._release(stream)
        self._fail_handlers(self._error or LinkLost(f"the link to {self.remote} was closed"))
        if self._transport is None:
            self.lost.set()
        self._owner.closed(self, self._error)


def peer_error(code: str, message: str) -> MeshError:
    """Rebuild an error that a peer sent; its text is safe to show in a terminal."""
    shown = "".join(
        character if character.isprintable() else " "
        for character in message[:MAX_PEER_MESSAGE_LENGTH]
    )
    return error_of(code, shown)


def plain_host(host: str) -> str:
    """Return a socket's host without its scope, and an IPv4 address as one."""
    return host.partition("%")[0].removeprefix("::ffff:")
