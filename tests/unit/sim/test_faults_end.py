"""What faults leave behind at depth A when they are over: nothing that waits, nothing that is lost unsaid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import UsageError
from meshnode.limits import MAX_CLOCK_JUMP_S
from meshnode.sim import faults
from meshnode.sim.core_stage import CoreStage
from meshnode.sim.links import MAX_WAITING_NOTES
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.model import Model, Nodes, Place, Scenario, ServiceTime
from meshnode.sim.stage import Call, Outcome

if TYPE_CHECKING:
    from meshnode.sim.faults import Fault
    from meshnode.sim.requests import Request

REGIONS = {"eu-west-1": Place(), "us-east-1": Place()}
SERVICE = ServiceTime(distribution="constant", mean_ms=20)
MODEL = Model(name="digits", on=("us-1",), service=SERVICE, load_s=0.1)
LAPTOPS = (Nodes(region="us-east-1", count=3, name="us", device="laptop"),)


def started(**changes: Any) -> CoreStage:
    parts: dict[str, Any] = {
        "name": "test",
        "regions": REGIONS,
        "nodes": (
            Nodes(region="eu-west-1", count=2, name="eu"),
            Nodes(region="us-east-1", count=2, name="us"),
        ),
        "models": (MODEL,),
    }
    stage = CoreStage(Scenario(**(parts | changes)), 1)
    stage.start(lambda _text: None)
    return stage


def pass_s(stage: CoreStage, seconds: float) -> None:
    stage.run_to(stage.now() + seconds)


def call(number: int, gateway: str, **changes: Any) -> Call:
    made: dict[str, Any] = {
        "number": number, "made_at_s": 0.0, "gateway": gateway, "model": "digits", "work_s": 0.02,
        "timeout_s": 30.0, "deadline_s": 30.0, "others": (),
    }  # fmt: skip
    return Call(**(made | changes))


def events(stage: CoreStage, kind: str) -> list[str]:
    return [record.node for record in stage.trace.find(kind)]


@pytest.mark.parametrize(
    "fault",
    [
        faults.Bandwidth(nodes=("region:us-east-1",), mbps=1e-9),
        faults.Latency(nodes=("region:us-east-1",), add_ms=60_000),
        faults.Loss(nodes=("region:us-east-1",), share=1.0),
    ],
    ids=lambda fault: fault.verb,
)
def test_links_serve_at_once_when_what_slowed_them_is_over(fault: Fault) -> None:
    stage = started()
    outcomes: list[Outcome] = []

    def send(number: int) -> None:
        sent = call(number, "eu-1", request_bytes=2_000_000)
        stage.send(sent, lambda _call, outcome: outcomes.append(outcome))

    stage.apply(fault)
    for number in range(10):
        stage.at(stage.now() + number * 0.1, send, number)
    pass_s(stage, 3.0)
    stage.undo(fault)
    pass_s(stage, 8.0)
    outcomes.clear()
    send(10)
    pass_s(stage, 1.0)
    assert [outcome.code for outcome in outcomes] == ["ok"]
    assert outcomes[0].took_s < 0.5
    stage.settle(60.0)


def test_what_waits_on_a_link_that_is_too_narrow_is_bounded() -> None:
    stage = started()
    narrow = faults.Bandwidth(nodes=("all",), mbps=1e-9)
    stage.apply(narrow)
    world = stage.world
    one, other = world.id_of("eu-1"), world.id_of("us-1")
    for _ in range(MAX_WAITING_NOTES + 1000):
        world.links.send_note(one, other, b"")
    before = world.scheduler._made
    world.links.send_note(one, other, b"")
    assert world.scheduler._made == before
    stage.undo(narrow)
    assert world.scheduler._made <= before + 2 * MAX_WAITING_NOTES


@pytest.mark.parametrize("verb", [faults.Crash, faults.Leave, faults.PowerOff])
def test_calls_that_a_frozen_gateway_never_read_end_when_it_is_taken_down(
    verb: type[faults.Crash | faults.Leave | faults.PowerOff],
) -> None:
    stage = started()
    outcomes: list[Outcome] = []
    ended: list[Request] = []
    stage.apply(faults.Freeze(nodes=("eu-1",)))
    stage.send(call(0, "eu-1"), lambda _call, outcome: outcomes.append(outcome))
    pass_s(stage, 1.0)
    unread = stage.mesh.request("eu-1", "digits", timeout_s=5.0, on_end=ended.append)
    stage.apply(verb(nodes=("eu-1",)))
    pass_s(stage, 35.0)
    assert len(outcomes) == 1
    assert ended == [unread]
    assert unread.outcome == "gateway_lost"
    stage.settle(60.0)


def test_a_request_that_a_slow_gateway_never_took_up_ends_with_its_process() -> None:
    stage = started()
    stage.world._node("eu-1").handling_s = 5.0
    request = stage.mesh.request("eu-1", "digits")
    pass_s(stage, 1.0)
    stage.mesh.crash("eu-1")
    assert request.outcome == "gateway_lost"


def test_a_drained_battery_shows_its_charge_to_others() -> None:
    digests = set()
    for percent in (5.0, 100.0):
        stage = started(nodes=LAPTOPS)
        drained = faults.Drain(nodes=("us-1",), percent=percent)
        told: list[Any] = []
        handle = stage.mesh.node("us-1").handle

        def listen(event: Any, *clock: float, handle: Any = handle, told: Any = told) -> Any:
            told.append(getattr(getattr(event, "load", None), "battery_percent", None))
            return handle(event, *clock)

        stage.mesh.node("us-1").handle = listen  # type: ignore[assignment,method-assign]
        stage.apply(drained)
        pass_s(stage, 3.0)
        assert percent in told
        digests.add(stage.trace.digest())
        stage.undo(drained)
        pass_s(stage, 3.0)
        assert [each for each in told if each is not None][-1] == 80.0
    assert len(digests) == 2


def digest(*steps: Fault | tuple[Fault]) -> str:
    """Return the hash of a run in which these faults are done, or undone if in a tuple, a second apart."""
    stage = started()
    for step in steps:
        if isinstance(step, tuple):
            stage.undo(step[0])
        else:
            stage.apply(step)
        pass_s(stage, 1.0)
    pass_s(stage, 4.0 - len(steps))
    return stage.trace.digest()


def test_two_timelines_never_share_a_hash_though_no_core_notices_the_difference() -> None:
    jump = faults.ClockJump(nodes=("eu-1",), by_s=-60.0)
    timelines = [
        (),
        (jump,),
        (faults.ClockJump(nodes=("eu-1",), by_s=-61.0),),
        (faults.ClockJump(nodes=("eu-2",), by_s=-60.0),),
        (jump, (jump,)),
    ]
    assert len({digest(*steps) for steps in timelines}) == len(timelines)
    assert digest(jump) == digest(jump)


def test_a_release_from_a_node_whose_clock_is_far_ahead_is_refused_by_all_others() -> None:
    stage = started()
    stage.apply(faults.ClockJump(nodes=("eu-1",), by_s=3600.0))
    stage.apply(faults.Release(model="digits"))
    pass_s(stage, 5.0)
    assert sorted(events(stage, "desired.refused")) == ["eu-2", "us-1", "us-2"]
    assert stage.mesh.serving("digits", 2) == []


def test_a_node_whose_clock_is_far_behind_refuses_a_release_and_the_next_one_takes_it() -> None:
    stage = started()
    stage.apply(faults.ClockJump(nodes=("eu-1",), by_s=-3600.0))
    stage.apply(faults.Release(model="digits"))
    pass_s(stage, 5.0)
    assert events(stage, "deploy.refused") == ["eu-1"]
    assert stage.mesh.serving("digits", 2) == ["us-1"]


@pytest.mark.parametrize(
    "fault",
    [
        faults.Latency(nodes=("all",), add_ms=1000),
        faults.Bandwidth(nodes=("all",), mbps=0.01),
        faults.Flap(nodes=("us-2",), up_s=0.1, down_s=0.1),
    ],
    ids=lambda fault: fault.verb,
)
def test_no_timers_pile_up_in_a_mesh_that_suffers(fault: Fault) -> None:
    stage = started()
    stage.apply(fault)
    for _ in range(20):
        pass_s(stage, 1.0)
        stage.invariants.look(stage.sample())


def test_a_clock_is_set_by_no_more_than_fifty_years() -> None:
    for by_s in (-1e18, 3e10):
        jump = faults.ClockJump(nodes=("eu-1",), by_s=by_s)
        with pytest.raises(UsageError, match="by_s"):
            play(Scenario(name="test", regions=REGIONS, nodes=LAPTOPS, faults=(jump,)))
    stage = started()
    for by_s in (-MAX_CLOCK_JUMP_S, MAX_CLOCK_JUMP_S):
        jump = faults.ClockJump(nodes=("eu-1",), by_s=by_s)
        stage.apply(jump)
        pass_s(stage, 6.0)
        stage.undo(jump)
    stage.settle(60.0)
