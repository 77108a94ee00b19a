"""What a run has shown: every call, how nodes fared, what happened, and the figures made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.sim.scenario.model import Expect, Scenario
    from meshnode.sim.stage import Call, Machine, Outcome, Sample
    from meshnode.sim.trace import Record


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold.

    Attributes:
        invariant: Its name in `meshnode.sim.invariants`.
        message: What was seen, and where.
        time_s: When, in seconds after the load began (negative while the mesh started).
    """

    invariant: str
    message: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something that was expected holds: the figure that was found."""

    expect: Expect
    found: float
    holds: bool


@dataclass(frozen=True, slots=True)
class FaultMark:
    """A fault that was done or undone, for timelines: when, what in words, and whether it was the undoing."""

    time_s: float
    verb: str
    text: str
    undone: bool = False


@dataclass(slots=True)
class Result:
    """One run.

    Attributes:
        scenario: What was played.
        depth: At which depth.
        seed: With which seed.
        policy: Who chose replicas: `mesh`, or one of `meshnode.sim.policies`.
        trace_hash: The same for the same scenario, depth, seed, policy and version; "" at depth C.
        machines: Who was there.
        calls: Every call with its outcome, in the order of their making. One without an outcome has None:
            a run that was broken off.
        samples: Looks at all nodes, in order.
        marks: Faults done and undone.
        events: What nodes reported (joins, deaths, deployments ...), times as in `calls`.
        violations: Invariants that did not hold; the run ends with the first.
        verdicts: What was expected.
        started_after_s: Stage seconds that the mesh took to start.
        simulated_s: Stage seconds in all.
        cpu_s: Seconds of CPU that the run took.
    """

    scenario: Scenario
    depth: str
    seed: int
    policy: str = "mesh"
    trace_hash: str = ""
    machines: tuple[Machine, ...] = ()
    calls: list[tuple[Call, Outcome | None]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    marks: list[FaultMark] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    started_after_s: float = 0.0
    simulated_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all invariants and all that was expected hold."""
        return not self.violations and all(verdict.holds for verdict in self.verdicts)
