"""Membership at scale, in virtual time, next to what others published.

    make bench-membership      or  python -m bench.membership [--sizes 10 100 1000] [--seeds 3] [--json]

The cores are the daemon's; network, links and time are the simulator's (`sim/`): one site, a millisecond
each way with half of it uncertain, LAN preset. Times are virtual seconds and the same on any machine;
each is the median over seeds, with the least and the greatest. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.membership import LAN
from meshnode.sim import published
from meshnode.sim.stalls import STALLS, Stall, false_deaths
from meshnode.sim.virtual_fleet import IDLE_LINK_BYTES_PER_S, SimFleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS: Final = Path("bench-results") / "membership.json"
LOSSES: Final = (0.0, 0.1, 0.3)
REPEATS: Final = 5
"""Joins, changes and victims per seed."""

LOSS_OBSERVED_S: Final = 600.0
"""How long false deaths are counted for at each loss: ten minutes, as the target says."""

LARGE: Final = 1000
"""From this size on there is one seed only, and false deaths at loss are counted for two minutes."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity: its values, and what it is held against."""

    what: str
    unit: str
    values: tuple[float, ...]
    target: str = ""
    reached: bool | None = None
    published: str = ""

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    def line(self) -> str:
        """One line for people."""
        spread = ""
        if len(self.values) > 1:
            spread = f"{min(self.values):.4g} to {max(self.values):.4g}, n={len(self.values)}"
        verdict = {None: "", True: "reached", False: "MISSED"}[self.reached]
        row = f"{self.what:<58} {self.median:>9.4g} {self.unit:<8} {spread:<26}"
        return f"{row} {self.target:<12} {verdict:<8} {self.published}".rstrip()


def at_most(what: str, unit: str, values: Sequence[float], limit: float, note: str = "") -> Figure:
    """Return a figure whose median should not exceed a limit."""
    reached = statistics.median(values) <= limit
    return Figure(what, unit, tuple(values), f"<= {limit:.4g}", reached, note)


# What is measured.


def spreading(size: int, seeds: int) -> Iterator[Figure]:
    """Measure joins and changes at each loss."""
    for loss in LOSSES:
        joins: list[float] = []
        changes: list[float] = []
        for seed in range(1, seeds + 1):
            fleet = SimFleet(seed)
            names = fleet.settled(size)
            fleet.set_loss(loss)
            for number in range(REPEATS):
                fleet.update(names[number], labels={"turn": str(number)})
                changes.append(_until_all_hold(fleet, names[number]))
                fleet.run_for(5.0)
            for number in range(REPEATS):
                fleet.add(f"late{number}", seeds=[names[-1 - number]])
                joins.append(fleet.run_until(fleet.acquainted, 60.0))
                fleet.run_for(5.0)
        table_s = published.dissemination_s(size, loss)
        note = f"memberlist's gossip {table_s:.2g} s" if size >= 30 else ""
        what = f"N={size}, loss {loss:.0%}:"
        yield at_most(f"{what} a changed record is everywhere", "s", changes, table_s, note)
        yield at_most(
            f"{what} a join is known to all, and knows all", "s", joins, 2 * table_s, note
        )


def _until_all_hold(fleet: SimFleet, changed: str) -> float:
    record = fleet.record(changed)

    def all_hold() -> bool:
        members = (fleet.core(name).members.get(record.node_id) for name in fleet.names())
        return all(each is not None and each.record.version >= record.version for each in members)

    return fleet.run_until(all_hold, 60.0)


def deaths(size: int, seeds: int) -> Iterator[Figure]:
    """Measure how long a crash and a power cut take to be known everywhere."""
    for how in ("crash", "power_off"):
        took: list[float] = []
        for seed in range(1, seeds + 1):
            fleet = SimFleet(seed)
            names = fleet.settled(size)
            for victim in names[2 : 2 + min(REPEATS, size // 3)]:
                getattr(fleet, how)(victim)
                took.append(fleet.run_until(fleet.agree, 120.0))
                fleet.run_for(10.0)
        word = "a crash" if how == "crash" else "a power cut"
        what = f"N={size}: {word} is known everywhere"
        least_s = 4.0 * max(1.0, len(str(size)) - 1)
        note = f"memberlist's suspicion alone >= {least_s:.0f} s"
        if size <= 50:
            yield at_most(what, "s", took, 8.0, note)
        else:
            yield Figure(what, "s", tuple(took), published=note)


def rest(size: int, seeds: int) -> Iterator[Figure]:
    """Measure what a node at rest sends, and what it receives, pings of idle links included."""
    outward: list[float] = []
    inward: list[float] = []
    for seed in range(1, seeds + 1):
        fleet = SimFleet(seed)
        names = fleet.settled(size, quiet_s=90.0)
        fleet.run_for(120.0)
        links = statistics.mean(len(fleet.world.links.peers(fleet.world.id_of(n))) for n in names)
        keepalive = links * IDLE_LINK_BYTES_PER_S
        outward.append(statistics.mean(fleet.traffic(n).bytes_out for n in names) / 120 + keepalive)
        inward.append(statistics.mean(fleet.traffic(n).bytes_in for n in names) / 120 + keepalive)
    note = f"memberlist {published.MEMBERLIST_BYTES_PER_S:.0f} B/s" if size == 1000 else ""
    for word, rates in (("sends", outward), ("receives", inward)):
        what = f"N={size}: a node at rest {word}"
        if size >= 100:
            yield at_most(what, "B/s", rates, 1000.0, note)
        else:
            yield Figure(what, "B/s", tuple(rates))


def losses(size: int, seeds: int) -> Iterator[Figure]:
    """Count false deaths in ten minutes at each loss, with Lifeguard and without."""
    for lifeguard in (True, False):
        config = dataclasses.replace(LAN, lifeguard=lifeguard)
        observed_s = LOSS_OBSERVED_S if size < LARGE else LOSS_OBSERVED_S / 5
        for loss in LOSSES:
            died: list[float] = []
            for seed in range(1, seeds + 1):
                fleet = SimFleet(seed, config)
                fleet.settled(size)
                fleet.set_loss(loss)
                fleet.run_for(observed_s)
                died.append(len(fleet.events("member.dead")))
            with_it = "with Lifeguard" if lifeguard else "plain SWIM"
            what = f"N={size}, loss {loss:.0%}, {observed_s / 60:.0f} min, {with_it}: false deaths"
            if lifeguard:
                yield at_most(what, "", died, 0.0)
            else:
                yield Figure(what, "", tuple(died))


def stalls(size: int, seeds: int) -> Iterator[Figure]:
    """Count false deaths with four percent of the nodes stalled, with Lifeguard and without."""
    few, many = published.FEWER_FALSE_POSITIVES
    for stall in STALLS:
        counts = {True: 0, False: 0}
        for lifeguard in counts:
            config = dataclasses.replace(LAN, lifeguard=lifeguard)
            for seed in range(1, seeds + 1):
                counts[lifeguard] += false_deaths(SimFleet(seed, config), size, size // 25, stall)
        yield _compared(size, stall, counts, f"Lifeguard's paper {few:.0f} to {many:.0f} x")


def _compared(size: int, stall: Stall, counts: dict[bool, int], note: str) -> Figure:
    what = f"N={size}, 4 % {stall}: false deaths with Lifeguard"
    reached = counts[True] * 20 <= counts[False] if counts[False] else None
    target = f"<= {counts[False]}/20"
    return Figure(what, "", (float(counts[True]),), target, reached, note)


def bootstrap(size: int) -> Iterator[Figure]:
    """Measure how long a mesh takes that starts at once, with one seed."""
    fleet = SimFleet(1)
    fleet.add("n0")
    for number in range(1, size):
        fleet.add(f"n{number}", seeds=["n0"])
    took = fleet.run_until(fleet.acquainted, 300.0, step_s=0.5)
    note = f"memberlist up to {published.BOOTSTRAP_2000_S:.0f} s"
    yield at_most(f"N={size}: all started at once through one seed", "s", [took], 30.0, note)


def flatness(figures: Sequence[Figure]) -> Iterator[Figure]:
    """Compare the traffic at the sizes above 100 with that at 100."""
    rates = {figure.what: figure.median for figure in figures if figure.what.endswith("sends")}
    base = rates.get("N=100: a node at rest sends")
    for what, rate in rates.items():
        if base is not None and int(what[2:].partition(":")[0]) > 100:
            ratio = rate / base
            is_flat = 0.8 <= ratio <= 1.2
            yield Figure(f"{what}, against N=100", "x", (ratio,), "0.8 to 1.2", is_flat)


# Running it.


def measurements(
    sizes: Sequence[int], seeds: int, bootstrap_size: int
) -> Iterator[tuple[str, Iterator[Figure]]]:
    """Yield what is to be measured, by its name."""
    for size in sizes:
        few = seeds if size < LARGE else 1
        yield f"joins and changes at N={size}", spreading(size, few)
        yield f"deaths at N={size}", deaths(size, few)
        yield f"traffic at N={size}", rest(size, few)
        yield f"losses at N={size}", losses(size, few)
    if 100 in sizes:
        yield "stalls at N=100", stalls(100, seeds)
    if bootstrap_size:
        yield f"bootstrap of {bootstrap_size}", bootstrap(bootstrap_size)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="nodes")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each; one at 1,000 nodes")
    parser.add_argument("--bootstrap", type=int, default=2000, help="nodes; 0 leaves it out")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS} too")
    options = parser.parse_args()
    figures: list[Figure] = []
    began = time.monotonic()

    def take(measured: Iterator[Figure]) -> None:
        for figure in measured:
            print(figure.line(), flush=True)
            figures.append(figure)

    for name, measured in measurements(options.sizes, options.seeds, options.bootstrap):
        print(f"[{time.monotonic() - began:5.0f} s] {name} ...", file=sys.stderr, flush=True)
        take(measured)
    take(flatness(figures))
    if options.json:
        RESULTS.parent.mkdir(exist_ok=True)
        rows = [asdict(figure) | {"median": figure.median} for figure in figures]
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
        print(f"written to {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
