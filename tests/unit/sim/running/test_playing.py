"""The player: what it does on a stage, when, and what it makes of what goes wrong there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ConfigError, UsageError
from meshnode.sim.faults import ClockJump, Crash, Loss, Release
from meshnode.sim.running.playing import play, stage_for
from meshnode.sim.scenario.model import Expect
from meshnode.sim.stage import OK, Call, Outcome
from tests.unit.sim.running.stand_in_stage import START_S, StandInStage, small

if TYPE_CHECKING:
    from collections.abc import Callable

LOSS = Loss(at_s=2.0, for_s=3.0, nodes=("all",), share=0.5)


def test_calls_are_made_at_their_times_and_have_their_outcomes() -> None:
    result = play(small(), stage=StandInStage(small()))
    assert result.ok
    assert len(result.calls) == 20
    assert [call.number for call, _ in result.calls] == list(range(20))
    assert all(
        outcome == Outcome(OK, 0.1, call.gateway, 1, version=1) for call, outcome in result.calls
    )


def test_a_fault_is_done_and_undone_at_its_times() -> None:
    scenario = small(LOSS)
    stage = StandInStage(scenario)
    result = play(scenario, stage=stage)
    assert stage.told == [(START_S + 2.0, "do", LOSS), (START_S + 5.0, "undo", LOSS)]
    assert [(mark.time_s, mark.verb, mark.undone) for mark in result.marks] == [
        (2.0, "loss", False),
        (5.0, "loss", True),
    ]
    assert result.marks[0].text == "loss all and all others (share 0.5)"


def test_what_stands_at_the_end_is_undone_before_settling_but_nobody_is_brought_back() -> None:
    loss = Loss(at_s=2.0, nodes=("all",), share=0.5)
    crash = Crash(at_s=3.0, nodes=("n-1",))
    scenario = small(loss, crash)
    stage = StandInStage(scenario)
    play(scenario, stage=stage)
    assert [(what, fault) for _, what, fault in stage.told] == [
        ("do", loss),
        ("do", crash),
        ("undo", loss),
    ]
    assert stage.told[-1][0] == START_S + scenario.duration_s


def test_times_of_a_result_count_from_the_beginning_of_the_load() -> None:
    result = play(small(), stage=StandInStage(small()))
    assert result.started_after_s == START_S
    assert [sample.time_s for sample in result.samples[:3]] == [0.0, 1.0, 2.0]
    assert result.samples[-2].time_s == 10.0
    assert result.samples[-1].time_s > 10.0  # after all have settled


def test_a_long_load_is_looked_at_three_hundred_times() -> None:
    scenario = small(duration_s=3000.0, rate_per_s=0.1)
    result = play(scenario, stage=StandInStage(scenario))
    assert len(result.samples) == 302  # second 0, and the one after settling


def test_a_second_outcome_is_an_invariant_broken() -> None:
    result = play(small(), seed=9, stage=StandInStage(small(), seed=9, answers=2))
    assert [each.invariant for each in result.violations] == ["one-answer"]
    assert "ended a second time" in result.violations[0].message
    assert not result.ok


def test_a_call_that_never_ends_is_an_invariant_broken() -> None:
    stage = StandInStage(small(), answers=0)
    result = play(small(), stage=stage)
    assert [each.invariant for each in result.violations] == ["one-answer"]
    assert "never got an outcome, such as those numbered 0" in result.violations[0].message
    assert result.calls[0][1] is None
    assert stage.closed == 1


class _Late(StandInStage):
    """Answers when the client has long gone."""

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        done(call, Outcome(OK, call.timeout_s + 5.0, call.gateway, 1))


class _Busy(StandInStage):
    """Asks more replicas than allowed."""

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        done(call, Outcome(OK, 0.1, call.gateway, attempts=4))


@pytest.mark.parametrize(
    ("kind", "invariant"), [(_Late, "no-hang"), (_Busy, "attempts-within-budget")]
)
def test_an_outcome_that_cannot_be_is_an_invariant_broken(
    kind: type[StandInStage], invariant: str
) -> None:
    result = play(small(), stage=kind(small()))
    assert [each.invariant for each in result.violations] == [invariant]


class _Raising(StandInStage):
    """Stumbles in the fourth second of the load."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(small())
        self._error = error

    def run_to(self, time_s: float) -> None:
        super().run_to(time_s)
        if time_s >= START_S + 4.0:
            raise self._error


def test_an_exception_on_the_stage_fails_the_run_and_says_where() -> None:
    result = play(small(), stage=_Raising(KeyError("no such thing")))
    (violation,) = result.violations
    assert violation.invariant == "no-error"
    assert "KeyError: 'no such thing' in run_to" in violation.message
    assert violation.time_s == pytest.approx(4.0)


def test_ctrl_c_keeps_what_was_found_so_far() -> None:
    stage = _Raising(KeyboardInterrupt())
    result = play(small(), stage=stage)
    assert result.broken_off
    assert not result.ok
    assert len(result.calls) == 9
    assert stage.closed == 1


def test_a_fault_that_the_depth_cannot_do_is_refused_before_anything_starts() -> None:
    scenario = small(ClockJump(at_s=1.0, nodes=("n-1",), by_s=60.0))
    stage = StandInStage(scenario)
    with pytest.raises(UsageError, match="depth A cannot do 'clock-jump' at 1 s: it has no clocks"):
        play(scenario, stage=stage)
    assert stage.now() == 0.0
    assert stage.closed == 1


def test_a_mistaken_scenario_is_refused() -> None:
    with pytest.raises(ConfigError, match="nobody"):
        play(small(Release(model="nobody")), stage=StandInStage(small()))


def test_there_are_three_depths() -> None:
    with pytest.raises(UsageError, match="there are A, B and C"):
        stage_for("D", small(), 1)


def test_expectations_are_judged_with_their_conditions() -> None:
    scenario = small(
        expect=(
            Expect(metric="p99_ms", at_most=100.0),
            Expect(metric="requests", at_least=10.0, after_s=2.0, before_s=4.0),
            Expect(metric="requests", at_most=10.0, via=("n-1",)),
            Expect(metric="p99_ms", at_most=100.0, after_s=9.9),
        )
    )
    result = play(scenario, stage=StandInStage(scenario))
    p99, window, one, nothing = result.verdicts
    assert (p99.found, p99.holds) == (100.0, True)
    assert (window.found, window.holds) == (4.0, False)
    assert one.found == sum(call.gateway == "n-1" for call, _ in result.calls)
    assert math.isnan(nothing.found)
    assert not nothing.holds
    assert not result.ok


def test_progress_is_told_from_the_start_to_the_end() -> None:
    told: list[tuple[str, float]] = []
    play(
        small(),
        stage=StandInStage(small()),
        progress=lambda what, share: told.append((what, share)),
    )
    assert told[0] == ("it starts", 0.0)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1.0
