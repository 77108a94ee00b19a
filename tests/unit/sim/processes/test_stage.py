"""Faults on a stage of processes, without the processes: what is ordered, and when nodes come back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ConfigError, PeerError, UsageError
from meshnode.sim import faults
from meshnode.sim.processes.orders import ORDER_DECODER, PLAN_DECODER, Fares, Lay, Plan, line_of
from meshnode.sim.processes.ports import choose_ports
from meshnode.sim.processes.process import NodeProcess
from meshnode.sim.processes.rehearsal import Rehearsal
from meshnode.sim.processes.stage import POWER_FAILS_S, ProcessStage
from meshnode.sim.scenario.model import Nodes, Place, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshnode.sim.processes.rehearsal import Member

SCENARIO = Scenario(
    name="three",
    regions={"dublin": Place(), "virginia": Place()},
    nodes=(Nodes(region="dublin", name="d", count=2), Nodes(region="virginia", name="v")),
)


class Played(ProcessStage):
    """A stage whose nodes are only noted: what was done to them is in `done`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__(SCENARIO, 1)
        self.done: list[str] = []
        for member in self.rehearsal.members.values():
            member.state = "up"

        async def boot(_: Rehearsal, member: Member, *, torn: bool = False) -> None:
            member.boot += 1
            member.state = "up"
            self.done.append(f"boot {member.name}{' torn' if torn else ''}")

        def end(what: str, state: str) -> Any:
            def act(_: Rehearsal, member: Member, state: str = state) -> None:
                member.state = state
                self.done.append(f"{what} {member.name}")

            return act

        patch.setattr(Rehearsal, "boot", boot)
        for what, state in (
            ("kill", "down"),
            ("leave", "left"),
            ("freeze", "frozen"),
            ("thaw", "up"),
        ):
            patch.setattr(Rehearsal, what, end(what, state))
        patch.setattr(Rehearsal, "_tell_all", lambda _, order: self.done.append(repr(order)))

    def let_pass(self, seconds: float = 0.02) -> list[str]:
        """Let time pass; return what was done since the last time."""
        self.run_to(self.now() + seconds)
        done, self.done = self.done, []
        return done


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    made = Played(monkeypatch)
    yield made
    made.close()


def test_a_node_that_lost_its_power_in_a_write_boots_with_a_torn_disk(stage: Played) -> None:
    power_off = faults.PowerOff(nodes=("d-1",), torn=True)
    stage.apply(power_off)
    stage.let_pass(0.1)
    stage.undo(power_off)
    assert "boot d-1 torn" in stage.let_pass()


def test_a_crashed_node_boots_again_when_the_fault_is_undone(stage: Played) -> None:
    crash = faults.Crash(nodes=("d-1",), torn=True)
    stage.apply(crash)
    assert stage.let_pass() == ["kill d-1"]
    assert stage.sample().nodes["d-1"].state == "down"
    stage.undo(crash)
    assert stage.let_pass() == ["boot d-1 torn"]
    stage.undo(crash)
    assert stage.let_pass() == []


def test_a_node_that_two_faults_keep_down_boots_after_the_second(stage: Played) -> None:
    crash, leave = faults.Crash(nodes=("d-1",)), faults.Leave(nodes=("region:dublin",))
    stage.apply(crash)
    stage.apply(leave)
    assert stage.let_pass() == ["kill d-1", "leave d-2"]
    stage.undo(crash)
    assert stage.let_pass() == []
    stage.undo(leave)
    assert stage.let_pass() == ["boot d-1", "boot d-2"]


def test_a_restart_ends_what_keeps_a_node_down_and_nobody_else(stage: Played) -> None:
    crash = faults.Crash(nodes=("d-*",))
    stage.apply(crash)
    stage.apply(faults.Restart(nodes=("d-2",), torn=True))
    assert stage.let_pass() == ["kill d-1", "kill d-2", "boot d-2 torn"]
    stage.undo(crash)
    assert stage.let_pass() == ["boot d-1"]


def test_power_fails_only_after_the_wires_are_cut(stage: Played) -> None:
    down = faults.RegionDown(region="virginia")
    stage.apply(down)
    (laid,) = stage.let_pass(POWER_FAILS_S / 5)
    assert "sources=('v',)" in laid
    assert "fault=None" in laid
    assert stage.let_pass(POWER_FAILS_S * 2) == ["kill v"]
    assert stage.sample().nodes["v"].state == "off"
    stage.undo(down)
    assert stage.let_pass() == ["Mend(number=1)", "boot v"]


def test_a_thaw_wakes_a_sleeping_node_and_puts_it_back_on_the_network(stage: Played) -> None:
    stage.apply(faults.Sleep(nodes=("d-1",)))
    stage.apply(faults.Freeze(nodes=("d-1",)))
    assert stage.let_pass()[1:] == ["freeze d-1"]
    stage.apply(faults.Thaw(nodes=("d-1",)))
    assert stage.let_pass() == ["Mend(number=1)", "thaw d-1"]


def test_a_frozen_node_that_is_thawed_by_one_fault_stays_frozen_by_another(stage: Played) -> None:
    short, long = faults.Freeze(nodes=("d-1",), for_s=1), faults.Freeze(nodes=("d-1",), for_s=2)
    stage.apply(short)
    stage.apply(long)
    stage.undo(short)
    assert stage.let_pass() == ["freeze d-1"]
    stage.undo(long)
    assert stage.let_pass() == ["thaw d-1"]


def test_a_flapping_node_ends_up(stage: Played) -> None:
    flap = faults.Flap(nodes=("v",), up_s=0.05, down_s=0.05)
    stage.apply(flap)
    done = stage.let_pass(0.28)
    assert done[:4] == ["kill v", "boot v", "kill v", "boot v"]
    stage.undo(flap)
    assert [*done, *stage.let_pass(0.2)][-1] == "boot v"


def test_faults_of_the_network_are_rules_that_are_taken_off_one_by_one(stage: Played) -> None:
    cut, slow = faults.Partition(nodes=("v",)), faults.Latency(nodes=("all",), add_ms=5)
    for fault in (cut, slow):
        stage.apply(fault)
    first, second = stage.let_pass()
    assert "sources=('v',), targets=('d-1', 'd-2')" in first
    assert "targets=('d-1', 'd-2', 'v')" in second
    stage.undo(cut)
    assert stage.let_pass() == ["Mend(number=1)"]


def test_what_cannot_be_done_is_told_before_and_refused(stage: Played) -> None:
    fault = faults.GossipDelay(nodes=("all",), add_ms=5)
    assert "inside TLS" in str(stage.unsupported(fault))
    with pytest.raises(UsageError, match="gossip-delay is not possible at depth C"):
        stage.apply(fault)
    others = [verb for verb in faults.VERBS.values() if verb is not faults.GossipDelay]
    assert len(others) == 26


def test_a_process_that_ends_unasked_fails_the_run(stage: Played) -> None:
    member = stage.rehearsal.members["v"]
    member.node_id = "somebody"
    member.process = NodeProcess("v", stage.rehearsal.folder / "v.log", print, print)
    stage.rehearsal._gone(member, member.process)
    with pytest.raises(PeerError, match="v ended with code 0: it left no log"):
        stage.let_pass()
    assert stage.sample().nodes["v"].state == "down"


def test_what_fails_in_a_call_is_raised_where_somebody_waits(stage: Played) -> None:
    def fail() -> None:
        raise ValueError("in a callback")

    stage.at(stage.now(), fail)
    with pytest.raises(ValueError, match="in a callback"):
        stage.let_pass()


def test_a_sample_tells_the_share_of_the_slots_that_worked(stage: Played) -> None:
    member = stage.rehearsal.members["v"]

    def told(busy_s: float) -> None:
        member.fares = Fares(
            alive=3,
            in_system=1,
            is_busy=True,
            busy_s=busy_s,
            slots=2,
            serving=(("m", 1),),
            digest="x",
        )

    told(0.0)
    stage.sample()
    begin = stage.now()
    stage.let_pass(0.1)
    told((stage.now() - begin) * 2 * 0.5)
    node = stage.sample().nodes["v"]
    assert node.busy == pytest.approx(0.5, abs=0.1)
    assert (node.alive, node.slots, node.serving, node.in_system) == (3, 2, 1, 1)


def test_every_fault_of_the_network_travels_to_the_processes_and_a_plan_too(tmp_path: Path) -> None:
    samples = [
        faults.Partition(nodes=("a",), share=0.5),
        faults.Loss(nodes=("a",), share=0.1),
        faults.Bandwidth(nodes=("a",), mbps=1),
        None,
    ]
    for number, fault in enumerate(samples):
        order = Lay(number=number, fault=fault, sources=("a",), targets=("b",), salt="x")
        assert ORDER_DECODER.decode(line_of(order)) == order
    plan = Plan(
        scenario=SCENARIO,
        seed=1,
        boot=1,
        name="v",
        folder=str(tmp_path),
        ports={"d-1": 1, "d-2": 2, "v": 3},
        http_port=0,
    )
    assert PLAN_DECODER.decode(line_of(plan)) == plan


def test_a_block_of_ports_belongs_to_one_rehearsal() -> None:
    first, guard = choose_ports(3, 0)
    try:
        with pytest.raises(ConfigError, match=f"port {first} cannot be had; .* --base-port"):
            choose_ports(3, first)
        other, second_guard = choose_ports(3, 0)
        second_guard.close()
        assert other != first
    finally:
        guard.close()
    choose_ports(3, first)[1].close()


def test_too_many_nodes_and_a_folder_that_is_not_empty_are_refused(tmp_path: Path) -> None:
    many = Scenario(
        name="many", regions={"dublin": Place()}, nodes=(Nodes(region="dublin", count=31),)
    )
    with pytest.raises(ConfigError, match="31 nodes; as processes at most 30"):
        Rehearsal(many, 1)
    (tmp_path / "something").touch()
    with pytest.raises(ConfigError, match="is not empty; name a new folder with --keep"):
        Rehearsal(SCENARIO, 1, keep=tmp_path)


async def test_a_node_that_ends_at_its_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    heard: list[object] = []
    process = NodeProcess("v", tmp_path / "v.log", heard.append, heard.append)
    plan = Plan(
        scenario=SCENARIO,
        seed=1,
        boot=1,
        name="nobody",
        folder=str(tmp_path),
        ports={},
        http_port=0,
    )
    await process.start(plan)
    async with asyncio.timeout(20):
        await process.ended.wait()
    assert heard == [process]
    assert process.code == 1
    assert "StopIteration" in process.how_it_ended()
    await process.close()
