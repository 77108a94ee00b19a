"""Whole meshes in virtual time: joining, dying, leaving, coming back, and bad networks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.events import LinkDown, Woke
from meshnode.membership import WAN, MembershipConfig, read_members
from meshnode.types import NodeState

if TYPE_CHECKING:
    from tests.unit.membership.conftest import Node, World

CRASH_BOUND_S = 1.0 + 1.0 + 4.0 + 2.0
"""A probe that waits for its period, its judgement, suspicion at n <= 10, dissemination."""


def dead_at(node: Node, subject: Node) -> float | None:
    """When a node declared another dead."""
    times = (
        time
        for time, emit in node.emitted
        if (emit.kind, emit.subject) == ("member.dead", subject.id)
    )
    return next(times, None)


@pytest.mark.parametrize(("count", "limit_s"), [(2, 1.0), (3, 2.0), (10, 3.0), (50, 5.0)])
def test_nodes_that_join_through_one_seed_all_know_all(
    world: World, count: int, limit_s: float
) -> None:
    first = world.add("n0")
    nodes = [first, *(world.add(f"n{i}", seeds=[first.address]) for i in range(1, count))]
    world.run_until(lambda: world.agree(nodes), limit_s)
    world.run(10.0)
    assert len(world.links) == count * (count - 1) // 2
    for node in nodes:
        assert not node.emits("member.suspect", "member.dead", "member.refused")


def test_a_wan_mesh_forms_as_well(make_world: type[World]) -> None:
    world = make_world(config=WAN)
    nodes = world.mesh(5)
    world.crash(nodes[4])
    world.run_until(lambda: world.agree(nodes[:4]), 60.0)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_crash_is_noticed_by_all_within_the_bound(world: World, count: int) -> None:
    nodes = world.mesh(count)
    victim, survivors = nodes[-1], nodes[:-1]
    world.crash(victim)
    world.run_until(lambda: world.agree(survivors), CRASH_BOUND_S)
    for node in survivors:
        assert node.emits("member.dead") == [victim.id]


def test_a_power_cut_is_noticed_without_any_link_breaking(world: World) -> None:
    """The victim waits for its turn: with ten nodes somebody probes it within a few periods."""
    nodes = world.mesh(10)
    world.crash(nodes[-1], silently=True)
    world.run_until(lambda: world.agree(nodes[:-1]), CRASH_BOUND_S + 4.0)


def test_a_power_cut_at_fifty_nodes_is_known_in_eight_seconds_at_the_median(world: World) -> None:
    nodes = world.mesh(50)
    start = world.now
    world.crash(nodes[-1], silently=True)
    world.run(20.0)
    times = sorted(
        when - start for node in nodes[:-1] if (when := dead_at(node, nodes[-1])) is not None
    )
    assert len(times) == 49
    assert times[24] <= 8.0  # of which suspicion at n = 50 is 3 x log10(50) = 5.1 s


def test_a_leave_is_known_to_all_in_two_seconds_and_nobody_suspects(world: World) -> None:
    nodes = world.mesh(10)
    leaver, others = nodes[3], nodes[:3] + nodes[4:]
    world.leave(leaver)
    world.run_until(lambda: all(node.view()[leaver.id] is NodeState.LEFT for node in others), 2.0)
    world.run(30.0)
    for node in others:
        assert node.emits("member.left") == [leaver.id]
        assert not node.emits("member.suspect", "member.dead")


def test_a_node_that_missed_the_leave_learns_it_by_anti_entropy_and_resurrects_nobody(
    world: World,
) -> None:
    """It comes back after a minute, with the departed still dead or alive in its view."""
    nodes = world.mesh(4)
    late, leaver, others = nodes[0], nodes[1], nodes[2:]
    world.split([late], nodes[1:])
    world.leave(leaver)
    world.run(1.0)
    world.heal()
    world.run(60.0)
    assert late.view()[leaver.id] is NodeState.LEFT
    for node in others:
        assert node.view()[leaver.id] is NodeState.LEFT
        assert node.emits("member.alive").count(leaver.id) == 1


def test_a_restart_with_the_same_key_is_accepted_within_five_seconds(world: World) -> None:
    nodes = world.mesh(5)
    world.crash(nodes[2])
    world.run(0.3)
    again = world.add("n2", seeds=[nodes[0].address], epoch=2, boot=8)
    now = [node for node in nodes if node.name != "n2"] + [again]
    world.run_until(lambda: world.agree(now), 5.0)
    assert nodes[0].core.members[again.id].incarnation == (2, 0)


@pytest.mark.parametrize("farewell", [True, False])
def test_a_restart_after_a_leave_or_a_death_is_one_down_event_and_one_up_event(
    world: World, farewell: bool
) -> None:
    nodes = world.mesh(3)
    if farewell:
        world.leave(nodes[2])
    else:
        world.crash(nodes[2])
    world.run(30.0)
    again = world.add("n2", seeds=[nodes[0].address], epoch=2)
    world.run_until(lambda: world.agree([nodes[0], nodes[1], again]), 5.0)
    for node in nodes[:2]:
        downs = node.emits("member.dead", "member.left")
        assert downs == [again.id]
        assert node.emits("member.alive").count(again.id) == 2


def test_a_whole_mesh_that_restarts_at_once_finds_itself_from_disk_without_a_seed(
    world: World,
) -> None:
    nodes = world.mesh(5)
    disks = [node.disk for node in nodes]
    for node in nodes:
        world.crash(node)
    world.run(1.0)
    again = []
    for index, disk in enumerate(disks):
        assert disk is not None
        again.append(world.add(f"n{index}", known=read_members(disk), epoch=2, boot=9))
    world.run_until(lambda: world.agree(again), 5.0)


def test_the_only_node_that_is_up_keeps_dialling_its_seed_until_that_comes(world: World) -> None:
    late = world.add("n1", seeds=[world.add("n0").address])
    seed = next(node for node in world.nodes.values() if node.name == "n0")
    world.crash(seed)
    world.run(600.0)
    again = world.add("n0", epoch=2)
    world.run_until(lambda: world.agree([late, again]), 31.0)


def test_thirty_percent_loss_for_two_minutes_kills_nobody(world: World) -> None:
    nodes = world.mesh(20)
    world.loss = 0.3
    world.run(120.0)
    for node in nodes:
        assert not node.emits("member.dead")
    world.loss = 0.0
    world.run_until(lambda: world.agree(nodes), 20.0)


def test_a_mesh_forms_at_thirty_percent_loss(world: World) -> None:
    world.loss = 0.3
    first = world.add("n0")
    nodes = [first, *(world.add(f"n{i}", seeds=[first.address]) for i in range(1, 10))]
    world.run_until(lambda: world.agree(nodes), 15.0)


def test_a_node_whose_udp_is_blocked_stays_alive_through_its_links_and_people_are_told(
    world: World,
) -> None:
    nodes = world.mesh(4)
    walled = nodes[2]
    world.udp_cut = lambda sender, receiver: walled in (sender, receiver)
    world.run(60.0)
    for node in nodes:
        assert not node.emits("member.suspect", "member.dead")
        if node is not walled:
            assert node.emits("member.udp_blocked") == [walled.id]
            (detail,) = (
                emit.detail for _, emit in node.emitted if emit.kind == "member.udp_blocked"
            )
            assert "(a firewall or NAT); its link carries everything" in detail
    world.udp_cut = None
    world.run(20.0)
    assert nodes[0].emits("member.udp_open") == [walled.id]


def test_a_mesh_without_any_udp_spreads_news_over_links(world: World) -> None:
    nodes = world.mesh(5)
    world.udp_cut = lambda sender, receiver: sender is not receiver
    world.run(60.0)
    world.perform(nodes[0], nodes[0].core.update_record(world.now, region="us"))
    world.run_until(lambda: world.agree(nodes), 3.0)
    world.crash(nodes[4])
    world.run_until(lambda: world.agree(nodes[:4]), CRASH_BOUND_S + 2.0)


def test_a_pair_cut_from_each_other_is_kept_alive_by_helpers(world: World) -> None:
    """Neither datagrams nor the link pass between the two, in one direction; others pass both."""
    nodes = world.mesh(5)
    first, second = nodes[1], nodes[2]
    world.wire_cut = lambda sender, receiver: (sender, receiver) == (first, second)
    world.unlink(first.id, second.id)
    world.run(60.0)
    for node in nodes:
        assert not node.emits("member.suspect", "member.dead")


def test_a_node_that_slept_five_seconds_declares_nobody_dead(world: World) -> None:
    nodes = world.mesh(5)
    sleeper = nodes[1]
    for _ in range(5):
        world.run(7.3)
        sleeper.asleep_until = world.now + 5.0
        world.run(5.0)
    world.run(20.0)
    assert not sleeper.emits("member.suspect", "member.dead")
    assert world.agree(nodes)


def test_a_node_frozen_for_a_minute_is_dead_to_others_and_returns_when_it_wakes(
    world: World,
) -> None:
    nodes = world.mesh(5)
    frozen, others = nodes[1], [node for node in nodes if node.name != "n1"]
    frozen.asleep_until = world.now + 60.0
    world.run(30.0)
    assert world.agree(others)
    world.run(30.0)
    world.run_until(lambda: world.agree(nodes), 10.0)
    assert frozen.core.record.counter > 0
    assert frozen.id in frozen.emits("member.refuted")


@pytest.mark.parametrize("is_told", [True, False])
def test_a_node_that_wakes_before_its_network_blames_itself(world: World, *, is_told: bool) -> None:
    """A laptop's radio takes ten seconds; all the while everybody is silent."""
    nodes = world.mesh(3)
    sleeper, others = nodes[1], [nodes[0], nodes[2]]
    world.split([sleeper], others)
    sleeper.asleep_until = world.now + 60.0
    world.run(60.0)
    if is_told:
        world.perform(sleeper, sleeper.core.handle(Woke(60.0), world.now))
    world.run(20.0)
    assert bool(sleeper.emits("member.dead")) is not is_told
    world.heal()
    world.run_until(lambda: world.agree(nodes), 2.5 * world.config.reconnect_interval_s)


@pytest.mark.parametrize("count", [2, 6])
def test_a_partition_heals_unaided(world: World, count: int) -> None:
    nodes = world.mesh(count)
    left, right = nodes[: count // 2], nodes[count // 2 :]
    world.split(left, right)
    world.run(600.0)
    assert world.agree(left)
    assert world.agree(right)
    world.heal()
    world.run_until(lambda: world.agree(nodes), 2.5 * world.config.reconnect_interval_s)


def test_an_accused_node_refutes_before_it_is_declared_dead(world: World) -> None:
    """Everything to it is lost for a moment: one accusation, one refutation, no death."""
    nodes = world.mesh(5)
    victim = nodes[2]
    world.udp_cut = lambda sender, receiver: victim in (sender, receiver)
    for first, second in list(world.links):
        if victim.id in (first, second):
            world.unlink(first, second)
    world.wire_cut = world.udp_cut
    accused = lambda: any(node.emits("member.suspect") for node in nodes)  # noqa: E731 - a condition
    world.run_until(accused, 3.0)
    world.udp_cut = world.wire_cut = None
    world.run_until(lambda: world.agree(nodes), 10.0)
    for node in nodes:
        assert victim.id not in node.emits("member.dead")
    assert victim.core.record.counter >= 1


def test_a_changed_record_reaches_all(world: World) -> None:
    nodes = world.mesh(10)
    world.perform(nodes[3], nodes[3].core.update_record(world.now, capabilities={"cpus": 8}))
    world.run_until(lambda: world.agree(nodes), 2.0)
    assert nodes[0].core.members[nodes[3].id].record.capabilities == {"cpus": 8}


def test_a_roaming_node_is_dialled_at_its_new_address(world: World) -> None:
    nodes = world.mesh(3)
    moved = (nodes[2].address._replace(host="10.9.9.9"),)
    world.perform(nodes[2], nodes[2].core.update_record(world.now, addresses=moved))
    world.run(2.0)
    for peer in nodes[:2]:
        world.unlink(peer.id, nodes[2].id)
    world.run(5.0)
    assert len(world.links) == 3
    assert world.agree(nodes)


@pytest.mark.parametrize("boot", [99, 3])
def test_two_processes_with_one_key_are_reported_and_do_not_outbid_each_other_for_ever(
    world: World, boot: int
) -> None:
    """A copied data folder: the second process shows itself under another address."""
    nodes = world.mesh(3)
    elsewhere = (nodes[0].address._replace(port=9),)
    twin = world.add("n2", seeds=[nodes[0].address], boot=boot, addresses=elsewhere)
    world.run(60.0)
    reporter = nodes[0] if boot == 99 else twin
    assert reporter.emits("member.conflict") == [twin.id]
    assert twin.core.record.counter < 10
    assert world.agree([*nodes[:2], twin])


def test_a_node_whose_data_folder_was_restored_outbids_its_former_life(world: World) -> None:
    nodes = world.mesh(3)
    world.crash(nodes[2])
    world.run(1.0)
    later = world.add("n2", seeds=[nodes[0].address], epoch=9, boot=8)
    world.run(5.0)
    world.crash(later)
    world.run(1.0)
    restored = world.add("n2", seeds=[nodes[0].address], epoch=3, boot=9)
    world.run_until(lambda: world.agree([*nodes[:2], restored]), 5.0)
    assert restored.core.record.incarnation == (9, 1)
    assert restored.emits("member.conflict") == [restored.id]


@pytest.mark.parametrize("ran_s", [0.5, 20.0])
def test_a_node_outlives_the_leave_of_its_copy(world: World, ran_s: float) -> None:
    nodes = world.mesh(3)
    copied = nodes[2]
    for _ in range(2):  # the second time the copy's process is known already
        twin = world.add("n2", seeds=[nodes[0].address], epoch=9, boot=99)
        world.run(ran_s)
        world.leave(twin)
        world.run(1.0)
        assert nodes[0].view()[copied.id] is NodeState.LEFT
        world.nodes[copied.id] = copied  # its messages reach it again; its links were taken over
        for peer in nodes[:2]:
            world.tell(copied, LinkDown(peer.id, "taken over"))
        world.run(60.0)
        assert nodes[0].view()[copied.id] is NodeState.ALIVE
        assert world.agree([*nodes[:2], copied])
    assert copied.core.record.epoch == 9


def test_dead_members_are_forgotten_after_the_retention_time(make_world: type[World]) -> None:
    world = make_world(config=MembershipConfig(retention_s=120.0))
    nodes = world.mesh(3)
    world.crash(nodes[2])
    world.run(100.0)
    for node in nodes[:2]:
        assert node.view()[nodes[2].id] is NodeState.DEAD
    world.run(60.0)
    for node in nodes[:2]:
        assert nodes[2].id not in node.core.members
    assert world.agree(nodes[:2])


def test_the_same_seed_gives_the_same_effects_whatever_the_hash_seed() -> None:
    script = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('world', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "world = module.World(seed=5)\n"
        "nodes = world.mesh(6)\n"
        "world.loss = 0.2\n"
        "world.crash(nodes[5])\n"
        "world.run(20.0)\n"
        "world.leave(nodes[4])\n"
        "world.run(5.0)\n"
        "print(world.trace.hexdigest())\n"
    )
    conftest = str(Path(__file__).with_name("conftest.py"))
    traces = {
        subprocess.run(
            [sys.executable, "-c", script, conftest],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1
    assert len(traces.pop().strip()) == 64


def test_an_idle_mesh_sends_a_probe_and_an_ack_per_node_and_second(world: World) -> None:
    nodes = world.mesh(10)
    world.datagrams = 0
    world.run(60.0)
    assert math.isclose(world.datagrams, 2 * len(nodes) * 60, rel_tol=0.05)
