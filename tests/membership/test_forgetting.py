"""Cases 23 and 24, and copies: what is gone stays gone, and is told once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from meshnode.membership import LAN
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual_fleet import SimFleet

    MakeFleet = Callable[..., SimFleet]

SHORT = dataclasses.replace(LAN, retention_s=120.0)
"""Forgets after two minutes what a mesh keeps for a day."""


@pytest.mark.seeds(1)
@pytest.mark.parametrize("how", ["crash", "leave"])
@pytest.mark.parametrize("away", ["partition", "freeze", "power_off"])
@pytest.mark.sizes(6, soak=(20,))
def test_case_23_a_node_that_was_away_past_the_grace_brings_nobody_back(
    make_fleet: MakeFleet, seed: int, count: int, away: str, how: str
) -> None:
    """It was away when the other went, and the mesh has forgotten that one by the time it returns."""
    fleet = make_fleet(seed, config=SHORT)
    names = fleet.settled(count)
    late, gone, others = names[0], names[1], names[2:]
    if away == "partition":
        fleet.partition([late], names[1:])
    else:
        getattr(fleet, away)(late)
    fleet.run_for(1.0)
    getattr(fleet, how)(gone)
    fleet.run_for(3 * SHORT.retention_s)
    assert all(gone not in fleet.view(name) for name in others)
    fleet.forget_events()
    if away == "partition":
        fleet.heal()
    elif away == "freeze":
        fleet.thaw(late)
    else:
        fleet.restart(late)
    fleet.run_for(120.0)
    assert fleet.agree([late, *others])
    assert not [event for event in fleet.events("member.alive", subject=gone) if event.node != late]


@pytest.mark.seeds(1)
@pytest.mark.parametrize("how", ["crash", "leave"])
@pytest.mark.sizes(3, 12)
def test_case_24_a_member_is_forgotten_after_its_time_and_its_end_is_told_once_per_life(
    make_fleet: MakeFleet, seed: int, count: int, how: str
) -> None:
    """Three lives: it ends, comes back before it is forgotten, ends, comes back after that, ends."""
    fleet = make_fleet(seed, config=SHORT)
    names = fleet.settled(count)
    gone, others = names[-1], names[:-1]
    word = "member.left" if how == "leave" else "member.dead"
    for life, pause_s in enumerate((60.0, 2 * SHORT.retention_s, 2 * SHORT.retention_s), start=1):
        getattr(fleet, how)(gone)
        fleet.run_for(50.0)
        for name in others:
            state = fleet.view(name)[gone].state
            assert state is (NodeState.LEFT if how == "leave" else NodeState.DEAD)
        fleet.run_for(pause_s)
        ends = Counter(event.node for event in fleet.events("member.dead", "member.left"))
        assert ends - Counter({gone: ends[gone]}) == Counter(dict.fromkeys(others, life))
        assert len(fleet.events(word, subject=gone)) >= life * len(others)
        assert all((gone in fleet.view(name)) is (pause_s < SHORT.retention_s) for name in others)
        if life < 3:
            fleet.restart(gone, seeds=others[:1])
            fleet.run_until(fleet.agree, 30.0)
    assert len(fleet.events("member.alive", subject=gone)) == 2 * len(others)


@pytest.mark.parametrize("whom", ["a neighbour", "the first"])
@pytest.mark.sizes(3, 10, soak=(80,))
def test_case_16_a_copy_of_a_running_node_is_refused_and_reported_and_little_changes(
    make_fleet: MakeFleet, seed: int, count: int, whom: str
) -> None:
    """A copied data folder: the same key, the same epochs, another boot, at another address."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    original = names[-1] if whom == "a neighbour" else names[0]
    fleet.add_copy("copy", original, seeds=names[:1])
    fleet.run_for(120.0)
    reporters = {event.node for event in fleet.events("member.conflict", subject=original)}
    assert reporters & {*names} - {original}
    assert "copy" in reporters
    assert fleet.record(original).counter <= 8
    assert fleet.record("copy").counter <= 8
    assert len(fleet.events("member.dead", "member.alive")) <= 4 * count
    fleet.crash("copy")
    fleet.run_for(120.0)
    assert fleet.agree(names)
    fleet.forget_events()
    fleet.run_for(120.0)
    assert fleet.events() == []


def test_case_16_a_laptop_that_roams_is_no_copy(make_fleet: MakeFleet, seed: int) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(5)
    here = fleet.record(names[1]).addresses[0]
    for place in range(3):
        fleet.update(names[1], addresses=(here._replace(host=f"10.77.0.{place + 1}"), here))
        fleet.run_for(20.0)
        assert fleet.agree()
    assert not fleet.events("member.conflict", "member.dead", "member.suspect")
