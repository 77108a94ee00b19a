"""Links of this node that go through relays: asking for one, and being called through one.

Who has no direct way to a peer asks a few nodes that it has links to, at once, whether they relay. Of those
that would it takes the one over which a message takes the shortest time: its own round trip to the
relay and the relay's to the peer, both measured. Within what the relay passes on runs an ordinary
connection: TLS, and the hello that proves who is at the other end.

A relay that said that it would may pass nothing on. So the next one is tried beside it after a few round
trips, and at once if the hello fails, whatever the reason; the first link that stands is taken. When all
that were asked have failed or are late, the next few are asked. Those through which links failed lately
(`meshnode.net.relay_faults`) are asked when nobody else is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

from meshnode.errors import HandshakeError, LinkLost, MeshError, ProtocolError, UsageError
from meshnode.limits import (
    HANDSHAKE_TIMEOUT_S,
    MAX_RELAY_STAGGER_S,
    MAX_RELAYS_ASKED,
    RELAY_ANSWERS_S,
    RELAY_ASK_TIMEOUT_S,
    RELAY_HELLO_RTTS,
    RELAY_HELLO_S,
    RELAY_STAGGER_S,
)
from meshnode.membership.messages import pack_id
from meshnode.wire.relaying import RELAYING, BeginRelay, OpenRelay, RelayReady

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.clock import Clock
    from meshnode.net.connection import Connection
    from meshnode.net.link_owner import StreamHandler
    from meshnode.net.links import LinkHub
    from meshnode.net.relay_transport import RelayedTransport
    from meshnode.types import NodeId

_UNMEASURED_MS = 1_000.0
"""What a round trip counts that nobody has measured yet: more than one that somebody has."""

_STAGGER_RTTS = RELAY_HELLO_RTTS / 2


class RelayedLinks:
    """Opens links of a hub through relays."""

    def __init__(self, hub: LinkHub, clock: Clock) -> None:
        """Open them for this hub."""
        self._hub = hub
        self._clock = clock

    def __repr__(self) -> str:
        return f"<RelayedLinks of {self._hub!r}>"

    async def connect(
        self, peer: NodeId, relays: Sequence[NodeId], within_s: float = math.inf
    ) -> Connection:
        """Open a link to a peer through the best of these nodes.

        Args:
            peer: Who must answer.
            relays: Nodes to which links stand, those first that are to be asked first.
            within_s: Take none over which a round trip takes longer, and wait for none that is late: a link
                stands.

        Raises:
            LinkLost: if none of them relays, or the peer does not answer through those that do.
            HandshakeError: if it answered and no hello succeeded.
            UsageError: if the link was made and this node cannot take it.
        """
        search = _Search(self._hub, self._clock, peer, within_s)
        try:
            for group in self._groups(peer, relays):
                if (connection := await search.among(group)) is not None:
                    return connection
            if within_s == math.inf and (connection := await search.late()) is not None:
                return connection
        finally:
            search.end()
        raise search.failure()

    def _groups(self, peer: NodeId, relays: Iterable[NodeId]) -> list[tuple[NodeId, ...]]:
        """Return who is asked together: those that failed lately after all others."""
        now = self._clock.now()
        good: list[NodeId] = []
        bad: list[NodeId] = []
        for relay in relays:
            (bad if self._hub.relay_faults.count(relay, peer, now) else good).append(relay)
        return [
            tuple(part[start : start + MAX_RELAYS_ASKED])
            for part in (good, bad)
            for start in range(0, len(part), MAX_RELAYS_ASKED)
        ]


class _Search:
    """One search for a link to a peer: hellos through several relays at a time."""

    def __init__(self, hub: LinkHub, clock: Clock, peer: NodeId, within_s: float) -> None:
        self._hub = hub
        self._clock = clock
        self._peer = peer
        self._within_s = within_s
        self._loop = asyncio.get_running_loop()
        self._calls: list[_Call] = []
        self._running: dict[asyncio.Task[Connection], _Call] = {}
        self._blamed: set[NodeId] = set()
        self._refusal: HandshakeError | None = None
        self._reasons: list[str] = []

    async def among(self, relays: Sequence[NodeId]) -> Connection | None:
        """Ask these, and try those that would; return the first link, or None when all have failed or are late."""
        calls = [_Call(relay, self._hub) for relay in relays]
        self._calls += calls
        for call in calls:
            call.ask(self._peer)
        await self._answers(calls)
        begun: list[asyncio.Task[Connection]] = []
        late_at = self._loop.time()
        while True:
            best = self._best(calls)
            if best is not None:
                begun.append(self._begin(best))
                late_at = max(late_at, self._loop.time() + best.hello_s)
                found = await self._first(begun[-1:], best.stagger_s)
            else:
                found = await self._first(begun, late_at - self._loop.time())
            if found is not None or (best is None and self._best(calls) is None):
                return found

    async def late(self) -> Connection | None:
        """Wait for those that are late: there is nobody else."""
        return await self._first(tuple(self._running), HANDSHAKE_TIMEOUT_S)

    def end(self) -> None:
        """Give up whatever is not the link."""
        for task in self._running:
            task.cancel()
        for call in self._calls:
            call.end()

    def failure(self) -> MeshError:
        """Return why there is no link."""
        if self._refusal is not None:
            return self._refusal
        refusals = [str(call.refusal) for call in self._calls if call.refusal is not None]
        reasons = dict.fromkeys(self._reasons + refusals)
        return LinkLost("; ".join(reasons) or "no node is there to relay")

    async def _answers(self, calls: Sequence[_Call]) -> None:
        """Wait for answers: from the first that would on, not for long."""
        waiting = {call.answer for call in calls}
        limit = self._loop.time() + RELAY_ASK_TIMEOUT_S
        while waiting and (left_s := limit - self._loop.time()) > 0:
            done, waiting = await asyncio.wait(
                waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if waiting and any(each.exception() is None for each in done):
                await asyncio.wait(waiting, timeout=RELAY_ANSWERS_S)
                return
        for call in calls:
            if not call.answer.done():
                self._blame(call.relay)

    def _best(self, calls: Sequence[_Call]) -> _Call | None:
        """Return the best of those that would relay and are not tried yet; None if there is none."""
        now = self._clock.now()
        willing = [call for call in calls if call.is_willing and call.begun_at is None]
        near = [call for call in willing if call.rtt_ms <= self._within_s * 1e3]
        if willing and not near:
            self._reasons.append("no way through another node is short enough")

        def place(call: _Call) -> tuple[int, float]:
            return self._hub.relay_faults.count(call.relay, self._peer, now), call.rtt_ms

        return min(near, key=place, default=None)

    def _begin(self, call: _Call) -> asyncio.Task[Connection]:
        call.begun_at = self._loop.time()
        task = asyncio.ensure_future(self._hello(call))
        task.add_done_callback(_look_at)
        self._running[task] = call
        return task

    async def _hello(self, call: _Call) -> Connection:
        late = self._loop.call_later(call.hello_s, self._blame, call.relay)
        try:
            return await call.say_hello(self._peer)
        finally:
            late.cancel()

    async def _first(
        self, watched: Sequence[asyncio.Task[Connection]], within_s: float
    ) -> Connection | None:
        """Return the first link that stands; None when all that are watched have failed, or time is up."""
        limit = self._loop.time() + within_s
        while True:
            for task in tuple(self._running):
                if task.done() and (found := self._take(task)) is not None:
                    return found
            left_s = limit - self._loop.time()
            if left_s <= 0 or not any(task in self._running for task in watched):
                return None
            await asyncio.wait(self._running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def _take(self, task: asyncio.Task[Connection]) -> Connection | None:
        """Take how a hello went: the link, or why there is none."""
        call = self._running.pop(task)
        try:
            found = task.result()
        except UsageError:
            raise
        except TimeoutError:
            self._reasons.append("the peer does not answer through a relay")
        except HandshakeError as error:
            self._refusal = self._refusal or error
        except MeshError as error:
            self._reasons.append(str(error))
        else:
            self._hub.relay_faults.reached(call.relay, self._peer, self._clock.now())
            for other in self._running.values():
                if (other.begun_at or 0.0) < (call.begun_at or 0.0):  # overtaken
                    self._blame(other.relay)
            return found
        self._blame(call.relay)
        return None

    def _blame(self, relay: NodeId) -> None:
        """Count a failure against a relay, once in a search."""
        if relay not in self._blamed:
            self._blamed.add(relay)
            self._hub.relay_faults.failed(relay, self._peer, self._clock.now())


def _look_at(task: asyncio.Task[Connection]) -> None:
    """See how a hello ended that nobody waits for any more, so that no loop complains."""
    if not task.cancelled():
        task.exception()


class _Call:
    """What is asked of one node: its answer, and then the bytes that it passes on.

    Attributes:
        relay: Who is asked.
        outer: The link to it.
        rtt_ms: The round trip through it; what was not measured counts as long.
        answer: Done when it would relay, or fails.
        refusal: Why it does not, or no longer.
        begun_at: When a hello through it began, by the loop's time; None before.
    """

    def __init__(self, relay: NodeId, hub: LinkHub) -> None:
        self.relay = relay
        self.outer = hub.connection(relay)
        self.rtt_ms = 0.0
        self.begun_at: float | None = None
        self._hub = hub
        self._measured_s = 0.0
        self.refusal: MeshError | None = None
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream = 0
        self._within: StreamHandler | None = None

    def ask(self, peer: NodeId) -> None:
        """Ask it."""
        if self.outer is None:
            self.lost(LinkLost("there is no usable link to the relay"))
            return
        try:
            ask = RELAYING.encode(OpenRelay(pack_id(peer)))
            self._stream = self.outer.open(ask, (), self, end=False)
        except MeshError as error:
            self.lost(error)

    @property
    def is_willing(self) -> bool:
        """Whether it would relay."""
        return self.answer.done() and self.answer.exception() is None

    @property
    def hello_s(self) -> float:
        """How long a hello through it takes at most, if nothing is wrong, in seconds."""
        return min(HANDSHAKE_TIMEOUT_S, max(RELAY_HELLO_S, RELAY_HELLO_RTTS * self._measured_s))

    @property
    def stagger_s(self) -> float:
        """How long it is waited for alone, in seconds."""
        return min(MAX_RELAY_STAGGER_S, max(RELAY_STAGGER_S, _STAGGER_RTTS * self._measured_s))

    async def say_hello(self, peer: NodeId) -> Connection:
        """Make the link; see `Outgoing.say_hello_through`."""
        assert self.outer is not None
        return await self._hub.outgoing.say_hello_through(self.outer, self.relay, peer, self._begin)

    def _begin(self, transport: RelayedTransport) -> None:
        """Let it relay for this transport."""
        assert self.outer is not None
        if self.refusal is not None:
            raise self.refusal
        if self.outer.closed:
            raise LinkLost("the link to the relay was lost")
        self._within = transport
        self.outer.reply(self._stream, RELAYING.encode(BeginRelay()), end=False)
        transport.begin(self._stream)

    def end(self) -> None:
        """Give it up, unless it relays."""
        if self._within is None and self.outer is not None:
            self.outer.cancel(self._stream)
        if not self.answer.done():
            self.answer.cancel()

    # StreamHandler

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take the answer, or bytes."""
        if self._within is not None:
            self._within.part(meta, data, end)
            return
        assert self.outer is not None
        message = None
        with contextlib.suppress(ProtocolError):
            message = RELAYING.decode(meta)
        if not isinstance(message, RelayReady) or end or self.answer.done():
            self.outer.cancel(self._stream)
            self.lost(ProtocolError("a relay answered something else"))
            return
        own_s = self.outer.rtt_s
        own_ms = _UNMEASURED_MS if own_s is None else own_s * 1e3
        self.rtt_ms = own_ms + (message.rtt_ms if message.rtt_ms >= 0 else _UNMEASURED_MS)
        self._measured_s = (own_s or 0.0) + max(0.0, message.rtt_ms) / 1e3
        self.answer.set_result(None)

    def lost(self, error: MeshError) -> None:
        """Take a refusal, or the end."""
        self.refusal = error
        if self._within is not None:
            self._within.lost(error)
        elif not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # whoever asked may have chosen another
