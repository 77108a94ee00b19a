"""Watches one boot of one node's cores: what they are told, and what they want done.

It puts itself in the place of `Node.handle` and `Node.commit` of that one instance, which is all that
any driver calls, virtual or real.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, NoReturn

from meshnode.effects import Effect, Emit, StartTimer
from meshnode.events import DatagramReceived, Event, NoteReceived, TimerFired
from meshnode.membership.timers import SuspicionExpired
from meshnode.node import LoadSampled, ReconcileDue, ReplicaChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership.messages import Incarnation
    from meshnode.node import Node
    from meshnode.sim.flight_watch import FlightWatch
    from meshnode.sim.running.result import Step
    from meshnode.state.desired import Draft
    from meshnode.types import NodeId

MAX_STEPS: Final = 2_000
"""Steps kept for the timeline of a failure: some seconds of a hundred nodes in trouble."""

TIMER_FLOOR: Final = 16
"""Timers of one kind that a node may have at once, whoever is there: probes and dials that overlap."""

TIMERS_PER_MEMBER: Final = 4
"""Timers of one kind per member: a suspicion has one for each of four accusers."""

MAX_RHYTHMS: Final = 2
"""Timers at once of a kind that has no parameters: the one that runs, and one that was overtaken."""

_SAME_TIME_S: Final = 1e-6  # rounding of sums of seconds

_ENDS_SUSPICION: Final = frozenset(
    f"member.{what}" for what in ("alive", "refuted", "updated", "left", "evicted", "conflict")
)


class Steps:
    """What nodes were told last, routine left out."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Keep nothing yet; `now` are stage seconds."""
        self._now = now
        self._kept: deque[tuple[float, str, object]] = deque(maxlen=MAX_STEPS)

    def __repr__(self) -> str:
        return f"<Steps: {len(self._kept)} kept>"

    def take(self, node: str, event: Event) -> None:
        """Keep an event, unless it is one that a healthy mesh sees all the time."""
        if isinstance(event, TimerFired):
            if isinstance(event.timer, SuspicionExpired | ReconcileDue):
                self._kept.append((self._now(), node, event.timer))
        elif not isinstance(event, DatagramReceived | NoteReceived | LoadSampled):
            self._kept.append((self._now(), node, event))

    def steps(self) -> list[Step]:
        """Return what was kept, oldest first, in words."""
        from meshnode.sim.running.result import Step

        return [Step(time_s, node, _words(what)) for time_s, node, what in self._kept]


@dataclass(slots=True)
class _Suspicion:
    """A suspect's time, as the papers give it.

    Attributes:
        incarnation: In which it is accused.
        began: When, in the node's seconds.
        size: Live members then.
        accusers: Beside the first.
        due: When the timer that counts is due.
    """

    incarnation: Incarnation
    began: float
    size: int
    accusers: int
    due: float


class NodeWatch:
    """One boot of one node.

    Attributes:
        node: Its cores.
        flights: What its gateway has sent.
    """

    def __init__(
        self,
        name: str,
        node: Node,
        flights: FlightWatch,
        steps: Steps,
        incarnations: dict[str, tuple[int, int]],
        broken: Callable[[str, str], NoReturn],
    ) -> None:
        """Take the place of the cores' doors.

        Args:
            name: The node's name.
            node: Its cores, which were not told anything yet.
            flights: The watch of its gateway.
            steps: Where to keep what it is told.
            incarnations: The last of all nodes, across boots; kept up to date.
            broken: Reports an invariant and what was seen; raises.
        """
        self.node = node
        self.flights = flights
        self._name = name
        self._steps = steps
        self._incarnations = incarnations
        self._broken = broken
        self._record: object = None
        self._timers: Counter[type] = Counter()
        self._suspicions: dict[NodeId, _Suspicion] = {}
        self._handle = node.handle
        self._commit = node.commit
        # An instance's own attribute hides the method of its class.
        node.handle = self.handle  # type: ignore[method-assign]
        node.commit = self.commit  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<NodeWatch of {self._name}: {self._timers.total()} timers>"

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Tell the cores of an event, and check what they make of it."""
        self._steps.take(self._name, event)
        if isinstance(event, TimerFired):
            self._timers[type(event.timer)] -= 1
        try:
            effects = self._handle(event, now, wall_s)
        except Exception as error:  # noqa: BLE001 - whatever a core raises is reported, and raised
            self._raised(event, error)
        if effects:
            self._look_through(effects, now)
        if self.node.membership.record is not self._record:
            self._look_at_incarnation()
        return effects

    def commit(self, draft: Draft, now: float) -> list[Effect]:
        """Let a draft count, and check what the cores make of it."""
        effects = self._commit(draft, now)
        self._look_through(effects, now)
        return effects

    def look(self) -> None:
        """Check that timers have not piled up."""
        members = len(self.node.membership.members)
        for kind, count in self._timers.items():
            allowed = TIMER_FLOOR + TIMERS_PER_MEMBER * members if fields(kind) else MAX_RHYTHMS
            if count > allowed:
                self._broken(
                    "no-leak",
                    f"{self._name} has {count} timers {kind.__name__}; allowed are {allowed}",
                )

    def _raised(self, event: Event, error: Exception) -> NoReturn:
        if hasattr(error, "invariant"):  # another watch's finding
            raise error
        said = f"{type(error).__name__}: {error}"
        try:
            self._broken("no-error", f"{self._name}, handling {_words(event)}, raised {said}")
        except AssertionError as found:
            raise found from error

    def _look_at_incarnation(self) -> None:
        record = self.node.membership.record
        self._record = record
        found, before = record.incarnation, self._incarnations.get(self._name)
        if before is not None and found < before:
            was = ".".join(map(str, before))
            self._broken(
                "incarnation-never-falls", f"{self._name} was {was} and calls itself {found}"
            )
        self._incarnations[self._name] = found

    def _look_through(self, effects: list[Effect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, StartTimer):
                self._timers[type(effect.timer)] += 1
                if isinstance(effect.timer, SuspicionExpired):
                    self._time_given(effect.timer, now)
            elif isinstance(effect, Emit) and effect.kind.startswith("member."):
                self._told_of(effect, now)

    # Suspicions.

    def _time_given(self, timer: SuspicionExpired, now: float) -> None:
        """A suspect has its time, or less of it because somebody else accuses it too."""
        known = self._suspicions.get(timer.node_id)
        if known is not None and known.incarnation == timer.incarnation and timer.due <= known.due:
            known.accusers += 1
            known.due = timer.due
        else:
            size = self.node.membership._table.size
            known = _Suspicion(timer.incarnation, now, size, 0, timer.due)
            self._suspicions[timer.node_id] = known
        least_s = self._least_s(known.size, known.accusers)
        if timer.due - known.began < least_s - _SAME_TIME_S:
            self._broken(
                "suspicion-time",
                f"{self._name} gives {self._name_of(timer.node_id)} "
                f"{timer.due - known.began:.3f} s to refute; with {known.accusers} further accusers "
                f"among {known.size} members it has {least_s:.3f} s",
            )

    def _told_of(self, emit: Emit, now: float) -> None:
        from meshnode.types import NodeId

        subject = NodeId(emit.subject)
        if emit.kind == "member.dead":
            known = self._suspicions.pop(subject, None)
            if emit.detail != _EXPIRED:
                return  # another node's word
            if known is None or now < known.due - _SAME_TIME_S:
                early = "did not suspect" if known is None else "gave more time"
                self._broken(
                    "suspicion-time",
                    f"{self._name} holds {self._name_of(subject)} for dead, which it {early}",
                )
        elif emit.kind in _ENDS_SUSPICION:
            self._suspicions.pop(subject, None)

    def _least_s(self, size: int, accusers: int) -> float:
        """Return a suspect's time, in seconds (Dadgar et al. 2018, section IV-B)."""
        config = self.node.membership._config
        least = config.suspicion_multiplier * max(1.0, math.log10(size)) * config.probe_interval_s
        wanted = config.suspicion_confirmations if config.lifeguard else 0
        if size - 2 < wanted or wanted == 0:
            return least
        most = least * config.suspicion_max_multiplier
        return max(least, most - (most - least) * math.log(accusers + 1) / math.log(wanted + 1))

    def _name_of(self, node: NodeId) -> str:
        member = self.node.membership.members.get(node)
        return member.record.name if member is not None else node


_EXPIRED: Final = "did not refute in time"


def _words(what: object) -> str:
    """Return an event or a timer in words; long fields are cut."""
    event = what.timer if isinstance(what, TimerFired) else what
    if isinstance(event, ReplicaChanged):
        manifest = event.manifest
        return (
            f"{manifest.model} version {manifest.version} is {event.state} {event.reason}".rstrip()
        )
    if isinstance(event, SuspicionExpired):
        return f"the time of suspect {event.node_id} is over"
    if isinstance(event, ReconcileDue):
        return "looks which models should run here"
    text = repr(event)
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}..."


_MAX_WORDS: Final = 160
