"""Figures: each by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from meshnode.sim.running.result import METRICS, Result, choose, percentile
from meshnode.sim.scenario.model import Device
from meshnode.sim.stage import (
    GATEWAY_LOST,
    OK,
    TIMED_OUT,
    Call,
    Machine,
    NodeSample,
    Outcome,
    Sample,
)
from meshnode.sim.trace import Record
from meshnode.types import RoutingHints
from tests.unit.sim.running.stand_in_stage import small


def made(
    number: int, at_s: float, code: str, took_s: float, **more: object
) -> tuple[Call, Outcome]:
    call = Call(number, at_s, "n-1", "m", 0.1, timeout_s=5.0, deadline_s=0.2)
    return call, Outcome(code, took_s, **more)  # type: ignore[arg-type]


UP = NodeSample("up", alive=2, in_system=3, busy=0.5, slots=4, serving=1)
LONELY = NodeSample("up", alive=1, in_system=7, busy=1.0, slots=1)
DOWN = NodeSample("down")

RESULT = Result(
    small(),
    "A",
    1,
    machines=(
        Machine("n-1", "eu-west", "mini-pc", Device()),
        Machine("n-2", "us-east", "mini-pc", Device()),
    ),
    calls=[
        made(0, 0.0, OK, 0.1, served_by="n-1", attempts=1, version=1),
        made(
            1,
            1.0,
            OK,
            0.3,
            served_by="n-2",
            attempts=2,
            failed_on=(("n-1", "saturated"),),
            version=2,
        ),
        made(2, 2.0, TIMED_OUT, 5.0, attempts=1, gateways=2),
        made(3, 4.0, GATEWAY_LOST, 0.1),
        made(4, 5.0, OK, 0.2, served_by="n-2", attempts=1, version=2),
        (made(5, 9.0, OK, 0.2)[0], None),
    ],
    samples=[
        Sample(0.0, {"n-1": UP, "n-2": UP}),
        Sample(10.0, {"n-1": UP, "n-2": LONELY}),
        Sample(99.0, {"n-1": UP, "n-2": DOWN}),
    ],
    events=[
        Record(5.0, "n-2", "member.dead", "n-1", "did not refute in time"),
        Record(50.0, "n-1", "member.dead", "n-2", "did not refute in time"),
        Record(6.0, "n-1", "steward.changed", "m", "n-1 takes over from nobody"),
        Record(7.0, "n-1", "scale.up", "m", "1 -> 2 replicas"),
        Record(7.5, "n-1", "scale.down", "other", "2 -> 1 replicas"),
        Record(8.0, "n-1", "scale.up", "m", "2 -> 3 replicas"),
        Record(8.0, "n-2", "scale.heard", "m", "3 replicas"),
        Record(9.0, "n-1", "scale.down", "m", "3 -> 2 replicas"),
    ],
)

FIGURES = {
    "requests": 5,
    "errors": 2,
    "error_rate": 0.4,
    "gateway_lost_share": 0.2,
    "timeout_share": 0.2,
    "saturated_share": 0,
    "longest_outage_s": 3.0,
    "mean_ms": 200,
    "p50_ms": 200,
    "p90_ms": 300,
    "p99_ms": 300,
    "p99_9_ms": 300,
    "max_ms": 300,
    "goodput": 0.2,
    "goodput_share": 0.4,
    "attempts_per_request": 1.0,
    "failed_attempt_share": 0.2,
    "gateways_per_request": 1.2,
    "busiest_share": 2 / 3,
    "served_share": 1,
    "local_share": 1 / 3,
    "outside_region": 0,
    "oldest_version": 1,
    "utilisation": (2 + 2 + 2 + 1) / 13,
    "utilisation_of_busiest": 0.75,
    "longest_queue": 7,
    "running": 2,
    "serving": 1,
    "alive_seen": 1,
    "agree": 0.5,
    "detection_s": 0,
    "scalings": 4,
    "scaling_turns": 1,
    "stewards": 1,
    "releases_promoted": 0,
    "releases_rolled_back": 0,
    "release_pauses": 0,
    "release_candidate_requests": math.nan,
    "release_decision_s": math.nan,
    "release_back_s": math.nan,
    "release_switch_s": math.nan,
    "release_steps": 0,
    "release_steps_repeated": 0,
    "releases_agree": 1,
    "false_deaths": 1,
}


@pytest.mark.parametrize("name", METRICS)
def test_a_figure_is_as_counted_by_hand(name: str) -> None:
    found = METRICS[name].find(choose(RESULT))
    assert found == pytest.approx(FIGURES[name], nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
def test_a_figure_of_nothing_is_nothing_or_none(name: str) -> None:
    found = METRICS[name].find(choose(Result(small(), "A", 1)))
    assert math.isnan(found) or found == 0


def test_a_part_of_a_run_is_chosen_by_time_model_and_gateway() -> None:
    assert len(choose(RESULT, after_s=1.0, before_s=4.0).calls) == 2
    assert choose(RESULT, after_s=1.0, before_s=4.0).seconds == 3.0
    assert choose(RESULT, model="other").calls == []
    assert choose(RESULT, gateways=["n-2"]).calls == []


def test_the_share_of_some_nodes_is_that_of_the_answers_they_gave() -> None:
    find = METRICS["served_share"].find
    assert find(choose(RESULT, nodes=["n-2"])) == pytest.approx(2 / 3)
    assert find(choose(RESULT, nodes=["n-2"], after_s=3.0)) == 1
    assert find(choose(RESULT, nodes=[])) == 0


def test_answers_of_another_gateway_than_the_first_are_neither_near_nor_far() -> None:
    elsewhere = made(9, 6.0, OK, 0.1, served_by="n-1", gateways=2)
    result = dataclasses.replace(RESULT, calls=[*RESULT.calls, elsewhere])
    assert METRICS["local_share"].find(choose(result)) == pytest.approx(1 / 3)


def test_answers_from_outside_the_region_that_was_demanded_are_counted_and_are_not_far() -> None:
    inside, outside = (made(9, 6.0, OK, 0.1, served_by=node) for node in ("n-1", "n-2"))
    ruled = [
        (dataclasses.replace(call, hints=RoutingHints(region="eu")), outcome)
        for call, outcome in (inside, outside)
    ]
    result = dataclasses.replace(RESULT, calls=[*RESULT.calls, *ruled])
    assert METRICS["outside_region"].find(choose(result)) == 1
    assert METRICS["local_share"].find(choose(result)) == pytest.approx(1 / 3)


def test_the_time_in_which_the_dead_are_taken_to_be_alive_is_the_longest_one() -> None:
    fooled, right = NodeSample("up", alive=2), NodeSample("up", alive=1)
    looks = [fooled, right, fooled, fooled, fooled, right, fooled]
    samples = [Sample(float(at), {"n-1": each, "n-2": DOWN}) for at, each in enumerate(looks)]
    assert METRICS["detection_s"].find(choose(Result(small(), "A", 1, samples=samples))) == 2


@pytest.mark.parametrize(("share", "found"), [(0.0, 1), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    share: float, found: int
) -> None:
    assert percentile([4, 2, 1, 3], share) == found


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_documented(name: str) -> None:
    page = Path(__file__).parents[4] / "docs" / "cli.md"
    metric = METRICS[name]
    line = f"| `{name}` | {metric.unit} | {metric.meaning} |"
    assert line in page.read_text(encoding="utf-8").splitlines()
