"""Scenarios played on whole daemons: every verb, calls and looks, and what must not be left over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.sim import faults
from meshnode.sim.faults import Crash, Drain, Fault, Flap, Freeze, PowerOff, SlowDown
from meshnode.sim.invariants import InvariantBroken
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.model import Load, Model, Nodes, Place, Scenario, ServiceTime
from meshnode.sim.stage import Call
from meshnode.sim.virtual.stage import VirtualStage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.sim.stage import Outcome


def scenario(*mishaps: Fault, duration_s: float = 3.0, rate_per_s: float = 20.0) -> Scenario:
    return Scenario(
        name="test",
        regions={"eu-west-1": Place(), "us-east-1": Place()},
        nodes=(
            Nodes(region="eu-west-1", name="eu", count=2),
            Nodes(region="us-east-1", name="us", count=2),
        ),
        models=(Model(name="digits", service=ServiceTime(mean_ms=10), load_s=0.1),),
        load=(Load(model="digits", rate_per_s=rate_per_s, timeout_s=10.0),),
        faults=mishaps,  # type: ignore[arg-type]
        duration_s=duration_s,
        depth="B",
    )


@pytest.fixture
def stage() -> Iterator[Callable[..., VirtualStage]]:
    """Start stages; all are closed at the end."""
    made: list[VirtualStage] = []

    def start(played: Scenario | None = None, seed: int = 1) -> VirtualStage:
        made.append(VirtualStage(played or scenario(), seed))
        made[-1].start(lambda _text: None)
        return made[-1]

    yield start
    for each in made:
        each.close()


_EVERY_VERB: tuple[Fault, ...] = (
    faults.Loss(nodes=("all",), share=0.02, at_s=0.2, for_s=20),
    faults.Duplication(nodes=("all",), share=0.1, at_s=0.2, for_s=20),
    faults.Reordering(nodes=("all",), share=0.1, at_s=0.2, for_s=20),
    faults.Latency(nodes=("us-2",), add_ms=20, jitter=0.3, at_s=0.5, for_s=5),
    faults.Bandwidth(nodes=("us-2",), mbps=50, at_s=0.5, for_s=5),
    faults.GossipDelay(nodes=("all",), add_ms=50, at_s=0.5, for_s=5),
    faults.ClockSkew(nodes=("eu-2",), rate=0.01, at_s=1, for_s=6),
    faults.ClockJump(nodes=("us-1",), by_s=-300, at_s=1, for_s=6),
    faults.DiskFull(nodes=("eu-1",), at_s=1, for_s=4),
    Drain(nodes=("us-2",), at_s=1, for_s=4),
    faults.LyingLoad(nodes=("us-2",), at_s=1, for_s=4),
    faults.StaleLoad(nodes=("us-1",), at_s=1, for_s=4),
    faults.FailRequests(nodes=("us-1",), share=0.1, at_s=1, for_s=2),
    SlowDown(nodes=("eu-1",), factor=3, at_s=1, for_s=3),
    faults.Release(model="digits", at_s=2),
    faults.OrderRelease(model="digits", order="promote", at_s=3),
    faults.Partition(nodes=("us-1",), one_way=True, at_s=4, for_s=2),
    faults.Hold(nodes=("us-2",), at_s=4, for_s=1),
    Crash(nodes=("eu-2",), torn=True, at_s=7),
    faults.Restart(nodes=("eu-2",), at_s=8, torn=True),
    PowerOff(nodes=("us-1",), at_s=8, for_s=2),
    Freeze(nodes=("us-2",), at_s=8, for_s=2),
    faults.Thaw(nodes=("us-2",), at_s=9),
    faults.Sleep(nodes=("eu-1",), at_s=12, for_s=3),
    faults.Leave(nodes=("us-2",), at_s=14, for_s=2),
    Flap(nodes=("eu-2",), up_s=2, down_s=1, at_s=15, for_s=4),
    faults.RegionDown(region="us-east-1", at_s=17, for_s=3),
)


def test_whole_daemons_live_through_every_verb_and_one_seed_gives_one_hash() -> None:
    """Not that nothing fails: that whatever happens ends, and that all agree when it is over."""
    assert {type(each) for each in _EVERY_VERB} == {*faults.VERBS.values()}
    played = scenario(*_EVERY_VERB, duration_s=22.0)
    first, second = play(played, seed=5), play(played, seed=5)
    assert first.violations == []
    assert all(outcome is not None for _, outcome in first.calls)
    answered = sum(outcome.code == "ok" for _, outcome in first.calls if outcome is not None)
    assert answered > 0.8 * len(first.calls)
    assert first.trace_hash == second.trace_hash


def test_calls_are_answered_and_seen(stage: Callable[..., VirtualStage]) -> None:
    played = stage(scenario(rate_per_s=0.0))
    outcomes: list[Outcome] = []
    begin = played.now()
    played.send(
        Call(0, 0.0, "eu-1", "digits", 1.0, 5.0, 5.0),
        lambda _call, outcome: outcomes.append(outcome),
    )
    played.run_to(begin + 0.5)
    look = played.sample()
    busiest = max(look.nodes.values(), key=lambda node: node.in_system)
    assert (busiest.state, busiest.alive, busiest.in_system, busiest.serving) == ("up", 4, 1, 1)
    assert busiest.busy == pytest.approx(0.5, abs=0.05)  # one of two slots
    played.run_to(begin + 2.0)
    assert [each.code for each in outcomes] == ["ok"]
    played.settle(30.0)
    kinds = {record.kind for record in played.trace.find(subject="us-2")}
    assert "member.alive" in kinds


def test_what_nobody_caught_in_a_callback_ends_the_run(stage: Callable[..., VirtualStage]) -> None:
    played = stage()

    def break_it() -> None:
        played.invariants.broken("one-answer", "a test says so")

    played.at(played.now() + 1.0, break_it)
    with pytest.raises(InvariantBroken, match="one-answer: a test says so"):
        played.run_to(played.now() + 2.0)


def test_a_node_is_up_again_when_nothing_keeps_it_down_any_more(
    stage: Callable[..., VirtualStage],
) -> None:
    played = stage()
    node = played.mesh.nodes["us-1"]
    crash, power = Crash(nodes=("us-1",), for_s=1), PowerOff(nodes=("us-*",), for_s=9)
    played.apply(crash)
    played.apply(power)
    assert node.state == "off"
    played.undo(crash)
    assert node.state == "off"
    played.undo(power)
    assert node.state == "up"
    played.undo(power)  # a second time changes nothing
    played.settle(60.0)


def test_a_node_thaws_when_nothing_freezes_it_any_more(stage: Callable[..., VirtualStage]) -> None:
    played = stage()
    node = played.mesh.nodes["us-1"]
    first, second = Freeze(nodes=("us-1",)), Freeze(nodes=("us-*",), at_s=1)
    played.apply(first)
    played.apply(second)
    played.undo(first)
    assert node.state == "frozen"
    played.undo(second)
    assert node.state == "up"


def test_a_flapping_node_crashes_and_comes_back_until_it_is_undone(
    stage: Callable[..., VirtualStage],
) -> None:
    played = stage()
    node = played.mesh.nodes["us-1"]
    flap = Flap(nodes=("us-1",), up_s=2, down_s=1)
    states = []
    played.apply(flap)
    for _ in range(7):
        played.run_to(played.now() + 0.5)
        states.append(node.state)
        played.run_to(played.now() + 0.5)
    assert states == ["down", "up", "up", "down", "up", "up", "down"]
    played.undo(flap)
    assert node.state == "up"
    boots = node.boots
    played.run_to(played.now() + 5.0)
    assert node.boots == boots


def test_tasks_that_a_daemon_leaves_behind_are_found(stage: Callable[..., VirtualStage]) -> None:
    played = stage()
    node = played.mesh.nodes["us-1"]
    for _ in range(40):
        node.host.run(asyncio.sleep(1e9))
    with pytest.raises(InvariantBroken, match=r"no-leak: us-1 has .* tasks"):
        played.settle(30.0)


def test_a_request_that_nobody_waits_for_is_found(stage: Callable[..., VirtualStage]) -> None:
    played = stage()
    node = played.mesh.nodes["us-1"]
    asked = played.mesh.ask(Call(0, 0.0, "us-1", "digits", 60.0, 2.0, 2.0))
    # It is slow, so another node was asked beside the first: a run is left at either.
    with pytest.raises(InvariantBroken, match=r"1 runs of (us|eu)-[12] have not ended"):
        played.settle(5.0)
    assert asked.done()
    assert node.state == "up"


async def _health(played: VirtualStage, name: str) -> int:
    url = played.url(name) + "/v2/health/ready"
    async with played.session() as session, session.get(url) as answer:
        return answer.status


def test_a_run_that_outlives_its_client_is_no_request_left_over() -> None:
    slow = Model(name="digits", service=ServiceTime(mean_ms=3000), load_s=0.1)
    asked = Load(model="digits", rate_per_s=5.0, timeout_s=1.0)
    played = msgspec.structs.replace(scenario(), models=(slow,), load=(asked,))
    result = play(played)
    assert result.violations == []
    assert any(outcome is not None and outcome.code == "deadline" for _, outcome in result.calls)


def test_an_aiohttp_session_asks_gateways_from_a_client_host(
    stage: Callable[..., VirtualStage],
) -> None:
    played = stage()
    assert played.run(_health(played, "eu-1"), played.client_host("us-east-1")) == 200
