"""Releases on a stage of cores: who is asked, what a version is, and what is noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import UsageError
from meshnode.sim import faults
from meshnode.sim.core_releases import manifest_of
from meshnode.sim.core_stage import CoreStage
from meshnode.sim.scenario.model import Device, Model, Nodes, Place, Scenario
from meshnode.sim.stage import OK, Call, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = {"strategy": "canary", "steps": [50], "hold_s": 60}
MODEL = Model(name="digits", load_s=0.1, fetch_s=0.1)
SCENARIO = Scenario(
    name="releases",
    regions={"eu": Place(at=(50.0, 8.0))},
    devices={"odd": Device(speed=0.5)},
    nodes=(Nodes(region="eu", name="box", count=2), Nodes(region="eu", device="odd", name="odd")),
    models=(MODEL,),
)


@pytest.fixture
def stage() -> Iterator[CoreStage]:
    stage = CoreStage(SCENARIO, 1)
    stage.start(lambda _what: None)
    yield stage
    stage.close()


def release(**changes: object) -> faults.Release:
    fields: dict[str, object] = {"model": "digits", "release": CANARY, **changes}
    return faults.Release(**fields)  # type: ignore[arg-type]


def pass_s(stage: CoreStage, seconds: float) -> None:
    stage.run_to(stage.now() + seconds)


def noted(stage: CoreStage, kind: str) -> list[tuple[str, str]]:
    return [(each.node, each.detail) for each in stage.trace.find(kind)]


def asked(stage: CoreStage, number: int, gateway: str) -> Outcome:
    found: list[Outcome] = []
    call = Call(number, stage.now(), gateway, "digits", 0.01, timeout_s=5.0, deadline_s=5.0)
    stage.send(call, lambda _call, outcome: found.append(outcome))
    pass_s(stage, 1.0)
    return found[0]


def test_a_release_is_deployed_by_the_node_that_is_named_and_its_requests_are_counted(
    stage: CoreStage,
) -> None:
    stage.apply(release(node="odd"))
    pass_s(stage, 5.0)
    assert noted(stage, "candidate.deployed") == [("odd", "2")]
    outcomes = [asked(stage, number, "box-1") for number in range(20)]
    assert {each.version for each in outcomes} == {1, 2}
    given = sum(each.version == 2 for each in outcomes)
    assert noted(stage, "candidate.asked") == [("", "2")] * given
    assert {each.releases for each in stage.sample().nodes.values()} == {
        ("digits: version 1, running in step 1",)
    }


def test_failures_of_a_new_version_happen_on_its_class_of_devices_and_cost_nobody_an_answer(
    stage: CoreStage,
) -> None:
    plan = {"strategy": "canary", "steps": [99], "hold_s": 60, "gates": {}}
    stage.apply(release(release=plan, fail_share=1.0, fails_on="mini-pc"))
    pass_s(stage, 5.0)
    outcomes = [asked(stage, number, "odd") for number in range(12)]
    assert {each.code for each in outcomes} == {OK}
    failures = [each for each in outcomes if each.failed_on]
    assert failures
    assert {name for each in failures for name, _ in each.failed_on} <= {"box-1", "box-2"}
    assert {each.version for each in failures} == {1}, "the old version stands in"


def test_the_next_release_leads_from_the_version_that_stayed_to_a_new_number(
    stage: CoreStage,
) -> None:
    stage.apply(release(slowness=3.0))
    pass_s(stage, 5.0)
    stage.apply(faults.OrderRelease(model="digits", order="abort", node="box-2"))
    pass_s(stage, 5.0)
    stage.apply(release())
    pass_s(stage, 5.0)
    deployment = stage.mesh.node("box-1").deployment("digits")
    assert deployment is not None
    assert deployment.release is not None
    assert (deployment.release.baseline, deployment.release.candidate) == (1, 3)
    assert stage.mesh.serving("digits", 2) == []


def test_an_order_that_is_refused_is_noted_and_the_run_goes_on(stage: CoreStage) -> None:
    stage.apply(faults.OrderRelease(model="digits", order="promote"))
    assert [by for by, _ in noted(stage, "order.refused")] == ["box-1", "box-2", "odd"]
    assert "no release" in noted(stage, "order.refused")[0][1]


def test_what_would_have_to_compare_answers_is_left_to_whole_daemons(stage: CoreStage) -> None:
    mirrors = release(release={"strategy": "shadow"})
    for fault in (mirrors, release(differs_share=0.1)):
        assert "depth B does" in (stage.unsupported(fault) or "")
    assert stage.unsupported(release()) is None
    assert stage.unsupported(faults.Release(model="digits", differs_share=0.1)) is None


def test_nobody_can_release_from_a_node_that_is_down(stage: CoreStage) -> None:
    stage.apply(faults.Crash(nodes=("odd",)))
    with pytest.raises(UsageError, match="could not be deployed"):
        stage.apply(release(node="odd"))


def test_two_people_who_number_alike_have_different_files() -> None:
    assert manifest_of(MODEL, 2).digest == manifest_of(MODEL, 2, 2).digest
    assert manifest_of(MODEL, 2, 3).digest != manifest_of(MODEL, 2, 2).digest
