"""What a report draws, computed from a result: series over time, grids, flows between regions.

Everything here is bounded: a run of a week with 5,000 nodes becomes at most `MAX_SLICES` points of
time and `MAX_ROWS` rows of nodes, so that its report stays small enough to be mailed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.sim.stage import OK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.sim.running.result import Result
    from meshnode.sim.stage import Call, Outcome

MAX_SLICES: Final = 300
"""Points of time in a chart: three pixels each on a wide page."""

MAX_ROWS: Final = 64
"""Rows of nodes in a chart; more are summed up (utilisation) or chosen (membership)."""

_WIDTHS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400)


def end_of(result: Result) -> float:
    """Return the last moment that has something to show, in seconds after the load began."""
    if not result.violations and not result.broken_off:
        return result.scenario.duration_s
    ends = [sample.time_s for sample in result.samples[-1:]]
    ends += [call.made_at_s for call, _outcome in result.calls[-1:]]
    ends += [mark.time_s for mark in result.marks[-1:]]
    ends += [violation.time_s for violation in result.violations]
    return max(1.0, *ends) if ends else 1.0


@dataclass(slots=True)
class Slice:
    """The calls that were made in one piece of time.

    Attributes:
        start_s: When it begins.
        good: Answered within their deadline.
        late: Answered after it.
        failed: Not answered, or with an error.
        took_s: How long the answered ones took, ascending.
    """

    start_s: float
    good: int = 0
    late: int = 0
    failed: int = 0
    took_s: list[float] = field(default_factory=list)

    @property
    def made(self) -> int:
        """All of them."""
        return self.good + self.late + self.failed

    def quantile_ms(self, share: float) -> float | None:
        """Return a percentile of the time to an answer, or None without any."""
        return _at(self.took_s, share) * 1000 if self.took_s else None


def is_good(call: Call, outcome: Outcome) -> bool:
    """Whether a call was answered within its deadline."""
    return outcome.code == OK and outcome.took_s <= call.deadline_s


def slice_width_s(end_s: float) -> float:
    """Return how long a slice is: a second, or the next round time with few enough slices."""
    return float(next((w for w in _WIDTHS_S if end_s / w <= MAX_SLICES), end_s / MAX_SLICES))


def slices(result: Result, end_s: float) -> list[Slice]:
    """Return the calls that ended by when they were made, in slices of equal length up to `end_s`."""
    width_s = slice_width_s(end_s)
    found = [Slice(index * width_s) for index in range(max(1, math.ceil(end_s / width_s)))]
    for call, outcome in result.calls:
        if outcome is None:
            continue
        piece = found[min(len(found) - 1, max(0, int(call.made_at_s / width_s)))]
        if outcome.code != OK:
            piece.failed += 1
            continue
        piece.took_s.append(outcome.took_s)
        if is_good(call, outcome):
            piece.good += 1
        else:
            piece.late += 1
    for piece in found:
        piece.took_s.sort()
    return found


def _at(ordered: Sequence[float], share: float) -> float:
    """Return a percentile of values that are in order already, as `result.percentile` does of any."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def tail(result: Result) -> list[tuple[float, float]]:
    """Return how the times of all answers are spread: (milliseconds, share that took longer), for a log chart."""
    took = sorted(o.took_s for _call, o in result.calls if o is not None and o.code == OK)
    points: list[tuple[float, float]] = []
    for step in range(97):  # 24 points per decade of the share, down to one in 10,000
        share = 10 ** (-step / 24)
        if took and share * len(took) >= 1:
            points.append((_at(took, 1 - share) * 1000, share))
    return points


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a grid over time: its label, and one character per column.

    `0` to `9` are tenths of the busy slots; `d` is down, `z` frozen, `l` left, `o` off, `.` unknown.
    """

    label: str
    cells: str


_STATES: Final = {"down": "d", "frozen": "z", "left": "l", "off": "o"}


def utilisation(result: Result, end_s: float) -> list[Row]:
    """Return how busy nodes were over time, groups of neighbours as one row where there are many."""
    names = [machine.name for machine in result.machines]
    if not names or not result.samples:
        return []
    regions = {machine.name: machine.region for machine in result.machines}
    per_row = math.ceil(len(names) / MAX_ROWS)
    groups = [names[at : at + per_row] for at in range(0, len(names), per_row)]
    columns = _columns(result, end_s)
    rows = []
    for group in groups:
        cells = "".join(_cell(result, indices, group) for indices in columns)
        more = f" +{len(group) - 1}" if len(group) > 1 else ""
        rows.append(Row(f"{group[0]}{more}  {regions[group[0]]}", cells))
    return rows


def _columns(result: Result, end_s: float) -> list[list[int]]:
    """Return for each column of a grid which samples it shows: those in its time, or the one before."""
    looks = result.samples
    apart_s = looks[1].time_s - looks[0].time_s if len(looks) > 1 else end_s
    count = min(MAX_SLICES // 2, max(1, round(end_s / max(apart_s, 1e-3))))
    columns: list[list[int]] = [[] for _ in range(count)]
    for index, sample in enumerate(result.samples):
        at = int(sample.time_s / end_s * count)
        if 0 <= at < count or (at == count and sample.time_s <= end_s):
            columns[min(at, count - 1)].append(index)
    for at, indices in enumerate(columns):
        if not indices and at:
            columns[at] = columns[at - 1][-1:]
    return columns


def _cell(result: Result, indices: Sequence[int], group: Sequence[str]) -> str:
    states: Counter[str] = Counter()
    busy = counted = 0.0
    last = len(result.samples) - 1
    for index in indices:
        now, next_look = result.samples[index].nodes, result.samples[min(index + 1, last)].nodes
        for name in group:
            if name not in now:
                continue
            states[now[name].state] += 1
            if now[name].state == "up" and name in next_look:
                busy += next_look[name].busy  # what a look tells is of the time before it
                counted += 1
    if not states:
        return "."
    worst = max(states, key=lambda state: (states[state], state != "up"))
    if worst != "up":
        return _STATES.get(worst, ".")
    return str(min(9, int(busy / max(1.0, counted) * 10)))


@dataclass(frozen=True, slots=True)
class Opinions:
    """What the others thought of one node over time.

    Attributes:
        name: The node.
        suspect: Per column, the greatest share of running nodes that suspected it.
        dead: Per column, the share that held it dead at the end.
        left: Per column, the share that knew it had left.
        states: Per column, what it really was, as in `Row`; `0` is up.
    """

    name: str
    suspect: list[float]
    dead: list[float]
    left: list[float]
    states: str

    @property
    def trouble(self) -> float:
        """How much there is to see."""
        hidden = sum(state not in "0." for state in self.states)
        return sum(self.suspect) + sum(self.dead) + sum(self.left) + hidden


_BELIEFS: Final = {
    "member.alive": "alive",
    "member.refuted": "alive",
    "member.suspect": "suspect",
    "member.dead": "dead",
    "member.left": "left",
    "member.evicted": "left",
}


def opinions(result: Result, end_s: float) -> list[Opinions]:
    """Return what nodes thought of each other, in the order of the crew; at most `MAX_ROWS`, those with trouble."""
    names = [machine.name for machine in result.machines]
    if len(names) < 2:
        return []
    columns = min(MAX_SLICES, max(20, int(end_s)))
    beliefs = _Beliefs(names, columns)
    down = _presence(result, end_s, columns, names)
    pending = iter(sorted(_views(result, set(names)), key=lambda view: view[0]))
    view = next(pending, None)
    for column in range(columns):
        until_s = (column + 1) * end_s / columns
        for name in names:
            beliefs.present(name, down[name][column] in "0.")
        while view is not None and view[0] < until_s:
            beliefs.think(view[1], view[2], view[3])
            view = next(pending, None)
        beliefs.close(column)
    found = [beliefs.of(name, down[name]) for name in names]
    if len(found) > MAX_ROWS:
        chosen = sorted(found, key=lambda one: -one.trouble)[:MAX_ROWS]
        keep = {one.name for one in chosen}
        found = [one for one in found if one.name in keep]
    return found


def _views(result: Result, names: set[str]) -> Iterable[tuple[float, str, str, str]]:
    for event in result.events:
        belief = _BELIEFS.get(event.kind)
        if belief is None or event.node == event.subject:
            continue
        if event.subject in names and event.node in names:
            yield event.time_s, event.node, event.subject, belief


def _presence(result: Result, end_s: float, columns: int, names: list[str]) -> dict[str, str]:
    """Return for each node what it was in each column, by the last sample before its middle."""
    found = {name: ["."] * columns for name in names}
    at = 0
    latest: dict[str, str] = {}
    for column in range(columns):
        until_s = (column + 0.5) * end_s / columns
        while at < len(result.samples) and result.samples[at].time_s < until_s:
            latest = {name: node.state for name, node in result.samples[at].nodes.items()}
            at += 1
        for name in names:
            state = latest.get(name)
            if state is not None:
                found[name][column] = "0" if state == "up" else _STATES.get(state, ".")
    return {name: "".join(states) for name, states in found.items()}


class _Beliefs:
    """Who thinks what of whom, counted per subject; the nodes that do not run think nothing."""

    def __init__(self, names: list[str], columns: int) -> None:
        self._names = names
        self._here = dict.fromkeys(names, True)
        self._held: dict[str, dict[str, str]] = {name: {} for name in names}
        self._count: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._peak: dict[str, int] = defaultdict(int)
        self._shares = {
            name: {kind: [0.0] * columns for kind in ("suspect", "dead", "left")} for name in names
        }

    def present(self, name: str, here: bool) -> None:
        """Take in whether a node runs; one that comes back begins without ill opinions."""
        if self._here[name] == here:
            return
        self._here[name] = here
        for subject, belief in self._held[name].items():
            self._count[subject][belief] -= 1
        self._held[name].clear()

    def think(self, observer: str, subject: str, belief: str) -> None:
        """Take in a change of mind."""
        held, count = self._held[observer], self._count[subject]
        before = held.pop(subject, "alive")
        count[before] -= before != "alive"
        if belief != "alive":
            held[subject] = belief
            count[belief] += 1
        if belief == "suspect":
            self._peak[subject] = max(self._peak[subject], count["suspect"])

    def close(self, column: int) -> None:
        """End a column."""
        thinkers = max(1, sum(self._here.values()) - 1)
        for name in self._names:
            count, shares = self._count[name], self._shares[name]
            peak = max(self._peak.pop(name, 0), count["suspect"])
            shares["dead"][column] = min(1.0, count["dead"] / thinkers)
            shares["left"][column] = min(1.0, count["left"] / thinkers)
            room = 1.0 - min(1.0, shares["dead"][column] + shares["left"][column])
            shares["suspect"][column] = min(room, peak / thinkers)

    def of(self, name: str, states: str) -> Opinions:
        """Return what was thought of one node."""
        shares = self._shares[name]
        return Opinions(name, shares["suspect"], shares["dead"], shares["left"], states)


@dataclass(slots=True)
class Traffic:
    """What became of the calls of one region's gateways, and who answered them.

    Attributes:
        good: Answered within their deadline.
        late: Answered after it.
        failed: Not answered, or with an error.
        served_by: Region -> calls that its nodes answered.
    """

    good: int = 0
    late: int = 0
    failed: int = 0
    served_by: Counter[str] = field(default_factory=Counter)

    @property
    def made(self) -> int:
        """All of them."""
        return self.good + self.late + self.failed


def traffic(result: Result) -> dict[str, Traffic]:
    """Return by region what became of the calls that were made at its gateways."""
    regions = {machine.name: machine.region for machine in result.machines}
    found = {region: Traffic() for region in result.scenario.regions}
    for call, outcome in result.calls:
        if outcome is None:
            continue
        here = found.setdefault(regions.get(call.gateway, "?"), Traffic())
        if outcome.code != OK:
            here.failed += 1
            continue
        if is_good(call, outcome):
            here.good += 1
        else:
            here.late += 1
        here.served_by[regions.get(outcome.served_by, "?")] += 1
    return found
