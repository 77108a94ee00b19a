from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ConfigError
from meshnode.sim.scenario.arrivals import calls
from meshnode.sim.scenario.model import (
    Arrival,
    Load,
    Model,
    Nodes,
    Place,
    Scenario,
    ServiceTime,
)
from meshnode.types import NO_HINTS

if TYPE_CHECKING:
    from meshnode.sim.stage import Call


def scenario(*loads: Load, duration_s: float = 100.0, **more: Any) -> Scenario:
    return Scenario(
        name="arrivals",
        duration_s=duration_s,
        regions={
            "eu": Place(place="dublin"),
            "us": Place(place="ohio"),
            "ap": Place(place="tokyo"),
        },
        nodes=(
            Nodes(region="eu", name="eu", count=3),
            Nodes(region="us", name="us", count=2),
            Nodes(region="ap", name="ap"),
            Nodes(region="ap", name="mute", gateway=False),
        ),
        models=(
            Model(name="digits", request_kb=2.0, response_kb=0.5),
            Model(name="words", service=ServiceTime(distribution="constant", mean_ms=7.0)),
        ),
        load=loads,
        **more,
    )


def drawn(*loads: Load, seed: int = 1, duration_s: float = 100.0) -> list[Call]:
    return [*calls(scenario(*loads, duration_s=duration_s), seed)]


def count(found: list[Call], after_s: float, before_s: float) -> int:
    return sum(after_s <= call.made_at_s < before_s for call in found)


def test_a_load_with_a_region_makes_calls_that_must_run_there() -> None:
    assert {call.hints.region for call in drawn(Load(model="digits", region="us"))} == {"us"}
    assert {call.hints for call in drawn(Load(model="digits"))} == {NO_HINTS}


def test_the_same_scenario_and_seed_give_the_same_calls_and_another_seed_others() -> None:
    load = Load(model="digits", rate_per_s=20.0)
    assert drawn(load) == drawn(load)
    assert drawn(load) != drawn(load, seed=2)


def test_calls_of_all_loads_come_in_the_order_of_their_making_and_are_numbered() -> None:
    found = drawn(Load(model="digits"), Load(model="words", shape="constant"))
    assert [call.number for call in found] == [*range(len(found))]
    assert all(one.made_at_s <= other.made_at_s for one, other in pairwise(found))
    assert {call.model for call in found} == {"digits", "words"}


def test_another_load_changes_no_draw_of_this_one() -> None:
    """So that a scenario that shrinks keeps the calls that it keeps."""

    alone = drawn(Load(model="digits"))
    with_another = drawn(Load(model="words", rate_per_s=3.0), Load(model="digits"))
    kept = [call for call in with_another if call.model == "digits"]
    assert [replace(call, number=0) for call in kept] == [replace(call, number=0) for call in alone]


def test_a_poisson_load_has_its_rate_and_its_irregularity() -> None:
    found = drawn(Load(model="digits", rate_per_s=50.0))
    assert len(found) == pytest.approx(5000, rel=0.05)
    per_second = Counter(int(call.made_at_s) for call in found)
    variance = sum((per_second[second] - 50) ** 2 for second in range(100)) / 100
    assert 30 < variance < 80


def test_a_constant_load_is_even() -> None:
    found = drawn(Load(model="digits", shape="constant", rate_per_s=4.0, start_s=10.0, end_s=12.0))
    assert [call.made_at_s for call in found] == [10 + number / 4 for number in range(8)]


def test_bursts_come_when_they_are_due() -> None:
    load = Load(
        model="digits", shape="bursts", rate_per_s=10.0, burst_rate_per_s=200.0, burst_s=2.0,
        every_s=20.0, start_s=20.0,
    )  # fmt: skip
    found = drawn(load)
    assert count(found, 0, 20) == 0
    assert count(found, 20, 22) == pytest.approx(400, rel=0.2)
    assert count(found, 22, 40) == pytest.approx(180, rel=0.3)
    assert count(found, 80, 82) == pytest.approx(400, rel=0.2)


def test_a_ramp_rises_and_falls() -> None:
    up = drawn(Load(model="digits", shape="ramp", rate_per_s=0.0, to_rate_per_s=100.0))
    assert count(up, 0, 50) == pytest.approx(1250, rel=0.1)
    assert count(up, 50, 100) == pytest.approx(3750, rel=0.1)
    down = drawn(Load(model="digits", shape="ramp", rate_per_s=100.0, to_rate_per_s=0.0))
    assert count(down, 0, 50) == pytest.approx(3750, rel=0.1)


def test_a_day_has_its_low_at_its_beginning_and_its_high_at_noon() -> None:
    load = Load(model="digits", shape="daily", rate_per_s=10.0, to_rate_per_s=100.0, every_s=100.0)
    found = drawn(load)
    assert len(found) == pytest.approx(5500, rel=0.1)
    assert count(found, 0, 10) < 200
    assert count(found, 45, 55) == pytest.approx(1000, rel=0.15)


def test_a_rate_of_nothing_gives_nothing() -> None:
    assert drawn(Load(model="digits", rate_per_s=0.0)) == []
    assert drawn(Load(model="digits", shape="constant", rate_per_s=0.0)) == []


def test_a_trace_is_played_as_it_is_from_its_start_to_the_end() -> None:
    arrivals = (Arrival(0.5, "us-2"), Arrival(0.5), Arrival(7.0, "ap"), Arrival(99.0))
    found = drawn(Load(model="digits", shape="trace", arrivals=arrivals, start_s=5.0))
    assert [call.made_at_s for call in found] == [5.5, 5.5, 12.0]
    assert found[0].gateway == "us-2"
    assert found[2].gateway == "ap"


def test_a_trace_whose_file_was_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"arrivals\.csv was not read"):
        drawn(Load(model="digits", shape="trace", file="arrivals.csv"))


def test_only_gateways_that_the_load_names_are_asked_each_about_as_often() -> None:
    found = drawn(Load(model="digits", rate_per_s=60.0, via=("region:eu", "mute")))
    asked = Counter(call.gateway for call in found)
    assert asked.keys() == {"eu-1", "eu-2", "eu-3"}
    assert min(asked.values()) > 1800


def test_a_client_knows_gateways_in_two_other_regions_and_then_a_neighbour() -> None:
    """What takes its gateway away may have taken the whole region, so the neighbour comes last."""
    for call in drawn(Load(model="digits")):
        regions = [name.partition("-")[0] for name in call.others]
        home = call.gateway.partition("-")[0]
        assert {*regions[:2]} == {"eu", "us", "ap"} - {home}
        assert regions[2:] == ([] if home == "ap" else [home])
        assert call.gateway not in call.others


def test_a_client_where_there_is_one_region_knows_several_neighbours() -> None:
    for call in drawn(Load(model="digits", via=("region:eu",))):
        assert {call.gateway, *call.others} == {"eu-1", "eu-2", "eu-3"}
        assert len(call.others) == 2


def test_a_client_that_does_not_retry_knows_no_other_gateway() -> None:
    assert {call.others for call in drawn(Load(model="digits", retry_elsewhere=False))} == {()}


def test_a_call_carries_its_work_its_times_and_its_sizes() -> None:
    (call, *_) = drawn(Load(model="words", timeout_s=3.0))
    assert call.work_s == 0.007
    assert (call.timeout_s, call.deadline_s) == (3.0, 3.0)
    (call, *_) = drawn(Load(model="digits", deadline_ms=250.0))
    assert call.deadline_s == 0.25
    assert (call.request_bytes, call.response_bytes) == (2048, 512)
