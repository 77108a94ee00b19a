"""Cuts a scenario that fails down to what makes it fail: delta debugging (Zeller and Hildebrandt 2002).

A candidate is a scenario with something left out: faults, loads, nodes, models, paths, time. It is
kept if it still fails *in the same way* with the same seed: the same invariant, or the same figure
that is expected. The passes run again and again until none of them can leave out any more.

| pass | what is left out |
|---|---|
| expectations | all but the one that fails; all if an invariant does |
| time | what comes after the failure, then halves |
| faults | groups of them, then one by one |
| load | groups of loads; then the rates are halved |
| nodes | groups of entries; then counts are halved, then one less |
| models | those that nobody asks for |
| the rest | paths, jitter, loss, regions and device classes of which nothing is left |

Everything is deterministic: the same scenario and seed are cut down to the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from meshnode.errors import UsageError
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.model import NetworkPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario

    Player = Callable[[Scenario], Result]

MAX_TRIES: Final = 400
"""Candidates that are played at most: some minutes of a small scenario. What was found so far counts."""

LEAST_RATE_PER_S: Final = 0.5
"""Loads are not thinned out below this."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What is left.

    Attributes:
        scenario: It fails as the whole one did.
        result: Its run.
        fails_with: The invariant, or the metric.
        tries: Candidates that were played.
        is_finished: False if it was broken off, or all tries were used up.
        is_broken_off: Whether somebody ended it (Ctrl-C).
    """

    scenario: Scenario
    result: Result
    fails_with: str
    tries: int
    is_finished: bool
    is_broken_off: bool = False


def shrink(
    scenario: Scenario,
    *,
    seed: int | None = None,
    depth: str | None = None,
    policy: str = "mesh",
    progress: Callable[[str, int], None] | None = None,
    max_tries: int = MAX_TRIES,
    player: Player | None = None,
) -> Shrunk:
    """Cut a failing scenario down.

    Args:
        scenario: One that fails.
        seed: With which seed; None for its own. What is left has it as its own.
        depth: At which depth; None for its own. What is left has it as its own.
        policy: Who chooses between replicas.
        progress: Told what is left after each success, and how many candidates were played.
        max_tries: Candidates that are played at most.
        player: Plays a candidate, instead of `play`.

    Raises:
        UsageError: if it does not fail.
    """
    wanted: dict[str, Any] = {
        "seed": scenario.seed if seed is None else seed,
        "depth": depth or scenario.depth,
    }
    whole = replace(scenario, **wanted)
    search = _Search(
        player or (lambda candidate: play(candidate, policy=policy)),
        progress or (lambda _what, _tries: None),
        max_tries,
    )
    return search.run(whole)


def signature(result: Result) -> str:
    """Return in which way a run failed: an invariant's name, or a metric's; "" if it did not.

    A figure that could not be made at all (no call was left, say) is another way than a bad one.
    """
    if result.violations:
        return result.violations[0].invariant
    failed = next((each for each in result.verdicts if not each.holds), None)
    if failed is None:
        return ""
    return f"no {failed.expect.metric}" if math.isnan(failed.found) else failed.expect.metric


def size(scenario: Scenario) -> str:
    """Return in words how large a scenario is."""
    nodes = sum(each.count for each in scenario.nodes)
    return (
        f"{nodes} nodes, {len(scenario.faults)} faults, {len(scenario.load)} loads, "
        f"{scenario.duration_s:g} s"
    )


class _Enough(Exception):
    """No more candidates may be played."""


class _Search:
    """One search: the smallest scenario so far."""

    def __init__(
        self, player: Player, progress: Callable[[str, int], None], max_tries: int
    ) -> None:
        self._play = player
        self._progress = progress
        self._max_tries = max_tries
        self._tries = 0
        self._sought = ""
        self._best: tuple[Scenario, Result] | None = None

    def run(self, whole: Scenario) -> Shrunk:
        result = self._play(whole)
        if result.broken_off:
            raise KeyboardInterrupt
        self._sought = signature(result)
        if not self._sought:
            raise UsageError(
                f"{whole.name} does not fail with seed {whole.seed} at depth {whole.depth}; look for "
                "a seed that fails with `meshnode sim run --seeds`"
            )
        self._best = (whole, result)
        is_finished, is_broken_off = True, False
        try:
            while self._round():
                pass
        except _Enough:
            is_finished = False
        except KeyboardInterrupt:
            is_finished, is_broken_off = False, True
        return Shrunk(*self._best, self._sought, self._tries, is_finished, is_broken_off)

    def _round(self) -> bool:
        """Run all passes once; return whether something was left out."""
        before = self._scenario
        for candidates in (
            _expectations, _time, _faults, _load, _nodes, _models, _rest,
        ):  # fmt: skip
            while any(self._fails(each) for each in candidates(*self._state())):
                pass
        return self._scenario != before

    def _state(self) -> tuple[Scenario, Result]:
        assert self._best is not None
        return self._best

    @property
    def _scenario(self) -> Scenario:
        return self._state()[0]

    def _fails(self, candidate: Scenario) -> bool:
        """Play a candidate; if it fails in the same way it is the best from now on."""
        if candidate == self._scenario:
            return False
        if self._tries >= self._max_tries:
            raise _Enough
        self._tries += 1
        try:
            result = self._play(candidate)
        except UsageError:  # something refers to what was left out
            return False
        if result.broken_off:
            raise KeyboardInterrupt
        if signature(result) != self._sought:
            return False
        self._best = (candidate, result)
        self._progress(size(candidate), self._tries)
        return True


def _without_groups(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield a sequence without one of its groups: all, halves, quarters, ... single items."""
    group = len(items)
    while group:
        for begin in range(0, len(items), group):
            yield (*items[:begin], *items[begin + group :])
        group //= 2


def _expectations(scenario: Scenario, result: Result) -> Iterator[Scenario]:
    failed = [each.expect for each in result.verdicts if not each.holds][:1]
    yield replace(scenario, expect=tuple(failed))


def _time(scenario: Scenario, result: Result) -> Iterator[Scenario]:
    if result.violations:
        yield _cut(scenario, max(1.0, math.ceil(result.violations[0].time_s)))
    for share in (0.25, 0.5, 0.75, 0.9):
        yield _cut(scenario, max(1.0, math.ceil(scenario.duration_s * share)))


def _cut(scenario: Scenario, duration_s: float) -> Scenario:
    """Return a scenario that ends earlier, without what comes later."""
    if duration_s >= scenario.duration_s:
        return scenario
    faults = [each for each in scenario.faults if each.at_s <= duration_s]
    loads = []
    for load in scenario.load:
        end_s = None if load.end_s is None or load.end_s >= duration_s else load.end_s
        arrivals = [each for each in load.arrivals if load.start_s + each.at_s < duration_s]
        if load.start_s < duration_s and (arrivals or not load.arrivals):
            loads.append(replace(load, end_s=end_s, arrivals=tuple(arrivals)))
    return replace(scenario, duration_s=duration_s, faults=tuple(faults), load=tuple(loads))


def _faults(scenario: Scenario, _result: Result) -> Iterator[Scenario]:
    for faults in _without_groups(scenario.faults):
        yield replace(scenario, faults=faults)


def _load(scenario: Scenario, _result: Result) -> Iterator[Scenario]:
    for loads in _without_groups(scenario.load):
        yield replace(scenario, load=loads)
    for number, load in enumerate(scenario.load):
        thinner = {
            name: rate / 2
            for name in ("rate_per_s", "to_rate_per_s", "burst_rate_per_s")
            if (rate := getattr(load, name)) is not None and rate >= 2 * LEAST_RATE_PER_S
        }
        if thinner:
            loads = (
                *scenario.load[:number], replace(load, **thinner), *scenario.load[number + 1 :]
            )  # fmt: skip
            yield replace(scenario, load=loads)


def _nodes(scenario: Scenario, _result: Result) -> Iterator[Scenario]:
    for nodes in _without_groups(scenario.nodes):
        if nodes:
            yield replace(scenario, nodes=nodes)
    for number, entry in enumerate(scenario.nodes):
        for count in dict.fromkeys((entry.count // 2, entry.count - 1)):
            # One alone is not called NAME-1: what names it would mean nobody.
            if count >= 2 or (count == 1 and entry.name is None):
                fewer = replace(entry, count=count)
                nodes = (*scenario.nodes[:number], fewer, *scenario.nodes[number + 1 :])
                yield replace(scenario, nodes=nodes)


def _models(scenario: Scenario, _result: Result) -> Iterator[Scenario]:
    for models in _without_groups(scenario.models):
        yield replace(scenario, models=models)


def _rest(scenario: Scenario, _result: Result) -> Iterator[Scenario]:
    for paths in _without_groups(scenario.paths):
        yield replace(scenario, paths=paths)
    yield replace(scenario, network=NetworkPart())
    used = {each.region for each in scenario.nodes}
    regions = {name: place for name, place in scenario.regions.items() if name in used}
    yield replace(scenario, regions=regions)
    classes = {each.device for each in scenario.nodes}
    devices = {name: each for name, each in scenario.devices.items() if name in classes}
    yield replace(scenario, devices=devices)
