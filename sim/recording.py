"""Keeps what happens on a stage while a test plays on it, and makes a result of it.

The player (`meshnode.sim.running.playing`) knows beforehand what a scenario will do; a test decides as it
goes. So a recording looks at the nodes by itself once a second, notes the faults and calls that it is told
to make, and asks the invariants after everything that lets time pass.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.sim.faults import Release
from meshnode.sim.running.result import FaultMark, Result
from meshnode.sim.running.wording import fault_text
from meshnode.sim.trace import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.faults import Fault
    from meshnode.sim.invariants import Invariants
    from meshnode.sim.scenario.model import Scenario
    from meshnode.sim.stage import Call, Outcome, Sample, Stage

LOOK_EVERY_S: Final = 1.0
"""How often the nodes are looked at."""

MAX_LOOKS: Final = 3600
"""Looks that are kept: an hour's. After that a test is looked at no more, but the invariants are."""


class Recording:
    """What happened on a stage since `begin`.

    Attributes:
        calls: Each call with its outcome, None while it is open.
        samples: Looks at the nodes.
        marks: Faults done and undone.
    """

    def __init__(self, stage: Stage, scenario: Scenario, depth: str) -> None:
        """Record a stage that has not started yet."""
        self._stage = stage
        self._scenario = scenario
        self._depth = depth
        self._begin_s = 0.0
        self._cpu_began_s = time.process_time()
        self._open: dict[int, tuple[int, Callable[[Outcome], None]]] = {}
        self.calls: list[tuple[Call, Outcome | None]] = []
        self.samples: list[Sample] = []
        self.marks: list[FaultMark] = []

    @property
    def invariants(self) -> Invariants:
        """The stage's."""
        return self._stage.invariants

    def begin(self) -> None:
        """Take this moment as second 0, and begin to look at the nodes."""
        self._begin_s = self._stage.now()
        self.invariants.models = max(1, len(self._scenario.models))
        self._look()

    def now(self) -> float:
        """Return seconds since `begin`."""
        return self._stage.now() - self._begin_s

    def stage_time(self, time_s: float) -> float:
        """Return the stage's time of a second of the recording."""
        return self._begin_s + time_s

    def make(self, call: Call, on_end: Callable[[Outcome], None]) -> None:
        """Make a call now; it gets the next number.

        Args:
            call: What is asked.
            on_end: Told what became of it.
        """
        call = dataclasses.replace(call, number=len(self.calls), made_at_s=self.now())
        self._open[call.number] = (len(self.calls), on_end)
        self.calls.append((call, None))
        self.invariants.call_made(call)
        self._stage.send(call, self._ended)

    @property
    def open_calls(self) -> int:
        """Calls without an outcome."""
        return len(self._open)

    def mark(self, fault: Fault, *, undone: bool) -> None:
        """Note that a fault is done or undone now."""
        if isinstance(fault, Release) and not undone:
            self.invariants.models += 1
            self.invariants.falls_back.add(fault.model)
        self.marks.append(FaultMark(self.now(), fault.verb, fault_text(fault), undone))

    def result(self) -> Result:
        """Return what happened so far."""
        named = self.invariants.named
        return Result(
            scenario=msgspec.structs.replace(self._scenario, duration_s=max(self.now(), 1e-3)),
            depth=self._depth,
            seed=self._stage.seed,
            trace_hash=self._stage.trace.digest(),
            machines=tuple(self._stage.machines),
            calls=[*self.calls],
            samples=[*self.samples],
            marks=[*self.marks],
            events=[
                Record(
                    each.time_s - self._begin_s,
                    each.node,
                    each.kind,
                    named(each.subject),
                    named(each.detail),
                )
                for each in self._stage.trace.find()
            ],
            steps=[
                dataclasses.replace(step, time_s=step.time_s - self._begin_s)
                for step in self.invariants.last_steps()
            ],
            started_after_s=self._begin_s,
            simulated_s=self._stage.now(),
            cpu_s=time.process_time() - self._cpu_began_s,
        )

    def _ended(self, call: Call, outcome: Outcome) -> None:
        self.invariants.call_ended(call, outcome)
        at, on_end = self._open.pop(call.number)
        self.calls[at] = (call, outcome)
        on_end(outcome)

    def _look(self) -> None:
        sample = self._stage.sample()
        self.invariants.look(sample)
        if len(self.samples) < MAX_LOOKS:
            self.samples.append(dataclasses.replace(sample, time_s=sample.time_s - self._begin_s))
        self._stage.at(self._stage.now() + LOOK_EVERY_S, self._look)
