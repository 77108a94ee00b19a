"""A stage without a mesh: calls are answered after their work, faults are noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim.core_world import NotReachedError
from meshnode.sim.invariants import Invariants
from meshnode.sim.scenario.crew import crew
from meshnode.sim.scenario.model import Load, Model, Nodes, Place, Scenario, ServiceTime
from meshnode.sim.scheduler import Scheduler
from meshnode.sim.stage import OK, Call, NodeSample, Outcome, Sample
from meshnode.sim.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.faults import AnyFault, Fault
    from meshnode.sim.scenario.model import Expect
    from meshnode.sim.stage import Machine

START_S = 3.0


def small(
    *faults: AnyFault,
    expect: tuple[Expect, ...] = (),
    duration_s: float = 10.0,
    rate_per_s: float = 2.0,
) -> Scenario:
    """Return a scenario of two nodes with a steady load of 100 ms each."""
    service = ServiceTime(distribution="constant", mean_ms=100.0)
    return Scenario(
        name="small",
        duration_s=duration_s,
        regions={"dub": Place()},
        nodes=(Nodes(region="dub", name="n", count=2),),
        models=(Model(name="m", service=service),),
        load=(Load(model="m", shape="constant", rate_per_s=rate_per_s, deadline_ms=500.0),),
        faults=faults,
        expect=expect,
    )


class StandInStage:
    """A `Stage` that answers every call after its work.

    Attributes:
        told: What it was asked to do, with stage seconds.
        answers: How often each call is answered.
        closed: How often it was closed.
    """

    def __init__(self, scenario: Scenario, seed: int = 1, answers: int = 1) -> None:
        self.scenario = scenario
        self.seed = seed
        self.trace = Trace()
        self.machines: Sequence[Machine] = crew(scenario)
        self.scheduler = Scheduler()
        self.invariants = Invariants(seed, self.now)
        self.told: list[tuple[float, str, Fault]] = []
        self.answers = answers
        self.closed = 0
        self._open = 0

    def start(self, progress: Callable[[str], None]) -> None:
        progress("it starts")
        self.run_to(START_S)

    def now(self) -> float:
        return self.scheduler.now()

    def at(self, time_s: float, call: Callable[..., object], *args: object) -> None:
        self.scheduler.at(time_s, call, *args)

    def run_to(self, time_s: float) -> None:
        self.scheduler.run_to(time_s)

    def apply(self, fault: Fault) -> None:
        self.told.append((self.now(), "do", fault))

    def undo(self, fault: Fault) -> None:
        self.told.append((self.now(), "undo", fault))

    def unsupported(self, fault: Fault) -> str | None:
        return "it has no clocks" if fault.verb == "clock-jump" else None

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        self._open += 1
        outcome = Outcome(OK, call.work_s, call.gateway, 1, version=1)
        for _ in range(self.answers):
            self.scheduler.after(call.work_s, self._answer, call, outcome, done)

    def _answer(self, call: Call, outcome: Outcome, done: Callable[[Call, Outcome], None]) -> None:
        self._open -= 1
        done(call, outcome)

    def sample(self) -> Sample:
        up = NodeSample("up", alive=len(self.machines), busy=0.5, slots=2, serving=1)
        return Sample(self.now(), {machine.name: up for machine in self.machines})

    def settle(self, limit_s: float) -> None:
        self.run_to(self.now() + limit_s)
        if self._open > 0:
            raise NotReachedError(f"{self._open} calls are open (seed {self.seed})")

    def close(self) -> None:
        self.closed += 1
