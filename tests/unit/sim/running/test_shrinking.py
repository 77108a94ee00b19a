"""Shrinking: what is left is small, fails in the same way, and is always the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from meshnode.errors import UsageError
from meshnode.sim.faults import Crash, Freeze, Loss
from meshnode.sim.running.result import Result, Verdict, Violation
from meshnode.sim.running.shrinking import shrink, signature
from meshnode.sim.scenario.model import Arrival, Expect, Load, Model, Nodes, Path, Place, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

CRASH = Crash(at_s=30.0, nodes=("us-3",))
WHOLE = Scenario(
    name="whole",
    duration_s=120.0,
    regions={"dub": Place(), "iad": Place(), "fra": Place()},
    paths=(Path(between=("dub", "iad"), loss=0.1),),
    nodes=(
        Nodes(region="dub", name="eu", count=12),
        Nodes(region="iad", name="us", count=8),
        Nodes(region="fra", name="fr"),
    ),
    models=(Model(name="m"), Model(name="other")),
    load=(Load(model="m", rate_per_s=100.0), Load(model="other", start_s=5.0)),
    faults=(
        Loss(at_s=1.0, nodes=("all",), share=0.1),
        Freeze(at_s=10.0, for_s=5.0, nodes=("eu-1",)),
        CRASH,
        Crash(at_s=50.0, nodes=("eu-*",)),
    ),
    expect=(Expect(metric="error_rate", at_most=0.0), Expect(metric="agree", at_least=1.0)),
)


def plays(fails: Callable[[Scenario], str]) -> Callable[[Scenario], Result]:
    """Play without a stage: `fails` says which invariant breaks, at second 31, or "" for none."""

    def play(scenario: Scenario) -> Result:
        invariant = fails(scenario)
        broken = [Violation(invariant, "seen", 30.5)] if invariant else []
        return Result(scenario, scenario.depth, scenario.seed, violations=broken)

    return play


def by_crash_of_us_3(scenario: Scenario) -> str:
    here = any(each.name == "us" and each.count >= 3 for each in scenario.nodes)
    return "one-answer" if CRASH in scenario.faults and here and scenario.load else ""


def test_only_what_makes_it_fail_is_left() -> None:
    found = shrink(WHOLE, seed=7, player=plays(by_crash_of_us_3))
    assert found.scenario == Scenario(
        name="whole",
        seed=7,
        duration_s=31.0,
        regions={"iad": Place()},
        nodes=(Nodes(region="iad", name="us", count=3),),
        load=(replace(found.scenario.load[0]),),
        faults=(CRASH,),
    )
    assert found.scenario.load[0].rate_per_s < 1.0
    assert found.fails_with == "one-answer"
    assert found.is_finished


def test_arrivals_after_an_earlier_end_are_left_out() -> None:
    early, late = (Arrival(at_s) for at_s in (3.0, 100.0))
    loads = (
        Load(model="m", shape="trace", arrivals=(early, late)),
        Load(model="m", shape="trace", arrivals=(late,)),
    )
    found = shrink(replace(WHOLE, load=loads), player=plays(by_crash_of_us_3))
    assert found.scenario.duration_s == 31.0
    assert [load.arrivals for load in found.scenario.load] == [(early,)]


def test_the_same_is_cut_down_to_the_same() -> None:
    first, second = (shrink(WHOLE, player=plays(by_crash_of_us_3)) for _ in range(2))
    assert (first.scenario, first.tries) == (second.scenario, second.tries)


def test_a_candidate_that_fails_in_another_way_is_not_taken() -> None:
    def fails(scenario: Scenario) -> str:
        return by_crash_of_us_3(scenario) if len(scenario.faults) > 1 else "no-error"

    found = shrink(WHOLE, player=plays(fails))
    assert len(found.scenario.faults) == 2
    assert signature(found.result) == "one-answer"


def test_what_does_not_fail_is_refused() -> None:
    with pytest.raises(UsageError, match="whole does not fail with seed 3 at depth A"):
        shrink(WHOLE, seed=3, player=plays(lambda _: ""))


def test_what_was_found_counts_when_all_tries_are_used_up() -> None:
    told: list[tuple[str, int]] = []
    found = shrink(
        WHOLE,
        max_tries=5,
        player=plays(by_crash_of_us_3),
        progress=lambda what, tries: told.append((what, tries)),
    )
    assert found.tries == 5
    assert not found.is_finished
    assert found.scenario.duration_s < WHOLE.duration_s
    assert told[0] == ("21 nodes, 4 faults, 2 loads, 120 s", 1)


def test_ctrl_c_ends_the_search_with_what_was_found() -> None:
    played = 0

    def player(scenario: Scenario) -> Result:
        nonlocal played
        played += 1
        result = plays(by_crash_of_us_3)(scenario)
        result.broken_off = played == 4
        return result

    found = shrink(WHOLE, player=player)
    assert found.is_broken_off
    assert not found.result.broken_off


def test_candidates_that_are_no_scenarios_are_passed_over() -> None:
    def player(scenario: Scenario) -> Result:
        if len(scenario.nodes) < 3:
            raise UsageError("a fault is about nobody")
        return plays(by_crash_of_us_3)(scenario)

    assert len(shrink(WHOLE, player=player).scenario.nodes) == 3


@pytest.mark.parametrize(("found", "way"), [(0.5, "error_rate"), (float("nan"), "no error_rate")])
def test_a_figure_that_cannot_be_made_is_another_failure(found: float, way: str) -> None:
    verdict = Verdict(WHOLE.expect[0], found, holds=False)
    assert signature(Result(WHOLE, "A", 1, verdicts=[verdict])) == way
