"""Watches one boot of one node's cores: what they are told, and what they want done.

It puts itself in the place of `Node.handle` and `Node.commit` of that one instance, which is all that
any driver calls, virtual or real.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import fields
from typing import TYPE_CHECKING, Final, NoReturn

from meshnode.effects import Effect, StartTimer
from meshnode.events import DatagramReceived, Event, NoteReceived, TimerFired
from meshnode.membership.timers import SuspicionExpired
from meshnode.node_events import LoadSampled
from meshnode.reconcile_loop import ReconcileDue
from meshnode.sim.step_words import kind_of, words
from meshnode.sim.suspicion_watch import SuspicionWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.node import Node
    from meshnode.sim.flight_watch import FlightWatch
    from meshnode.sim.running.result import Step
    from meshnode.state.desired import Draft

MAX_STEPS: Final = 2_000
"""Steps kept for the timeline of a failure: some seconds of a hundred nodes in trouble."""

TIMER_FLOOR: Final = 16
"""Timers of one kind that a node may have at once, whoever is there: probes and dials that overlap."""

TIMERS_PER_MEMBER: Final = 4
"""Timers of one kind per member: a suspicion has one for each of four accusers."""

MAX_RHYTHMS: Final = 2
"""Timers at once of a kind that has no parameters: the one that runs, and one that was overtaken."""


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

    def steps(self, named: Callable[[str], str]) -> list[Step]:
        """Return what was kept, oldest first, in words.

        Args:
            named: Puts the names of nodes in the place of their ids.
        """
        from meshnode.sim.running.result import Step

        return [
            Step(time_s, node, named(words(told)), kind_of(told))
            for time_s, node, told in self._kept
        ]


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
        self._suspicions = SuspicionWatch(name, node, broken)
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
            self._look_through(effects)
        if self.node.membership.record is not self._record:
            self._look_at_incarnation()
        return effects

    def commit(self, draft: Draft, now: float) -> list[Effect]:
        """Let a draft count, and check what the cores make of it."""
        effects = self._commit(draft, now)
        self._look_through(effects)
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
            self._broken("no-error", f"{self._name}, handling {kind_of(event)!r}, raised {said}")
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

    def _look_through(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, StartTimer):
                self._timers[type(effect.timer)] += 1
