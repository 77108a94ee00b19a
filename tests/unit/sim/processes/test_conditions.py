"""What faults that overlap mean together."""

from __future__ import annotations

import pytest

from meshnode.sim.faults import (
    ClockSkew,
    Crash,
    DiskFull,
    Drain,
    FailRequests,
    LyingLoad,
    SlowDown,
    StaleLoad,
)
from meshnode.sim.processes.conditions import behaviour
from meshnode.sim.processes.orders import Behave

ALL = ("all",)


def test_without_faults_a_node_behaves() -> None:
    assert behaviour([]) == Behave()
    assert behaviour([Crash(nodes=ALL)]) == Behave()


def test_faults_of_one_kind_add_to_each_other() -> None:
    found = behaviour(
        [
            SlowDown(nodes=ALL, factor=3),
            SlowDown(nodes=ALL, factor=2),
            FailRequests(nodes=ALL, share=0.5),
            FailRequests(nodes=ALL, share=0.5),
            Drain(nodes=ALL, percent=20),
            Drain(nodes=ALL, percent=5),
            StaleLoad(nodes=ALL, age_s=5),
            StaleLoad(nodes=ALL, age_s=2),
            LyingLoad(nodes=ALL, share=0.5),
            ClockSkew(nodes=ALL, rate=0.5),
            ClockSkew(nodes=ALL, rate=-0.2),
            DiskFull(nodes=ALL),
        ]
    )
    assert found.slowness == 6
    assert found.fail_share == 0.75
    assert found.battery_percent == 5
    assert found.load_age_s == 5
    assert found.load_share == 0.5
    assert found.clock_rate == pytest.approx(1.2)
    assert found.is_disk_full
