from __future__ import annotations

import pytest

from meshnode.sim.node_clock import NodeClock
from meshnode.sim.scheduler import WALL_START_S, Scheduler


def clock() -> tuple[Scheduler, NodeClock]:
    world = Scheduler()
    world.run_to(100.0)
    return world, NodeClock(world)


def test_it_shows_the_worlds_time_until_somebody_interferes() -> None:
    world, node = clock()
    world.run_to(105.5)
    assert node.is_true
    assert (node.now(), node.wall_s()) == (105.5, WALL_START_S + 105.5)


def test_a_fast_clock_gains_and_keeps_what_it_gained() -> None:
    world, node = clock()
    node.run_at(1.01)
    world.run_to(200.0)
    assert node.now() == pytest.approx(201.0)
    assert node.wall_s() == pytest.approx(WALL_START_S + 201.0)
    node.run_at(1.0)
    world.run_to(300.0)
    assert node.now() == pytest.approx(301.0)
    assert node.rate == 1.0


def test_a_jump_moves_the_wall_clock_alone() -> None:
    world, node = clock()
    node.jump(-3600.0)
    world.run_to(110.0)
    assert node.now() == pytest.approx(110.0)
    assert node.wall_s() == pytest.approx(WALL_START_S + 110.0 - 3600.0)
    node.jump(3600.0)
    assert node.wall_s() == pytest.approx(WALL_START_S + 110.0)
