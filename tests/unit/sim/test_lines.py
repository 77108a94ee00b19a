"""What waits under a rule of the network is let go when the rule is taken off."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshnode.sim.impairments import Condition, Impairment
from meshnode.sim.lines import Line, Lines
from meshnode.sim.network import Network, NetworkConfig
from meshnode.sim.scheduler import Scheduler

ONE_WAY_S = 0.04


class Path:
    """A line from a to b, and what came out of it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        config = NetworkConfig(far_rtt_s=2 * ONE_WAY_S, jitter=0.0)
        self.network = Network(config, random.Random(1))
        self.network.place("a", "here")
        self.network.place("b", "there")
        self.lines = Lines(self.network, self.scheduler)
        self.network.on_change(self.lines.paths_changed)
        self.line = Line(self.lines, "a", "b")
        self.came: list[tuple[str, float]] = []

    def send(self, what: str, size_bytes: int = 0) -> None:
        self.line.send(size_bytes, self._arrived, what)

    def _arrived(self, what: str) -> None:
        self.came.append((what, round(self.scheduler.now(), 6)))

    def impair(self, **changes: Any) -> Any:
        return self.network.impair(Impairment(**changes), ["a"], ["b"])


@pytest.fixture
def path() -> Path:
    return Path()


def test_what_waits_for_bandwidth_goes_at_once_when_there_is_no_limit_any_more(path: Path) -> None:
    rule = path.impair(bytes_per_s=1000.0)
    for name in ("first", "second", "third"):
        path.send(name, 1_000_000)
    path.scheduler.run_to(5.0)
    assert path.came == []
    path.network.mend(rule)
    path.send("fourth", 1_000_000)
    path.scheduler.run_to(10.0)
    arrived_at = 5.0 + ONE_WAY_S
    names = ("first", "second", "third", "fourth")
    assert path.came == [(name, arrived_at) for name in names]


def test_what_waits_for_bandwidth_queues_anew_under_a_wider_limit(path: Path) -> None:
    narrow = path.impair(bytes_per_s=10.0)
    path.impair(bytes_per_s=1000.0)
    path.send("first", 1000)
    path.send("second", 1000)
    path.network.mend(narrow)
    path.send("third", 1000)
    path.scheduler.run_to(10.0)
    assert path.came == [
        ("first", 1.0 + ONE_WAY_S), ("second", 2.0 + ONE_WAY_S), ("third", 3.0 + ONE_WAY_S),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{"add_s": 60.0}, {"factor": 1000.0}, {"loss": 1.0}], ids=["added", "times", "loss"]
)
def test_what_is_late_comes_as_soon_as_the_path_allows_again(
    path: Path, changes: dict[str, float]
) -> None:
    rule = path.impair(**changes)
    path.send("first")
    path.scheduler.run_to(1.0)
    path.network.mend(rule)
    path.send("second")
    path.scheduler.run_to(100.0)
    assert path.came == [("first", 1.0 + ONE_WAY_S), ("second", 1.0 + ONE_WAY_S)]


def test_late_gossip_comes_when_the_delay_of_gossip_is_over(path: Path) -> None:
    path.line = Line(path.lines, "a", "b", is_gossip=True)
    rule = path.impair(gossip_s=50.0)
    path.send("note")
    path.scheduler.run_to(1.0)
    path.network.mend(rule)
    path.scheduler.run_to(100.0)
    assert path.came == [("note", 1.0 + ONE_WAY_S)]


def test_nothing_comes_later_or_in_another_order_because_a_rule_is_laid_or_lifted(
    path: Path,
) -> None:
    path.send("first")
    rule = path.impair(add_s=1.0)
    path.send("second")
    path.scheduler.run_to(1.02)
    path.network.mend(rule)
    path.send("third")
    path.scheduler.run_to(10.0)
    assert path.came == [("first", ONE_WAY_S), ("second", 1.04), ("third", 1.06)]


def test_a_rule_on_other_paths_lets_nothing_go(path: Path) -> None:
    path.network.place("c", "elsewhere")
    path.impair(add_s=5.0)
    path.send("first")
    other = path.network.impair(Impairment(add_s=5.0), ["a"], ["c"])
    path.network.mend(other)
    path.scheduler.run_to(10.0)
    assert path.came == [("first", 5.0 + ONE_WAY_S)]


def test_a_condition_eases_another_where_something_may_come_sooner() -> None:
    plain = Condition(mean_s=1.0, jitter=0.1, loss=0.1, bytes_per_s=100.0)
    assert not plain.eases(plain)
    assert Condition(mean_s=0.5, jitter=0.1, loss=0.1, bytes_per_s=100.0).eases(plain)
    assert Condition(mean_s=1.0, jitter=0.1, loss=0.0, bytes_per_s=100.0).eases(plain)
    assert Condition(mean_s=1.0, jitter=0.1, loss=0.1, bytes_per_s=200.0).eases(plain)
    assert Condition(mean_s=1.0, jitter=0.1, loss=0.1).eases(plain)
    assert not Condition(mean_s=2.0, jitter=0.1, loss=0.1, bytes_per_s=50.0).eases(plain)
