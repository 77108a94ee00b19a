"""Cases 1, 2, 14, 15 and 16: coming, going, coming back, and being two."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from meshnode.membership.messages import Gossip, Rumour, pack_id
from meshnode.sim.fleet import records_of
from meshnode.sim.published import dissemination_s
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual_fleet import SimFleet

    Record = Callable[[str, object], None]
    MakeFleet = Callable[..., SimFleet]


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
@pytest.mark.seeds(2)
@pytest.mark.sizes(2, 10, 30, soak=(60, 100, 300, 1000))
def test_case_01_a_join_through_one_seed_is_known_to_all_within_twice_the_table(
    make_fleet: MakeFleet, seed: int, count: int, loss: float, record_property: Record
) -> None:
    fleet = make_fleet(seed)
    others = fleet.settled(count - 1, quiet_s=5.0) if count > 2 else fleet.settled(1)
    fleet.set_loss(loss)
    took: list[float] = []
    for number in range(3):
        name = f"late{number}"
        fleet.add(name, seeds=[others[number % len(others)]])
        took.append(fleet.run_until(fleet.acquainted, 30.0))
        fleet.run_for(2.0)
    record_property("all_know_s", statistics.median(took))
    assert statistics.median(took) <= 2 * dissemination_s(count, loss)


@pytest.mark.seeds(1)
@pytest.mark.parametrize("present", [1, 20])
def test_case_02_a_hundred_join_at_once_through_one_seed(
    make_fleet: MakeFleet, seed: int, present: int, record_property: Record
) -> None:
    fleet = make_fleet(seed)
    fleet.settled(present)
    for number in range(100):
        fleet.add(f"late{number}", seeds=["n0"])
    took = fleet.run_until(fleet.acquainted, 30.0)
    record_property("all_know_s", took)
    assert took <= 2 * dissemination_s(100 + present)
    fleet.run_for(60.0)
    assert fleet.agree()
    assert not fleet.events("member.dead", "member.refused")


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.sizes(3, 50, soak=(300,))
def test_case_14_a_leave_is_known_within_two_seconds_without_suspicion_and_for_good(
    make_fleet: MakeFleet, seed: int, count: int, loss: float, record_property: Record
) -> None:
    """A record and a rumour of the time before the leave come late, and wake nobody."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    fleet.set_loss(loss)
    leaver, others = names[count // 2], names[: count // 2] + names[count // 2 + 1 :]
    record = fleet.record(leaver)
    fleet.leave(leaver)
    took = fleet.run_until(
        lambda: all(fleet.view(name)[leaver].state is NodeState.LEFT for name in others), 2.0
    )
    record_property("all_know_s", took)
    late = Rumour(pack_id(record.node_id), record.epoch, record.counter, 0)
    for name in others:
        fleet.say(others[0], name, Gossip((late,)))
        fleet.say(others[0], name, records_of(record), by_datagram=False)
    fleet.run_for(60.0)
    assert not fleet.events("member.suspect", "member.dead", subject=leaver)
    assert not fleet.events("member.alive", subject=leaver)
    assert fleet.agree(others)


@pytest.mark.parametrize("how", ["crash", "power_off", "leave"])
@pytest.mark.sizes(5, 25, soak=(50, 200))
def test_case_15_a_node_that_restarts_with_its_key_is_back_within_five_seconds(
    make_fleet: MakeFleet, seed: int, count: int, how: str, record_property: Record
) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    before = fleet.record(names[1]).epoch
    getattr(fleet, how)(names[1])
    fleet.run_for(1.0)
    fleet.restart(names[1])
    took = fleet.run_until(fleet.agree, 5.0)
    record_property("rejoined_s", took)
    assert fleet.record(names[1]).epoch > before
    fleet.run_for(60.0)
    assert fleet.agree()
    assert not fleet.events("member.conflict")


@pytest.mark.parametrize("how", ["crash", "power_off"])
@pytest.mark.parametrize("down_s", [1.0, 120.0])
@pytest.mark.sizes(5, 25, soak=(50, 200))
def test_case_15_a_whole_mesh_that_restarts_at_once_finds_itself_within_five_seconds(
    make_fleet: MakeFleet,
    seed: int,
    count: int,
    down_s: float,
    how: str,
    record_property: Record,
) -> None:
    """Nobody has a seed: each has its disk."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    for name in names:
        getattr(fleet, how)(name)
    fleet.run_for(down_s)
    for name in names:
        fleet.restart(name)
    took = fleet.run_until(fleet.agree, 5.0)
    record_property("rejoined_s", took)
    fleet.run_for(60.0)
    assert fleet.agree()
    assert not fleet.events("member.suspect", "member.dead")
