"""A node as a relay: it joins two conversations, one of each end, and passes on what it cannot read.

What it holds is bounded by the streams' credit: bytes of one end are its to keep until the other end's
link has taken them and the budget has room for more; only then their sender gets its credit back.

A sender that is slowed down gets it back part by part, each in its time: the two ends are linked within,
and a link takes a long silence for a stall.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from meshnode.errors import (
    Forbidden,
    InvalidRequest,
    LinkLost,
    MeshError,
    NotServing,
    ProtocolError,
    Saturated,
)
from meshnode.limits import KIB, MAX_RELAYED_LINKS, RELAY_BEGIN_S
from meshnode.membership.messages import pack_id, unpack_id
from meshnode.net.relay_budget import RelayBudget
from meshnode.wire.relaying import RELAYING, BeginRelay, OpenRelay, RelayedLink, RelayReady

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.types import NodeId

_QUEUED_BYTES: Final = 256 * KIB
"""What may wait for the other end before a sender gets no more credit: what a socket has queued at most."""


class Relay:
    """Relays between members that both have a direct link to this node.

    Attributes:
        is_willing: Whether it does, as the owner says.
        budget: What it may do.
        refused: Asked and refused.
    """

    def __init__(
        self, hub: LinkHub, clock: Clock, *, is_willing: bool, budget: RelayBudget | None = None
    ) -> None:
        """Relay over the hub's links."""
        self.is_willing = is_willing
        self.budget = budget or RelayBudget()
        self.refused = 0
        self._hub = hub
        self._clock = clock
        self._waiting: set[_Waiting] = set()
        self._pairs: set[Pair] = set()

    def __repr__(self) -> str:
        return f"<Relay {self.budget!r}>"

    @property
    def pairs(self) -> tuple[tuple[NodeId, NodeId], ...]:
        """The pairs that it relays between: who asked, and for whom."""
        return tuple((pair.one.peer, pair.other.peer) for pair in self._pairs)

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        """Go on with what a peer began: it wants this node to relay, or calls it through a relay.

        Raises:
            MeshError: if nothing comes of it, with the reason.
        """
        try:
            message = RELAYING.decode(meta)
        except ProtocolError as error:
            raise InvalidRequest(f"nothing can be talked about so: {error}") from error
        if isinstance(message, OpenRelay):
            self.asked(connection, stream, message)
        elif isinstance(message, RelayedLink):
            self._hub.incoming.take_relayed(connection, stream, peer_of(connection))
        else:
            raise InvalidRequest("this node does not know what is asked")

    def asked(self, connection: Connection, stream: int, ask: OpenRelay) -> None:
        """Say whether this node relays between who asks and the member.

        Raises:
            MeshError: if it does not, with the reason.
        """
        try:
            target = self._target(connection, unpack_id(ask.peer))
            if len(self._waiting) >= MAX_RELAYED_LINKS:
                raise Saturated("too many nodes ask this one to relay; ask another")
        except MeshError:
            self.refused += 1
            raise
        waiting = _Waiting(self, connection, stream, unpack_id(ask.peer))
        self._waiting.add(waiting)
        connection.attend(stream, waiting)
        rtt_s = target.rtt_s
        ready = RelayReady(-1.0 if rtt_s is None else rtt_s * 1e3)
        connection.reply(stream, RELAYING.encode(ready), end=False)

    def _target(self, connection: Connection, peer: NodeId) -> Connection:
        """Return the link to the other end.

        Raises:
            MeshError: if this node does not relay to it.
        """
        if not self.is_willing:
            raise Forbidden("this node relays for nobody; ask another")
        target = self._hub.connection(peer)
        if connection.relay is not None or target is None or target.relay is not None:
            raise NotServing("this node has no direct link to both of you; ask another")
        self.budget.check(peer_of(connection), peer)
        return target

    def gave_up(self, waiting: _Waiting) -> None:
        """Forget one that asked and makes no use of the answer."""
        self._waiting.discard(waiting)

    def begin(self, waiting: _Waiting) -> None:
        """Call the other end, and join the two.

        Raises:
            MeshError: if that cannot be.
        """
        self._waiting.discard(waiting)
        target = self._target(waiting.connection, waiting.peer)
        asker = peer_of(waiting.connection)
        pair = Pair(self, self._clock)
        self.budget.begin(pair, asker, waiting.peer)
        try:
            called = RELAYING.encode(RelayedLink(pack_id(asker)))
            pair.other = _End(pair, target, waiting.peer)
            pair.other.stream = target.open(called, (), pair.other, end=False)
        except MeshError:
            self.budget.end(pair)
            raise
        pair.one = _End(pair, waiting.connection, asker, waiting.stream)
        waiting.connection.attend(waiting.stream, pair.one)
        self._pairs.add(pair)

    def ended(self, pair: Pair) -> None:
        """Forget a pair."""
        self._pairs.discard(pair)
        self.budget.end(pair)


class _Waiting:
    """A conversation of a node that was told that this one would relay."""

    def __init__(self, relay: Relay, connection: Connection, stream: int, peer: NodeId) -> None:
        self.connection = connection
        self.stream = stream
        self.peer = peer
        self._relay = relay
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(RELAY_BEGIN_S, self._too_late)

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take the wish to begin."""
        self._timer.cancel()
        try:
            if end or data.nbytes or not isinstance(RELAYING.decode(meta), BeginRelay):
                raise InvalidRequest("a relay is told to begin before it gets anything to pass on")
            self._relay.begin(self)
        except MeshError as error:
            self._relay.gave_up(self)
            self.connection.refuse(self.stream, error)
            self.connection.cancel(self.stream)

    def lost(self, error: MeshError) -> None:
        """Forget it."""
        del error
        self._timer.cancel()
        self._relay.gave_up(self)

    def _too_late(self) -> None:
        self._relay.gave_up(self)
        self.connection.refuse(self.stream, LinkLost("you did not begin in time; ask again"))
        self.connection.cancel(self.stream)


class Pair:
    """Two conversations that are one. It ends when either does."""

    one: _End
    other: _End

    def __init__(self, relay: Relay, clock: Clock) -> None:
        """Wait for both ends to be set."""
        self._relay = relay
        self._clock = clock
        self._over = False

    def passed(self, size_bytes: int) -> float:
        """Count what is passed on; return how long its sender has to wait for its credit, in seconds."""
        return self._relay.budget.take(self, size_bytes, self._clock.now())

    def opposite(self, end: _End) -> _End:
        """Return the other one of the two."""
        return self.other if end is self.one else self.one

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def end(self, error: MeshError, but: _End | None = None) -> None:
        """Give both streams up, and tell who is not gone already."""
        if self._over:
            return
        self._over = True
        self._relay.ended(self)
        for each in (self.one, self.other):
            each.stop()
            if each is not but:
                each.connection.refuse(each.stream, error)
                each.connection.cancel(each.stream)


class _End:
    """One end of a pair: its conversation's handler."""

    def __init__(self, pair: Pair, connection: Connection, peer: NodeId, stream: int = 0) -> None:
        self.connection = connection
        self.peer = peer
        self.stream = stream
        self.has_ended = False
        self._pair = pair
        self._due: deque[tuple[float, int]] = deque()  # credit of this end: when, and how much
        self._returning: asyncio.Task[None] | None = None

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Pass it on."""
        to = self._pair.opposite(self)
        self.has_ended = end
        if meta:
            self._pair.end(InvalidRequest("what is relayed has no messages"))
            return
        try:
            to.connection.reply(to.stream, b"", (data,) if data.nbytes else (), end=end)
        except (MeshError, ValueError) as error:
            self._pair.end(LinkLost(f"the other end takes nothing more: {error}"))
            return
        if end and to.has_ended:
            self._pair.end(LinkLost("both ends have ended"))
        elif data.nbytes:
            self._return_credit(to, data.nbytes, self._pair.passed(data.nbytes))

    def lost(self, error: MeshError) -> None:
        """Tell the other end."""
        self._pair.end(error, but=self)

    def stop(self) -> None:
        """Return no more credit."""
        if self._returning is not None:
            self._returning.cancel()

    def _return_credit(self, to: _End, size_bytes: int, wait_s: float) -> None:
        waits = wait_s > 0 or to.connection.queued_bytes(to.stream) > _QUEUED_BYTES
        if self._returning is None and not waits:
            self.connection.consumed(self.stream, size_bytes)
            return
        self._due.append((asyncio.get_running_loop().time() + wait_s, size_bytes))
        if self._returning is None:
            self._returning = asyncio.ensure_future(self._return_later(to))

    async def _return_later(self, to: _End) -> None:
        loop = asyncio.get_running_loop()
        while self._due:
            due_at, size_bytes = self._due[0]
            await to.connection.drained(to.stream, _QUEUED_BYTES)
            if (wait_s := due_at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            self._due.popleft()
            self.connection.consumed(self.stream, size_bytes, at_once=True)
        self._returning = None


def peer_of(connection: Connection) -> NodeId:
    """Return who is at the other end of an established connection."""
    assert connection.hello is not None
    return connection.hello.peer.node_id
