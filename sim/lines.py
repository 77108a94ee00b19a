"""What is on its way on streams: bytes that arrive in their order, sooner once a path has become easier.

A `Line` is one direction of one connection. When something is sent, the network says how late it comes,
and it never comes before what was sent earlier. That is only true as long as the path stays as it is. When
a rule is taken off, what waited under it must not wait on: a limit of bandwidth that is lifted lets its
queue go, a delay that is lifted lets what it held back arrive. So each time paths change, all that is on
its way on a path that has become easier is planned anew, in its order, and comes no later than before.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.impairments import Condition
    from meshnode.sim.network import Network


class Timetable(Protocol):
    """Where arrivals are scheduled: virtual time."""

    def now(self) -> float:
        """Return virtual seconds."""
        ...

    def at(self, time_s: float, call: Callable[..., object], *args: Any) -> object:
        """Run `call(*args)` at a time; equal times keep their order."""
        ...


class _Sent:
    """Something on its way."""

    __slots__ = ("arrives_at", "call", "has_arrived", "size_bytes")

    def __init__(
        self, arrives_at: float, size_bytes: int, call: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.arrives_at = arrives_at
        self.size_bytes = size_bytes
        self.call = (call, args)
        self.has_arrived = False


class Lines:
    """All lines of a world that have something on its way."""

    def __init__(self, network: Network, timetable: Timetable) -> None:
        """Begin with nothing on its way.

        Args:
            network: Says how late things come.
            timetable: Where they are scheduled.
        """
        self.network = network
        self.timetable = timetable
        self._busy: dict[Line, None] = {}

    def __repr__(self) -> str:
        return f"<Lines: {len(self._busy)} in use>"

    def paths_changed(self) -> None:
        """Plan anew what is on its way where the path has become easier."""
        for line in [*self._busy]:
            line.path_changed()

    def began(self, line: Line) -> None:
        """Note a line that has something on its way."""
        self._busy[line] = None

    def ended(self, line: Line) -> None:
        """Forget a line on which everything has arrived."""
        self._busy.pop(line, None)


class Line:
    """One direction of one connection."""

    __slots__ = (
        "_condition", "_is_gossip", "_last_arrival", "_lines", "_on_way", "_source", "_target",
    )  # fmt: skip

    def __init__(self, lines: Lines, source: str, target: str, *, is_gossip: bool = False) -> None:
        """Make one on which nothing is under way.

        Args:
            lines: Of its world.
            source: Key of the node that sends.
            target: Key of the other.
            is_gossip: Whether a delay of gossip counts here.
        """
        self._lines = lines
        self._source = source
        self._target = target
        self._is_gossip = is_gossip
        self._on_way: deque[_Sent] = deque()
        self._last_arrival = 0.0
        self._condition: Condition | None = None

    def __repr__(self) -> str:
        return f"<Line from {self._source} to {self._target}, {len(self._on_way)} under way>"

    def __len__(self) -> int:
        """Return how many things are on their way."""
        return len(self._on_way)

    def __bool__(self) -> bool:
        """A line is one, with nothing on it too."""
        return True

    def send(self, size_bytes: int, call: Callable[..., object], *args: Any) -> None:
        """Let something arrive as `call(*args)`, after all that was sent before it.

        Args:
            size_bytes: What it takes of the path's bandwidth.
            call: What its arrival is.
            args: With what.
        """
        now = self._lines.timetable.now()
        arrives_at = max(now + self._delay_s(size_bytes, now), self._last_arrival)
        self._last_arrival = arrives_at
        if not self._on_way:
            self._condition = self._lines.network.condition(self._source, self._target)
            self._lines.began(self)
        sent = _Sent(arrives_at, size_bytes, call, args)
        self._on_way.append(sent)
        self._lines.timetable.at(arrives_at, self._arrive, sent)

    def path_changed(self) -> None:
        """Plan anew what is on its way, if the path has become easier."""
        before = self._condition
        condition = self._condition = self._lines.network.condition(self._source, self._target)
        if before is None or not condition.eases(before):
            return
        timetable = self._lines.timetable
        now = timetable.now()
        earliest = now
        for sent in self._on_way:
            planned = now + self._delay_s(sent.size_bytes, now)
            earliest = max(earliest, min(sent.arrives_at, planned))
            if earliest < sent.arrives_at:
                sent.arrives_at = earliest
                timetable.at(earliest, self._arrive, sent)
        self._last_arrival = earliest

    def _delay_s(self, size_bytes: int, now: float) -> float:
        network = self._lines.network
        delay_s = network.stream_delay_s(self._source, self._target, size_bytes, now)
        if self._is_gossip:
            delay_s += network.extra_gossip_s(self._source, self._target)
        return delay_s

    def _arrive(self, sent: _Sent) -> None:
        if sent.has_arrived:
            return  # it came sooner than was planned at first
        sent.has_arrived = True
        # All before it have arrived: they were planned for no later, and equal times keep their order.
        self._on_way.popleft()
        if not self._on_way:
            self._lines.ended(self)
        call, args = sent.call
        call(*args)
