"""The same arrivals and the same work through several policies, and how far each is from the best.

*Regret* says how far a policy is from an oracle, in each of `REGRETS`: 1.2 means that its latency is a
fifth more, or that the oracle answers a fifth more in time. The oracles are run in every comparison at
depth A, asked for or not. A policy that sheds requests answers fewer of the slow ones, so the regret of
latencies says something only next to that of the answers in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import UsageError
from meshnode.sim.policies.catalogue import MESH, ORACLES, WITHOUT_HOOKS
from meshnode.sim.running.result import METRICS, choose
from meshnode.sim.scenario.model import DEPTHS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario

FIGURES: Final = (
    "requests",
    "errors",
    "error_rate",
    "mean_ms",
    "p50_ms",
    "p99_ms",
    "p99_9_ms",
    "goodput",
    "goodput_share",
    "attempts_per_request",
    "failed_attempt_share",
    "utilisation",
)
"""Metrics that a comparison tells of each policy."""

REGRETS: Final = ("p99_ms", "p99_9_ms", "mean_ms", "goodput_share")
"""Metrics whose ratio to the oracles' is told; of the last one theirs to the policy's, as more is better."""


_MORE_IS_BETTER: Final = "goodput_share"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one policy did.

    Attributes:
        policy: Its name.
        result: The whole run.
        figures: Each of `FIGURES`; NaN where there is nothing to make it from.
        regret: For each oracle, how many times worse each of `REGRETS` is; NaN where either has none.
        utilisation: Of each node: the mean share of its slots that worked.
    """

    policy: str
    result: Result
    figures: Mapping[str, float]
    regret: Mapping[str, Mapping[str, float]]
    utilisation: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A scenario through several policies.

    Attributes:
        scenario: What was played.
        depth: At which depth.
        seed: With which seed.
        after_s: Figures are of requests made from this time on.
        standings: In the order that was asked for; oracles that nobody asked for come last.
    """

    scenario: Scenario
    depth: str
    seed: int
    after_s: float
    standings: tuple[Standing, ...]

    @property
    def ok(self) -> bool:
        """Whether all invariants held and nobody broke a run off."""
        results = (each.result for each in self.standings)
        return not any(result.violations or result.broken_off for result in results)


Play = Callable[[str], "Result"]
"""Plays the scenario with one policy."""


def run_order(policies: Sequence[str], depth: str) -> tuple[str, ...]:
    """Return which policies are to be played, in order.

    Raises:
        UsageError: if there is no such depth, or one of them cannot be played at it.
    """
    if depth not in DEPTHS:
        raise UsageError(f"there is no depth {depth!r}; there are {', '.join(DEPTHS)}")
    if depth == "A":
        return tuple(dict.fromkeys((*policies, *ORACLES)))
    allowed = (MESH, *WITHOUT_HOOKS) if depth == "B" else (MESH,)
    refused = [policy for policy in policies if policy not in allowed]
    if refused:
        raise UsageError(
            f"depth {depth} cannot play {', '.join(refused)}: it takes {', '.join(allowed)}; "
            f"ask for --depth A"
        )
    return tuple(dict.fromkeys(policies))


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    depth: str,
    seed: int,
    play: Play,
    after_s: float = 0.0,
) -> Comparison:
    """Play a scenario with each policy and compare what came of it.

    Args:
        scenario: What to play.
        policies: Names of `meshnode.sim.policies.catalogue.POLICIES`.
        depth: At which depth `play` plays.
        seed: With which seed it does.
        play: Plays it with one policy. A run that is broken off ends the comparison.
        after_s: Make the figures of requests made from this time on, so that the first seconds, when
            queues are empty and nobody knows anybody's load, count for nothing.

    Raises:
        UsageError: if a policy cannot be played at this depth.
    """
    results: list[Result] = []
    for policy in run_order(policies, depth):
        results.append(play(policy))
        if results[-1].broken_off:
            break
    return Comparison(scenario, depth, seed, after_s, standings(results, after_s))


def standings(results: Sequence[Result], after_s: float = 0.0) -> tuple[Standing, ...]:
    """Make the figures of runs that differ in their policy only."""
    figures = {result.policy: _figures(result, after_s) for result in results}
    return tuple(
        Standing(
            result.policy,
            result,
            figures[result.policy],
            {
                oracle: _regret(figures[result.policy], figures[oracle])
                for oracle in ORACLES
                if oracle in figures
            },
            utilisation(result, after_s),
        )
        for result in results
    )


def utilisation(result: Result, after_s: float = 0.0) -> dict[str, float]:
    """Return the mean share of each node's slots that worked while the load ran; NaN without slots."""
    chosen = choose(result, after_s=after_s)
    shares: dict[str, list[float]] = {machine.name: [] for machine in result.machines}
    for sample in chosen.samples:
        for name, node in sample.nodes.items():
            if node.slots:
                shares.setdefault(name, []).append(node.busy)
    return {name: fmean(each) if each else math.nan for name, each in shares.items()}


def document(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON can tell it; its shape is described in docs/cli.md."""
    return {
        "scenario": comparison.scenario.name,
        "depth": comparison.depth,
        "seed": comparison.seed,
        "after_s": comparison.after_s,
        "ok": comparison.ok,
        "policies": [_standing_document(each) for each in comparison.standings],
    }


def _standing_document(standing: Standing) -> dict[str, Any]:
    result = standing.result
    return {
        "policy": standing.policy,
        "trace_hash": result.trace_hash,
        "figures": {name: _number(value) for name, value in standing.figures.items()},
        "regret": {
            oracle: {name: _number(value) for name, value in ratios.items()}
            for oracle, ratios in standing.regret.items()
        },
        "utilisation": {name: _number(value) for name, value in standing.utilisation.items()},
        "violations": [
            {"invariant": each.invariant, "message": each.message, "time_s": each.time_s}
            for each in result.violations
        ],
        "cpu_s": round(result.cpu_s, 3),
    }


def _figures(result: Result, after_s: float) -> dict[str, float]:
    chosen = choose(result, after_s=after_s)
    return {name: METRICS[name].find(chosen) for name in FIGURES}


def _regret(found: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
    """Return how many times worse each figure is than an oracle's."""
    return {
        metric: _ratio(best[metric], found[metric])
        if metric == _MORE_IS_BETTER
        else _ratio(found[metric], best[metric])
        for metric in REGRETS
    }


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
