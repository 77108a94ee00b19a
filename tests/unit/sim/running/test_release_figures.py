"""Figures of releases: each by hand, from what was reported and who answered."""

from __future__ import annotations

import dataclasses
import math

import pytest

from meshnode.sim.running.result import METRICS, Result, choose
from meshnode.sim.stage import OK, Call, NodeSample, Outcome, Sample
from meshnode.sim.trace import Record
from tests.unit.sim.running.stand_in_stage import small

STEP = "release.step"


def said(time_s: float, kind: str, detail: str = "", model: str = "m") -> Record:
    return Record(time_s, "n-1", kind, model, detail)


def deployed(time_s: float, version: int = 2, model: str = "m") -> Record:
    return said(time_s, "candidate.deployed", str(version), model)


def asked(*times_s: float, version: int = 2) -> list[Record]:
    return [said(each, "candidate.asked", str(version)) for each in times_s]


def answered(at_s: float, version: int, model: str = "m") -> tuple[Call, Outcome]:
    call = Call(round(at_s * 100), at_s, "n-1", model, 0.1, timeout_s=5.0, deadline_s=0.2)
    return call, Outcome(OK, 0.05, served_by="n-1", version=version)


def figure(
    name: str,
    events: list[Record],
    calls: list[tuple[Call, Outcome]] | None = None,
    *,
    before_s: float | None = None,
) -> float:
    ordered = sorted(events, key=lambda each: each.time_s)
    result = Result(small(), "A", 1, calls=[*(calls or [])], events=ordered)
    return METRICS[name].find(choose(result, before_s=before_s))


ROLLED_BACK = [deployed(1.0), said(2.0, STEP, "step 1 of 2: a share"), *asked(2.5, 3.0, 4.5)]
ROLLED_BACK += [said(4.0, "release.rolled_back", "errors")]


def test_a_release_comes_out_as_was_decided_last() -> None:
    undone = [deployed(1.0), said(2.0, "release.promoted"), said(5.0, "release.rolled_back")]
    assert figure("releases_promoted", undone) == 0
    assert figure("releases_rolled_back", undone) == 1
    assert figure("releases_promoted", undone, before_s=4.0) == 1
    assert figure("releases_rolled_back", []) == 0


def test_each_release_of_each_model_counts_for_itself() -> None:
    events = [deployed(1.0), said(2.0, "release.rolled_back"), deployed(3.0, 3)]
    events += [said(4.0, "release.promoted"), deployed(1.0, model="other")]
    assert figure("releases_promoted", events) == 1
    assert figure("releases_rolled_back", events) == 1


def test_requests_of_a_new_version_count_until_its_place_is_decided() -> None:
    assert figure("release_candidate_requests", ROLLED_BACK) == 2
    assert figure("release_decision_s", ROLLED_BACK) == 3.0
    answers = [answered(at_s, 2) for at_s in (2.2, 2.4, 2.6, 3.9, 4.1)]
    assert figure("release_candidate_requests", ROLLED_BACK, answers) == 4, "as at depth C"
    undecided = [deployed(1.0), *asked(2.0)]
    assert math.isnan(figure("release_candidate_requests", undecided))
    assert math.isnan(figure("release_decision_s", undecided))


def test_the_way_back_takes_as_long_as_anybody_gets_the_new_version() -> None:
    calls = [answered(3.9, 2), answered(4.3, 1), answered(4.6, 2), answered(5.0, 1)]
    assert figure("release_back_s", ROLLED_BACK, calls) == pytest.approx(0.6)
    assert figure("release_back_s", ROLLED_BACK, calls[:2]) == 0.0
    other = [answered(4.9, 2, "other")]
    assert figure("release_back_s", ROLLED_BACK, calls + other) == pytest.approx(0.6)
    assert math.isnan(figure("release_back_s", [deployed(1.0)], calls))


def test_what_a_later_release_does_is_not_the_former_ones_way_back() -> None:
    events = [*ROLLED_BACK, deployed(4.5, 3)]
    assert figure("release_back_s", events, [answered(4.2, 2), answered(4.9, 2)]) == pytest.approx(
        0.2
    )


def test_a_switch_lasts_while_both_versions_answer() -> None:
    promoted = [deployed(1.0), said(4.0, "release.promoted")]
    calls = [answered(3.0, 1), answered(4.1, 2), answered(4.4, 1), answered(5.0, 2)]
    assert figure("release_switch_s", promoted, calls) == pytest.approx(0.3)
    assert figure("release_switch_s", promoted, calls[:2]) == 0.0
    undone = [*promoted, said(4.3, "release.rolled_back")]
    assert figure("release_switch_s", undone, calls) == 0.0
    assert math.isnan(figure("release_switch_s", ROLLED_BACK, calls))


def test_steps_are_begun_once_each_and_none_is_left_out() -> None:
    begun = [deployed(1.0), said(2.0, STEP, "step 1 of 3: x"), said(3.0, STEP, "step 2 of 3: x")]
    assert figure("release_steps", begun) == 2
    assert figure("release_steps_repeated", begun) == 0
    again = [*begun, said(3.5, STEP, "step 2 of 3: x")]
    assert figure("release_steps_repeated", again) == 1
    skipped = [begun[0], begun[2]]
    assert figure("release_steps_repeated", skipped) == 1
    assert figure("release_steps_repeated", [deployed(1.0)]) == 0


def test_pauses_are_those_that_were_told_and_those_for_want_of_data() -> None:
    events = [said(2.0, "release.paused"), said(3.0, "release.inconclusive")]
    assert figure("release_pauses", [*events, said(4.0, "release.resumed")]) == 2


def test_nodes_agree_on_releases_where_they_see_the_same() -> None:
    here, there = ("m: version 1",), ("m: version 2",)
    nodes = {
        f"n-{at}": NodeSample("up", releases=seen) for at, seen in enumerate([here, here, there])
    }
    result = Result(small(), "A", 1, samples=[Sample(1.0, {**nodes, "n-9": NodeSample("down")})])
    agree = METRICS["releases_agree"].find(choose(result))
    assert agree == pytest.approx(2 / 3)
    result.samples = [Sample(1.0, dict.fromkeys(nodes, dataclasses.replace(nodes["n-0"])))]
    assert METRICS["releases_agree"].find(choose(result)) == 1.0
