"""Which chunks of a version to ask of whom: a pure core.

A transfer knows *pieces* (all chunks of all files that are missing, numbered through) and *sources*
(nodes, each with what it has, as the bits of a number). Events go in, `Ask` and `Cancel` come out.

Several nodes mostly fetch the same version at the same time, because it was deployed to all of them.
If each fetched all of it from the one that has it, that one would send as many copies. So:

- Each node that fetches has a *share* of the pieces: every n-th, where n nodes fetch, by its rank among
  them. Of complete sources it asks for its own share only; the others' come from them, as they get
  them: whoever fetches also sends. Shares are worked out anew whenever a node comes or goes.
- Where complete sources are as many as nodes that fetch, nobody has to spare them: all pieces are of
  the own share.
- A node that could get nothing new from others for `STEAL_AFTER_S` takes a piece of theirs from a
  complete source after all, one at a time: a slow or dead node delays nobody for long.

A piece is asked of a second source if the first is late with it; the first that arrives counts. A
source that fails is left alone for longer and longer, and after `GIVE_UP_AFTER` in a row until it says
again what it has; one that sends a wrong chunk is asked for nothing any more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.limits import FETCH_STALL_S, MAX_CHUNKS_ASKED, MAX_CHUNKS_UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from meshnode.types import NodeId

STEAL_AFTER_S: Final = 0.5
"""Seconds without anything new from nodes that fetch too: ten chunks' time on a 20 MB/s link."""

SLOW_S: Final = 2.0
"""Seconds for a chunk from which on a node may count as slow: sixteen nodes that fetch share a link of
20 MB/s fairly, each with three chunks under way, at 2.4 s for each."""

LATE_S: Final = 4.0
"""Seconds after which a chunk is asked of another source too: 1 MiB at 2 Mbit/s."""

LAST_LATE_S: Final = 0.5
"""The same once nothing else is left to ask for, at least; then four times what the quickest source takes."""

GIVE_UP_AFTER: Final = 5
"""Failures of one source in a row; with the pauses between them some eight seconds."""

_PAUSE_S: Final = 0.5  # after the first failure of a source; doubles with each further one
_MEMORY: Final = 0.3  # weight of a new measurement of how long a source takes


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a node for a piece."""

    node: NodeId
    piece: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Wait no more for a piece from a node: it came from another one."""

    node: NodeId
    piece: int


@dataclass(slots=True)
class _Source:
    node: NodeId
    is_heard: bool = False
    has: int = 0  # its pieces, as bits
    is_complete: bool = False
    is_fetching: bool = False
    queue: deque[int] = field(
        default_factory=deque
    )  # pieces to ask it for; of incomplete ones only
    under_way: dict[int, float] = field(default_factory=dict)  # by piece: when it was asked
    took_s: float | None = None  # EWMA of how long a piece takes
    failures: int = 0
    not_before: float = float("-inf")
    is_bad: bool = False  # it sent something wrong

    @property
    def is_out(self) -> bool:
        """Whether it is asked for nothing: for good, or until it says again what it has."""
        return self.is_bad or self.failures >= GIVE_UP_AFTER

    def __repr__(self) -> str:
        kind = "complete" if self.is_complete else f"{self.has.bit_count()} pieces"
        return f"<{self.node} {kind}, {len(self.under_way)} under way>"


class Transfer:
    """The fetch of one version.

    Attributes:
        reasons: Why sources failed last, by node.
        received_bytes: Of the pieces that were missing at the start.
    """

    def __init__(
        self, me: NodeId, sizes: Sequence[int], missing: Iterable[int], now: float
    ) -> None:
        """Begin.

        Args:
            me: The node that fetches.
            sizes: Length of each piece in bytes.
            missing: The pieces to fetch.
            now: Monotonic seconds, as in all events.
        """
        self.reasons: dict[NodeId, str] = {}
        self.received_bytes = 0
        self._me = me
        self._sizes = sizes
        self._missing = dict.fromkeys(missing)  # ordered, and quick to ask
        self._sources: dict[NodeId, _Source] = {}
        self._askers: dict[int, int] = {}  # by piece: of how many sources it is asked now
        self._own: deque[int] = deque()
        self._others: deque[int] = deque()
        self._share = (-1, 0)
        self._progress_at = now
        self._fed_at = now  # when anything was last to be had from nodes that fetch too
        self._deal()

    def __repr__(self) -> str:
        return f"<Transfer: {len(self._missing)} pieces missing, {[*self._sources.values()]}>"

    @property
    def is_done(self) -> bool:
        """Whether all pieces are here."""
        return not self._missing

    def why_hopeless(self, now: float) -> str | None:
        """Say why this cannot succeed as things are, or None while it may."""
        if self.is_done:
            return None
        if now - self._progress_at >= FETCH_STALL_S:
            return f"nothing arrived for {FETCH_STALL_S:g} s"
        for source in self._sources.values():
            may_come = not source.is_heard or source.has or source.is_fetching
            if source.under_way or (may_come and not source.is_out):
                return None
        return "no node has what is missing"

    # Events

    def joined(self, node: NodeId, *, is_fetching: bool) -> None:
        """A node may be a source; what it has is not known yet.

        Args:
            node: The node.
            is_fetching: Whether the version is placed there too: then it is taken to fetch it, until it
                says what it has.
        """
        if node not in self._sources:
            self._sources[node] = _Source(node, is_fetching=is_fetching)
            self._deal()

    def heard(
        self, node: NodeId, has: int, *, is_complete: bool, is_fetching: bool, now: float
    ) -> list[Ask | Cancel]:
        """A node says which pieces it has.

        Args:
            node: A source that has joined.
            has: The pieces, as bits.
            is_complete: Whether it has all files.
            is_fetching: Whether it receives some of them now.
            now: Monotonic seconds.
        """
        source = self._sources[node]
        news = has & ~source.has
        source.is_heard, source.has, source.failures = True, has, 0
        source.is_complete, source.is_fetching = is_complete, is_fetching
        if is_complete:
            source.queue.clear()
        else:
            source.queue.extend(piece for piece in _bits(news) if piece in self._missing)
        self._deal()
        return self._ask(now)

    def failed(
        self, node: NodeId, piece: int | None, reason: str, now: float
    ) -> list[Ask | Cancel]:
        """A node did not send a piece, or did not say what it has (`piece` is None)."""
        source = self._sources[node]
        self.reasons[node] = reason
        source.failures += 1
        source.not_before = now + _PAUSE_S * 2.0 ** (source.failures - 1)
        if piece is not None:
            self._give_back(source, piece)
        self._deal()
        return self._ask(now)

    def corrupt(self, node: NodeId, piece: int, reason: str, now: float) -> list[Ask | Cancel]:
        """A node sent something else than the piece: it is asked for nothing any more."""
        self._sources[node].is_bad = True
        return self.failed(node, piece, reason, now)

    def left(self, node: NodeId, reason: str, now: float) -> list[Ask | Cancel]:
        """A node has nothing of this version, and says so."""
        source = self._sources[node]
        self.reasons[node] = reason
        source.is_heard, source.has = True, 0
        source.is_complete = source.is_fetching = False
        source.queue.clear()
        self._deal()
        return self._ask(now)

    def arrived(self, node: NodeId, piece: int, now: float) -> list[Ask | Cancel]:
        """A piece came, was verified and kept."""
        source = self._sources[node]
        asked_at = source.under_way.pop(piece, now)
        took_s = now - asked_at
        source.took_s = (
            took_s if source.took_s is None else source.took_s + _MEMORY * (took_s - source.took_s)
        )
        source.failures = 0
        self._deal()
        if piece in self._missing:
            del self._missing[piece]
            self.received_bytes += self._sizes[piece]
            self._progress_at = now
            if not source.is_complete and source.node not in self._slow(now):
                self._fed_at = now
        others = [each for each in self._sources.values() if piece in each.under_way]
        for other in others:
            del other.under_way[piece]
        self._askers.pop(piece, None)
        return [Cancel(other.node, piece) for other in others] + self._ask(now)

    def tick(self, now: float) -> list[Ask | Cancel]:
        """Time has passed: see who is late, and whom one may ask again."""
        return self._ask(now)

    # Shares

    def _deal(self) -> None:
        """Work out which pieces are this node's own share; cheap if nothing has changed."""
        fetching = [self._me]
        complete = 0
        for source in self._sources.values():
            if source.is_out:
                continue
            if source.is_complete:
                complete += 1
            elif source.is_fetching and not source.failures:
                fetching.append(source.node)
        fetching.sort()
        count = len(fetching) if complete < len(fetching) else 1
        share = (fetching.index(self._me) if count > 1 else 0, count)
        if share == self._share:
            return
        self._share = share
        rank, count = share
        free = [piece for piece in self._missing if piece not in self._askers]
        self._own = deque(piece for piece in free if piece % count == rank)
        self._others = deque(piece for piece in free if piece % count != rank)
        self._others.rotate(-(len(self._others) * rank // count))

    # Choosing

    def _ask(self, now: float) -> list[Ask | Cancel]:
        asks: list[Ask | Cancel] = []
        room = MAX_CHUNKS_UNDER_WAY - sum(len(each.under_way) for each in self._sources.values())
        while room > 0 and (found := self._next(now)) is not None:
            source, piece = found
            source.under_way[piece] = now
            self._askers[piece] = self._askers.get(piece, 0) + 1
            asks.append(Ask(source.node, piece))
            room -= 1
        return asks

    def _next(self, now: float) -> tuple[_Source, int] | None:
        """Return whom to ask next for what: of the least busy source whatever it has for us."""
        slow = self._slow(now)
        idle = [
            each
            for each in self._sources.values()
            if not each.is_out
            and each.has
            and each.not_before <= now
            and len(each.under_way) < (1 if each.node in slow else MAX_CHUNKS_ASKED)
        ]
        idle.sort(key=lambda each: (len(each.under_way), each.took_s or 0.0, each.node))
        for source in idle:
            piece = self._free(self._own if source.is_complete else source.queue)
            if piece is not None:
                if not source.is_complete and source.node not in slow:
                    self._fed_at = now
                return source, piece
        for source in idle:
            if source.is_complete and self._may_steal(source, now):
                piece = self._free(self._others)
                if piece is not None:
                    return source, piece
        return self._late(idle, now)

    def _slow(self, now: float) -> frozenset[NodeId]:
        """Return the sources that take far longer than the quickest; nobody waits for those."""
        times: dict[NodeId, float] = {}
        for source in self._sources.values():
            if source.took_s is not None or source.under_way:
                waits_s = now - min(source.under_way.values(), default=now)
                times[source.node] = max(source.took_s or 0.0, waits_s)
        limit_s = min(LATE_S, max(SLOW_S, 4 * min(times.values(), default=0.0)))
        return frozenset(node for node, took_s in times.items() if took_s > limit_s)

    def _free(self, queue: deque[int]) -> int | None:
        """Take the next piece of a queue that is missing and asked of nobody."""
        while queue:
            piece = queue.popleft()
            if piece in self._missing and piece not in self._askers:
                return piece
        return None

    def _may_steal(self, source: _Source, now: float) -> bool:
        return not source.under_way and now - self._fed_at >= STEAL_AFTER_S

    def _late(self, idle: Sequence[_Source], now: float) -> tuple[_Source, int] | None:
        """Return a piece that another source is late with, if an idle one has it."""
        limit_s = LATE_S
        if len(self._askers) == len(self._missing):
            quickest = min(
                (each.took_s for each in idle if each.took_s is not None), default=LATE_S
            )
            limit_s = min(LATE_S, max(LAST_LATE_S, 4 * quickest))
        for slow in self._sources.values():
            for piece, asked_at in slow.under_way.items():
                if now - asked_at < limit_s or self._askers[piece] > 1:
                    continue
                for source in idle:
                    if source is not slow and source.has >> piece & 1 and not source.under_way:
                        return source, piece
        return None

    def _give_back(self, source: _Source, piece: int) -> None:
        """Make a piece free again that a source did not send."""
        if source.under_way.pop(piece, None) is None or piece not in self._askers:
            return
        self._askers[piece] -= 1
        if self._askers[piece]:
            return
        del self._askers[piece]
        rank, count = self._share
        (self._own if piece % count == rank else self._others).append(piece)
        for other in self._sources.values():
            if not other.is_complete and other.has >> piece & 1:
                other.queue.append(piece)


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def companions(nodes: Sequence[NodeId], me: NodeId) -> tuple[NodeId, ...]:
    """Return the other nodes of a placement in the order in which to fetch from them.

    Each node begins elsewhere: with its neighbours, then at twice the distance, and so on. So where
    there are more than anybody asks, the files still reach all in few steps.
    """
    if me not in nodes:
        return tuple(nodes)
    place, count = nodes.index(me), len(nodes)
    ordered: dict[NodeId, None] = {}
    step = 1
    while step < count:
        for distance in (step, -step):
            ordered.setdefault(nodes[(place + distance) % count])
        step *= 2
    for node in nodes:
        ordered.setdefault(node)
    return tuple(node for node in ordered if node != me)
