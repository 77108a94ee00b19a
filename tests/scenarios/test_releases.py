"""Releases, as scenarios: what is said about them, and whole daemons that do what the cores do.

That the stories of the library hold is shown by `test_library.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.sim.running.playing import play
from meshnode.sim.scenario.reading import read
from tests.scenarios.test_library import failed, played

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario


def quieter(scenario: Scenario, rate_per_s: float, duration_s: float) -> Scenario:
    """Return a scenario with fewer requests, for whole daemons, each of which costs more there."""
    load = tuple(msgspec.structs.replace(each, rate_per_s=rate_per_s) for each in scenario.load)
    return msgspec.structs.replace(scenario, load=load, duration_s=duration_s, depth="B")


def told(result: Result, *kinds: str) -> list[str]:
    """Return what was reported of releases, in order."""
    return [each.detail for each in result.events if each.kind in kinds]


def test_a_rollback_says_which_limit_was_missed_by_how_much_and_on_which_devices() -> None:
    (slow,) = told(played("canary-slow"), "release.rolled_back")
    assert "latency_p50" in slow
    assert "limit 1.25 times" in slow
    (erring,) = told(played("canary-erring-on-one-device"), "release.rolled_back")
    assert "errors" in erring
    assert "speed 0.9" in erring, "the kind of device is named"


def test_a_version_that_cannot_be_loaded_goes_with_what_its_loads_said() -> None:
    result = played("rollout-crash-loop")
    (reason,) = told(result, "release.rolled_back")
    assert "com.example.Fold is not implemented" in reason


def test_a_version_without_room_waits_and_says_where_how_much_is_missing() -> None:
    result = played("rollout-no-room")
    (reason,) = told(result, "release.inconclusive")
    assert "no place" in reason
    assert "memory" in reason


def test_whoever_is_overwritten_is_told_and_one_plan_counts() -> None:
    result = played("rollout-two-admins")
    overwritten = told(result, "deployment.overwritten")
    assert len(overwritten) == 6, "on every node, once"
    assert all("overwritten unseen" in each for each in overwritten)
    assert len(told(result, "release.began")) == 1


def test_a_new_steward_is_there_within_ten_seconds_and_goes_on_with_the_step_that_had_begun() -> (
    None
):
    result = played("rollout-steward-lost")
    lost_s = next(mark.time_s for mark in result.marks if mark.verb == "power-off")
    after = [each for each in result.events if each.time_s > lost_s]
    taken = next(each for each in after if each.kind == "steward.changed")
    assert taken.time_s - lost_s <= 10.0
    first = next(each for each in after if each.kind == "release.step")
    assert first.detail.startswith("step 3 of 3")


def test_an_experiment_says_that_it_waits() -> None:
    (pause,) = told(played("ab-test"), "release.paused")
    assert pause.endswith("waits for promote")


def test_gateways_of_whole_daemons_switch_and_go_back_as_operators_say() -> None:
    result = play(quieter(read("blue-green"), 20.0, 32.0))
    assert failed(result) == []


def test_a_failure_of_the_new_version_is_answered_by_the_old_one_in_whole_daemons_too() -> None:
    scenario = read("canary-erring-on-one-device")
    result = play(quieter(scenario, 80.0, 26.0))
    assert failed(result) == []
    failures = [outcome for _, outcome in result.calls if outcome and outcome.failed_on]
    assert failures
    assert {each.version for each in failures} == {1}


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_a_slow_version_is_found_out_with_other_seeds_too(seed: int) -> None:
    assert failed(play(read("canary-slow"), seed=seed)) == []
