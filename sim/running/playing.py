"""Plays a scenario on a stage: lets the mesh start, sends the calls, does the faults, looks, judges.

    result = play(read("region-loss"), seed=7)
    assert result.ok, failure(result)

A run goes through these phases:

| phase | what happens | a failure is |
|---|---|---|
| start | all nodes boot and find each other, the models become ready | `starts` |
| load | second 0 to `duration_s`: calls and faults at their times; a look at all nodes every second, or 300 in all | an invariant's name |
| end | the last look of the load | |
| heal | faults that stand are undone; who crashed, left or lost its power stays away | |
| settle | calls end, views come to agree | `views-agree`, or an invariant's name |
| judge | what the scenario expects is compared with what was seen during the load | `expect` |

Settling on a healed network is what makes "views agree when quiet" mean something: whatever happened,
once it stops, the mesh must find together by itself.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meshnode.errors import UsageError
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.faults import Crash, Leave, PowerOff, RegionDown, Release
from meshnode.sim.invariants import InvariantBroken
from meshnode.sim.running.expectations import judge
from meshnode.sim.running.result import METRICS, FaultMark, Result, Violation
from meshnode.sim.running.wording import fault_text
from meshnode.sim.scenario.arrivals import calls
from meshnode.sim.scenario.checks import check
from meshnode.sim.trace import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.sim.faults import Fault
    from meshnode.sim.scenario.model import Scenario
    from meshnode.sim.stage import Call, Outcome, Stage

    Progress = Callable[[str, float], None]
    """Told what goes on, and which share of it is done, 0 to 1."""

MAX_LOOKS: Final = 300
"""Looks at all nodes during the load: as many points as a chart can show."""

SETTLE_LIMIT_S: Final = 600.0
"""Stage seconds in which a healed mesh must agree: the dead of a long partition are dialled at
intervals that grow to a minute, and each meeting may lead to another."""

REAL_SETTLE_LIMIT_S: Final = 120.0
"""The same at depth C, where somebody waits."""

_AWAY: Final = (Crash, PowerOff, Leave, RegionDown)
"""Faults that nobody undoes at the end: a mesh must agree without those that are gone."""


def play(
    scenario: Scenario,
    *,
    depth: str | None = None,
    seed: int | None = None,
    policy: str = "mesh",
    source: str = "",
    progress: Progress | None = None,
    stage: Stage | None = None,
) -> Result:
    """Play a scenario.

    Args:
        scenario: What is played.
        depth: At which depth; None for the scenario's own.
        seed: With which seed; None for the scenario's own.
        policy: Who chooses between replicas.
        source: Where the scenario was read from, for the command that replays it.
        progress: Told how far it is.
        stage: To play on, instead of one made for the depth; it is closed in any case.

    Returns:
        What happened. Ctrl-C ends a run early (`Result.broken_off`).

    Raises:
        UsageError: if the scenario has a mistake, or the depth cannot do one of its faults.
    """
    depth = depth or scenario.depth
    seed = scenario.seed if seed is None else seed
    check(scenario, METRICS)
    stage = stage or stage_for(depth, scenario, seed, policy)
    result = Result(scenario, depth, seed, policy, source, machines=tuple(stage.machines))
    try:
        _require_support(stage, scenario, depth)
        _Run(stage, result, progress or (lambda _what, _share: None)).play()
    finally:
        stage.close()
    return result


def stage_for(depth: str, scenario: Scenario, seed: int, policy: str = "mesh") -> Stage:
    """Make a stage; what it needs is imported only now.

    Raises:
        UsageError: if there is no such depth, or it has no such policy.
    """
    if depth == "A":
        from meshnode.sim.core_stage import CoreStage

        return CoreStage(scenario, seed, policy=policy)
    if depth == "B":
        from meshnode.sim.virtual.stage import VirtualStage

        return VirtualStage(scenario, seed, policy)
    if policy != "mesh":
        raise UsageError(f"policy {policy!r} cannot be played at depth {depth}, which has 'mesh'")
    if depth == "C":
        from meshnode.sim.processes.stage import ProcessStage

        return ProcessStage(scenario, seed)
    raise UsageError(f"there is no depth {depth!r}; there are A, B and C")


def _require_support(stage: Stage, scenario: Scenario, depth: str) -> None:
    for fault in scenario.faults:
        reason = stage.unsupported(fault)
        if reason is not None:
            raise UsageError(
                f"depth {depth} cannot do {fault.verb!r} at {fault.at_s:g} s: {reason}; play it at "
                "another depth (--depth), or leave it out"
            )


class _Run:
    """One run: what is under way."""

    def __init__(self, stage: Stage, result: Result, progress: Progress) -> None:
        self._stage = stage
        self._result = result
        self._progress = progress
        self._places: dict[int, int] = {}  # of a call's number in the result
        self._standing: list[Fault] = []
        self._raised: Exception | None = None
        self._began_s = 0.0
        self._duration_s = result.scenario.duration_s

    def play(self) -> None:
        """Go through all phases, as far as they go."""
        cpu_before_s = time.process_time()
        try:
            self._phases()
        except KeyboardInterrupt:
            self._result.broken_off = True
        except UsageError:
            raise
        except InvariantBroken as broken:
            self._violated(broken.invariant, broken.what, broken.time_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run has failed with it
            self._violated(
                getattr(error, "invariant", "no-error"), _with_place(error), self._stage.now()
            )
        self._finish()
        self._result.cpu_s = time.process_time() - cpu_before_s

    def _phases(self) -> None:
        stage = self._stage
        try:
            stage.start(lambda what: self._progress(what, 0.0))
        except NotReachedError as error:
            self._violated("starts", str(error), stage.now())
            return
        self._began_s = self._result.started_after_s = stage.now()
        scenario = self._result.scenario
        releases = [fault for fault in scenario.faults if isinstance(fault, Release)]
        stage.invariants.models = len(scenario.models) + len(releases)
        stage.invariants.falls_back = {fault.model for fault in releases if fault.release}
        self._schedule()
        self._load()
        self._heal()
        self._progress("calls end and views come to agree", 1.0)
        try:
            stage.settle(REAL_SETTLE_LIMIT_S if self._result.depth == "C" else SETTLE_LIMIT_S)
        except NotReachedError as error:
            self._raise_first()
            stage.invariants.all_answered()
            self._violated("views-agree", str(error), stage.now())
            return
        self._raise_first()
        stage.invariants.quiet()
        self._look()

    def _violated(self, invariant: str, message: str, stage_s: float) -> None:
        self._result.violations.append(Violation(invariant, message, stage_s - self._began_s))

    # What is to happen.

    def _schedule(self) -> None:
        scenario, stage = self._result.scenario, self._stage
        for fault in sorted(scenario.faults, key=lambda fault: fault.at_s):
            stage.at(self._began_s + fault.at_s, self._guarded, self._do, fault)
            if fault.for_s is not None:
                at_s = self._began_s + fault.at_s + fault.for_s
                stage.at(at_s, self._guarded, self._undo, fault)
        self._next_call(calls(scenario, self._result.seed))

    def _next_call(self, coming: Iterator[Call]) -> None:
        """Schedule one call after the other: a day of them at once would fill the memory."""
        call = next(coming, None)
        if call is not None:
            at_s = self._began_s + call.made_at_s
            self._stage.at(at_s, self._guarded, self._make, call, coming)

    def _guarded(self, action: Callable[..., None], *args: object) -> None:
        """Act, and keep what is raised: a stage's loop may swallow it."""
        try:
            action(*args)
        except Exception as error:
            if self._raised is None:
                self._raised = error
            raise

    def _make(self, call: Call, coming: Iterator[Call]) -> None:
        self._next_call(coming)
        self._places[call.number] = len(self._result.calls)
        self._result.calls.append((call, None))
        self._stage.invariants.call_made(call)
        self._stage.send(call, self._ended)

    def _ended(self, call: Call, outcome: Outcome) -> None:
        self._guarded(self._stage.invariants.call_ended, call, outcome)
        self._result.calls[self._places[call.number]] = (call, outcome)

    def _do(self, fault: Fault) -> None:
        self._mark(fault, undone=False)
        if fault.can_be_undone:
            self._standing.append(fault)
        self._stage.apply(fault)

    def _undo(self, fault: Fault) -> None:
        if fault in self._standing:
            self._standing.remove(fault)
            self._mark(fault, undone=True)
            self._stage.undo(fault)

    def _mark(self, fault: Fault, *, undone: bool) -> None:
        time_s = self._stage.now() - self._began_s
        text = fault_text(fault)
        self._result.marks.append(FaultMark(time_s, fault.verb, text, undone))

    # What goes on.

    def _load(self) -> None:
        """Let the load's time pass, with a look at all nodes now and then."""
        every_s = max(1.0, self._duration_s / MAX_LOOKS)
        looks = int(self._duration_s / every_s)
        times_s = [every_s * number for number in range(looks + 1)]
        if self._duration_s - times_s[-1] > every_s / 1000:
            times_s.append(self._duration_s)
        for time_s in times_s:
            self._stage.run_to(self._began_s + min(time_s, self._duration_s))
            self._raise_first()
            self._look()
            self._progress("", time_s / self._duration_s)

    def _look(self) -> None:
        sample = self._stage.sample()
        self._stage.invariants.look(sample)
        self._result.samples.append(type(sample)(sample.time_s - self._began_s, sample.nodes))

    def _raise_first(self) -> None:
        self._stage.invariants.check()
        if self._raised is not None:
            raise self._raised

    def _heal(self) -> None:
        for fault in [*self._standing]:
            if not isinstance(fault, _AWAY):
                self._undo(fault)

    # What it was.

    def _finish(self) -> None:
        result, stage = self._result, self._stage
        result.simulated_s = stage.now()
        if result.depth != "C":
            result.trace_hash = stage.trace.digest()
        named = stage.invariants.named
        result.events = [
            Record(
                each.time_s - self._began_s,
                each.node,
                each.kind,
                named(each.subject),
                named(each.detail),
            )
            for each in stage.trace.find()
        ]
        if not result.violations and not result.broken_off:
            result.verdicts = judge(result)
        if not result.ok:
            result.steps = [
                replace(step, time_s=step.time_s - self._began_s)
                for step in stage.invariants.last_steps()
            ]


def _with_place(error: BaseException) -> str:
    """Return an exception in a line: what, where it was raised, and what was noted about it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" in {frames[-1].name} ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}{at}{notes}"
