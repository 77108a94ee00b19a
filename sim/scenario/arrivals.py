"""Who asks what, and when: the calls of a scenario, drawn before anything is played.

The draws depend on the scenario and the seed alone, not on the depth, the policy or what the mesh does,
so that all of them get the same calls. Each load has streams of its own for its times, its gateways and
its work (`SEED/application/MODEL/N/...`, where N counts the loads of that model): taking one load out of
a scenario, as shrinking does, leaves the others as they were.

Loads whose rate changes are Poisson processes thinned from their highest rate (Lewis and Shedler, 1979).
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.errors import ConfigError
from meshnode.sim.scenario.crew import crew
from meshnode.sim.scenario.selection import select
from meshnode.sim.scenario.service_times import draw
from meshnode.sim.stage import Call
from meshnode.types import NO_HINTS, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meshnode.sim.scenario.model import Load, Model, Scenario
    from meshnode.sim.stage import Machine

OTHER_REGIONS: Final = 2
"""Regions besides its own in which a client knows a gateway: it is given addresses that fail apart."""

KNOWN_OTHERS: Final = 3
"""Gateways besides the first that a client knows at most."""

_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class _Made:
    """A call that has no number yet."""

    at_s: float
    gateway: str
    others: tuple[str, ...]
    work_s: float


def calls(scenario: Scenario, seed: int) -> Iterator[Call]:
    """Yield the calls of all loads of a scenario, in the order of their making.

    Args:
        scenario: One without mistakes, its traces read (`meshnode.sim.scenario.reading`).
        seed: Decides all draws.

    Yields:
        Each call, numbered from 0; calls made at the same moment in the order of their loads.

    Raises:
        ConfigError: if a load names a trace file that was not read.
    """
    machines = crew(scenario)
    models = {model.name: model for model in scenario.models}
    counts: Counter[str] = Counter()
    streams = []
    for place, load in enumerate(scenario.load):
        counts[load.model] += 1
        stream = f"{seed}/application/{load.model}/{counts[load.model]}"
        made = _made(load, models[load.model], machines, scenario.duration_s, stream)
        streams.append(_placed(place, made))
    for number, (at_s, place, made_call) in enumerate(heapq.merge(*streams, key=_order)):
        load = scenario.load[place]
        model = models[load.model]
        yield Call(
            number,
            at_s,
            made_call.gateway,
            load.model,
            made_call.work_s,
            load.timeout_s,
            load.deadline_ms / 1000 if load.deadline_ms is not None else load.timeout_s,
            made_call.others,
            max(1, round(model.request_kb * _KIB)),
            max(1, round(model.response_kb * _KIB)),
            RoutingHints(region=load.region) if load.region else NO_HINTS,
        )


def _placed(place: int, made: Iterator[_Made]) -> Iterator[tuple[float, int, _Made]]:
    return ((each.at_s, place, each) for each in made)


def _order(entry: tuple[float, int, _Made]) -> tuple[float, int]:
    return entry[:2]


def _made(
    load: Load, model: Model, machines: Sequence[Machine], duration_s: float, stream: str
) -> Iterator[_Made]:
    clients = _Clients(load, machines, random.Random(f"{stream}/gateways"))
    work = random.Random(f"{stream}/work")
    for at_s, named in _times(load, duration_s, random.Random(f"{stream}/times")):
        gateway = named or clients.gateway()
        yield _Made(at_s, gateway, clients.others(gateway), draw(model.service, work))


class _Clients:
    """Which gateways clients ask, and which ones they know besides."""

    def __init__(self, load: Load, machines: Sequence[Machine], rng: random.Random) -> None:
        chosen = [machine for machine in select(load.via, machines) if machine.gateway]
        self._gateways = [machine.name for machine in chosen]
        self._regions = {machine.name: machine.region for machine in machines}
        self._by_region: dict[str, list[str]] = {}
        for machine in chosen:
            self._by_region.setdefault(machine.region, []).append(machine.name)
        self._retries = load.retry_elsewhere
        self._rng = rng

    def gateway(self) -> str:
        return self._rng.choice(self._gateways)

    def others(self, gateway: str) -> tuple[str, ...]:
        """Draw gateways in other regions, then neighbours, as a careful person configures a client.

        What takes the first gateway away may have taken its region, so the neighbour comes last.
        """
        if not self._retries:
            return ()
        home = self._regions[gateway]
        regions = [region for region in self._by_region if region != home]
        far = self._rng.sample(regions, min(OTHER_REGIONS, len(regions)))
        near = self._by_region.get(home, [])
        wanted = KNOWN_OTHERS - len(far)
        drawn = self._rng.sample(near, min(wanted + 1, len(near)))
        neighbours = [name for name in drawn if name != gateway][:wanted]
        return (*(self._rng.choice(self._by_region[region]) for region in far), *neighbours)


def _times(load: Load, duration_s: float, rng: random.Random) -> Iterator[tuple[float, str]]:
    """Yield when requests are made, and of whom if that is said."""
    until_s = min(duration_s, load.end_s if load.end_s is not None else duration_s)
    if load.shape == "trace":
        yield from _traced(load, until_s)
        return
    if load.shape == "constant":
        moments = _evenly(load, until_s)
    else:
        rate, peak = _rate(load, until_s)
        moments = _thinned(rate, peak, load.start_s, until_s, rng)
    for at_s in moments:
        yield at_s, ""


def _traced(load: Load, until_s: float) -> Iterator[tuple[float, str]]:
    if load.file is not None:
        message = f"the trace file {load.file} was not read: read the scenario with reading.read"
        raise ConfigError(message)
    for arrival in load.arrivals:
        at_s = load.start_s + arrival.at_s
        if at_s < until_s:
            yield at_s, arrival.gateway


def _evenly(load: Load, until_s: float) -> Iterator[float]:
    if load.rate_per_s <= 0:
        return
    number = 0
    while (at_s := load.start_s + number / load.rate_per_s) < until_s:
        yield at_s
        number += 1


def _thinned(
    rate: Callable[[float], float], peak: float, start_s: float, until_s: float, rng: random.Random
) -> Iterator[float]:
    """Yield the moments of a Poisson process whose rate at each moment is `rate`, at most `peak`."""
    if peak <= 0:
        return
    at_s = start_s
    while (at_s := at_s + rng.expovariate(peak)) < until_s:
        now = rate(at_s)
        if now >= peak or rng.random() * peak < now:
            yield at_s


def _rate(load: Load, until_s: float) -> tuple[Callable[[float], float], float]:
    """Return the rate at each moment of a scenario, and the highest."""
    low, start_s = load.rate_per_s, load.start_s
    high = load.to_rate_per_s if load.to_rate_per_s is not None else low
    every_s = load.every_s if load.every_s is not None else until_s - start_s
    if load.shape == "ramp":
        slope = (high - low) / (until_s - start_s)
        return lambda at_s: low + slope * (at_s - start_s), max(low, high)
    if load.shape == "daily":
        turn = 2 * math.pi / every_s
        middle, swing = (low + high) / 2, (high - low) / 2
        return lambda at_s: middle - swing * math.cos(turn * (at_s - start_s)), max(low, high)
    if load.shape == "bursts":
        burst = load.burst_rate_per_s if load.burst_rate_per_s is not None else low
        burst_s = load.burst_s or 0.0
        return (
            lambda at_s: burst if (at_s - start_s) % every_s < burst_s else low,
            max(low, burst),
        )
    return lambda _: low, low
