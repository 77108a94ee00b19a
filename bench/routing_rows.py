"""The rows of the table of routing: which scenarios each one plays, and what must hold of them.

A figure is found for one seed; `bench.routing` plays the seeds and makes the table. Latencies are virtual, so a
figure is the same on any machine for the same code and seed.

What the words of the rows are taken to mean, where they could mean several things:

- *p99 against an oracle* is of requests made after the first three seconds, in which queues are empty.
- *its fair share* of a slow node is its share of the capacity that the fleet then has, or what the size-blind oracle
  gives it in the same seconds if that is more. That knows all speeds and queues, and may be right to give a node more than
  its share: an A100 at a fifth of its speed is as good as a workstation, and the mini-PCs beside it are worse.
- *region lost at 0.6 load*: 60 % of what all three regions can do, so that the two that are left are 90 % busy.
  Latency is that of clients whose gateway lives: others wait until their dial fails, whatever the mesh does.
- *ejection time* is the time for which breakers keep a node out. It is not the time until a node that is back gets
  requests again: it has to load its model first, and starts slowly, which takes six seconds whatever the breakers say.
- *the rest shed*: of the requests without an answer in time, those that were refused as `saturated`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from bench.routing_ejections import EjectionStage, growth, last_by_second
from meshnode.sim.running.playing import play
from meshnode.sim.running.result import METRICS, choose, percentile
from meshnode.sim.scenario.reading import read
from meshnode.sim.scenario.selection import select

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario
    from meshnode.sim.stage import Stage

WARM_UP_S: Final = 3.0
"""Requests before this second count for nothing where a steady state is asked for."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was found for one seed, and what was to be reached.

    Attributes:
        name: What it is; the same for all seeds.
        found: The number; NaN where there was nothing to make it from.
        target: What it must not exceed, or with `at_least` not fall below.
        at_least: See there.
        always: Whether each seed must reach it; else the median of the seeds.
    """

    name: str
    found: float
    target: float
    at_least: bool = False
    always: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        letter: What it is called.
        title: What happens.
        scenarios: Which ones tell of it.
        figures: Makes its figures.
        why_missed: Why a figure misses its target, as far as is known; empty where none does.
    """

    letter: str
    title: str
    scenarios: tuple[str, ...]
    figures: Callable[[Runs], list[Figure]]
    why_missed: str = ""


class Runs:
    """Plays scenarios with one seed, each with one policy once.

    Attributes:
        seed: Of all runs.
        policy: Which one is measured.
        seconds: Steady loads are played for so long; None for as long as their scenarios say.
    """

    def __init__(self, seed: int, policy: str = "mesh", seconds: float | None = None) -> None:
        self.seed = seed
        self.policy = policy
        self.seconds = seconds
        self._played: dict[tuple[str, str], Result] = {}

    def steady(self, name: str) -> Scenario:
        """Read a scenario in which nothing happens but its load."""
        scenario = read(name)
        if self.seconds is None:
            return scenario
        return msgspec.structs.replace(scenario, duration_s=self.seconds)

    def of(
        self, scenario: Scenario, policy: str | None = None, stage: Stage | None = None
    ) -> Result:
        """Return the run of a scenario, with the policy that is measured if none is named; on a stage of its own if given.

        Raises:
            AssertionError: if an invariant did not hold.
        """
        chosen = policy or self.policy
        key = (msgspec.json.encode(scenario).decode(), chosen)
        if key not in self._played:
            result = play(scenario, seed=self.seed, policy=chosen, stage=stage)
            assert not result.violations, (scenario.name, self.seed, result.violations)
            self._played[key] = result
        return self._played[key]


def metric(
    result: Result,
    name: str,
    after_s: float = 0.0,
    before_s: float | None = None,
    *,
    via: tuple[str, ...] = (),
    nodes: tuple[str, ...] = (),
) -> float:
    """Return a figure of a run, of requests made between two times."""
    gateways = {machine.name for machine in select(via, result.machines)} if via else None
    about = {machine.name for machine in select(nodes, result.machines)} if nodes else None
    chosen = choose(result, after_s=after_s, before_s=before_s, gateways=gateways, nodes=about)
    return METRICS[name].find(chosen)


def ratio(
    runs: Runs,
    scenario: Scenario,
    other: str,
    name: str = "p99_ms",
    after_s: float = WARM_UP_S,
    before_s: float | None = None,
) -> float:
    """Return how many times more a figure is than with another policy."""
    found = metric(runs.of(scenario), name, after_s, before_s)
    best = metric(runs.of(scenario, other), name, after_s, before_s)
    return found / best if best > 0 else math.nan


def _mixed(runs: Runs) -> list[Figure]:
    figures = []
    for load, name in (("0.7", "fleet-1-10-50"), ("0.9", "fleet-busy")):
        scenario = runs.steady(name)
        blind = ratio(runs, scenario, "size-blind")
        figures.append(Figure(f"p99 at {load} / size-blind", blind, 1.15))
        omniscient = ratio(runs, scenario, "omniscient")
        figures.append(Figure(f"p99 at {load} / omniscient", omniscient, 1.9))
    return figures


def _slow(runs: Runs) -> list[Figure]:
    figures = []
    for name, node, of_capacity in (
        ("slow-workstation", "eu-mid-1", 4 / 652),
        ("slow-a100", "eu-big", 40 / 528),
    ):
        scenario = read(name)
        found = ratio(runs, scenario, "size-blind", "p99_ms", 8.0, 23.0)
        figures.append(Figure(f"{name}: p99 / size-blind", found, 1.25))
        result, best = runs.of(scenario), runs.of(scenario, "size-blind")
        share = metric(result, "served_share", 10.0, 23.0, nodes=(node,))
        fair = max(of_capacity, metric(best, "served_share", 10.0, 23.0, nodes=(node,)))
        figures.append(Figure(f"{name}: its share after 2 s / its fair share", share / fair, 1.0))
        back = metric(result, "served_share", 28.0, nodes=(node,))
        usual = metric(best, "served_share", 28.0, nodes=(node,))
        figures.append(
            Figure(f"{name}: its share 5 s after recovery / size-blind's", back / usual, 0.5, True)
        )
    return figures


def _region_lost(runs: Runs) -> list[Figure]:
    scenario = read("region-loss")
    load = msgspec.structs.replace(scenario.load[0], rate_per_s=144.0)  # of 240 per second
    result = runs.of(msgspec.structs.replace(scenario, load=(load,)))
    living = ("us-*", "ap-*")
    usual = metric(result, "p99_ms", WARM_UP_S, 20.0, via=living)
    after = metric(result, "p99_ms", 30.0, 35.0, via=living)
    return [
        Figure("errors, share of requests", metric(result, "error_rate"), 0.0, always=True),
        Figure("p99 10 s after the loss / before", after / usual, 1.5),
        Figure("attempts per request", metric(result, "attempts_per_request"), 1.2, always=True),
    ]


def _surge(runs: Runs) -> list[Figure]:
    scenario = read("surge")
    result = runs.of(scenario)
    chosen = choose(result, after_s=25.0, before_s=35.0)
    late = [
        outcome.code
        for call, outcome in chosen.calls
        if outcome.code != "ok" or outcome.took_s > call.deadline_s
    ]
    shed = late.count("saturated") / len(late) if late else math.nan
    goodput = metric(result, "goodput", 25.0, 35.0) / 200
    return [
        Figure(
            "p99 at 0.9 / size-blind",
            ratio(runs, scenario, "size-blind", "p99_ms", 10.0, 25.0), 1.3,
        ),
        Figure("goodput at twice the capacity / capacity", goodput, 0.9, at_least=True),
        Figure("shed, of those not in time", shed, 0.95, at_least=True),
    ]  # fmt: skip


_RETURNS_S: Final = (9.0, 21.0, 33.0, 45.0)
"""When the flapping node is back: it is up for 8 s and down for 4 s, from second 5 to second 53."""


def _flapping(runs: Runs) -> list[Figure]:
    scenario = read("flapping-node")
    stage = EjectionStage(scenario, runs.seed, runs.policy, "server-6", _RETURNS_S)
    result = runs.of(scenario, stage=stage)
    chosen = choose(result)
    failed = sum(len(outcome.failed_on) for _, outcome in chosen.calls) / len(chosen.calls)
    return [
        Figure("failed attempts / requests", failed, 0.01),
        Figure("errors, share of requests", metric(result, "error_rate"), 0.0, always=True),
        Figure(
            "ejection time / the one before, least of all gateways' (but for chance)",
            growth(stage.seen), 2.0, at_least=True, always=True,
        ),
        Figure(
            "left out after its last return / after its second",
            last_by_second(stage.seen), 2.0, at_least=True, always=True,
        ),
    ]  # fmt: skip


def _stale(runs: Runs) -> list[Figure]:
    found = ratio(runs, runs.steady("stale-load"), "size-blind")
    return [Figure("p99 / size-blind", found, 1.5)]


def _herd(runs: Runs) -> list[Figure]:
    found = ratio(runs, read("thundering-herd"), "size-blind", after_s=0.0)
    return [Figure("p99 / size-blind, from the first second on", found, 1.5)]


def _equal(runs: Runs) -> list[Figure]:
    scenario = runs.steady("equal-servers")
    return [
        Figure("p99 / P2C", ratio(runs, scenario, "p2c"), 1.0, always=True),
        Figure("mean / P2C", ratio(runs, scenario, "p2c", "mean_ms"), 1.0, always=True),
    ]


def _sinkhole(runs: Runs) -> list[Figure]:
    result = runs.of(read("sinkhole"))
    failed = metric(result, "failed_attempt_share", 6.0, 20.0)
    return [Figure("failed attempts after the first second", failed, 0.01)]


def _local(runs: Runs) -> list[Figure]:
    scenario = read("three-regions")
    result = runs.of(scenario)
    home = next(iter(scenario.regions))
    alone = msgspec.structs.replace(
        scenario,
        regions={home: scenario.regions[home]},
        paths=(),
        nodes=tuple(each for each in scenario.nodes if each.region == home),
        load=(msgspec.structs.replace(scenario.load[0], rate_per_s=80.0),),
        faults=(),
        expect=(),
    )
    one = metric(runs.of(alone), "p50_ms", WARM_UP_S, 15.0)
    free = [
        outcome.took_s * 1000
        for call, outcome in choose(result, after_s=WARM_UP_S, before_s=15.0).answered
        if not call.hints.region
    ]
    return [
        Figure(
            "served in their region",
            metric(result, "local_share", WARM_UP_S, 15.0), 0.95, at_least=True,
        ),
        Figure("p50 / a region alone", percentile(free, 0.5) / one, 1.1),
        Figure("region rules broken", metric(result, "outside_region"), 0.0, always=True),
    ]  # fmt: skip


ROWS: Final = (
    Row(
        "a",
        "mixed fleet 1:10:50 at 0.7 and 0.9",
        ("fleet-1-10-50", "fleet-busy"),
        _mixed,
        "Ten gateways hear of the workstations' queues a tenth of a second late, which is one run: what they believe of a "
        "wait errs by two thirds of a run, and the slowest hundredth are runs there.",
    ),
    Row(
        "b",
        "one mid node 10× slow; one fast node 5× slow",
        ("slow-workstation", "slow-a100"),
        _slow,
    ),
    Row(
        "c",
        "region lost at 0.6 load",
        ("region-loss",),
        _region_lost,
        "The errors are those of gateways of the lost region in the first quarter of a second after their boot.",
    ),
    Row("d", "surge 0.45 → 0.9; then twice the capacity", ("surge",), _surge),
    Row("e", "flapping node", ("flapping-node",), _flapping),
    Row(
        "f",
        "load information 5 s old",
        ("stale-load",),
        _stale,
        "The size-blind oracle sees the true queues. Gateways that are told old ones find that out within a second, and go by "
        "what their own requests met, a twelfth of all each.",
    ),
    Row("g", "200 gateways", ("thundering-herd",), _herd),
    Row("h", "homogeneous fleet at 0.9", ("equal-servers",), _equal),
    Row("k", "locality: three regions at 0.5 load", ("three-regions",), _local),
    Row("i", "sinkhole: 2 of 20 fail at once, report no load", ("sinkhole",), _sinkhole),
)
"""All rows, in the order of the table."""
