"""What a run has shown: every call, how nodes fared, what happened, and the figures made from it."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Final

from meshnode.sim.running import release_figures
from meshnode.sim.stage import GATEWAY_LOST, OK, TIMED_OUT
from meshnode.types import is_within

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from meshnode.sim.scenario.model import Expect, Scenario
    from meshnode.sim.stage import Call, Machine, NodeSample, Outcome, Sample
    from meshnode.sim.trace import Record


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold.

    Attributes:
        invariant: Its name in `meshnode.sim.invariants`.
        message: What was seen, and where.
        time_s: When, in seconds after the load began (negative while the mesh started).
    """

    invariant: str
    message: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something that was expected holds: the figure that was found."""

    expect: Expect
    found: float
    holds: bool


@dataclass(frozen=True, slots=True)
class FaultMark:
    """A fault that was done or undone, for timelines: when, what in words, and whether it was the undoing."""

    time_s: float
    verb: str
    text: str
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a node was told.

    Attributes:
        time_s: When.
        node: Its name.
        what: What, in words.
        kind: What kind of thing: many alike are counted; empty where each counts for itself.
    """

    time_s: float
    node: str
    what: str
    kind: str = ""


@dataclass(slots=True)
class Result:
    """One run.

    Attributes:
        scenario: What was played.
        depth: At which depth.
        seed: With which seed.
        policy: Who chose replicas: `mesh`, or one of `meshnode.sim.policies`.
        source: The file or the name that the scenario was read from; "" if it was made in Python.
        trace_hash: The same for the same scenario, depth, seed, policy and version; "" at depth C.
        machines: Who was there.
        calls: Every call with its outcome, in the order of their making. One without an outcome has None:
            a run that was broken off.
        samples: Looks at all nodes, in order.
        marks: Faults done and undone.
        events: What nodes reported (joins, deaths, deployments ...), times as in `calls`.
        violations: Invariants that did not hold; the run ends with the first.
        verdicts: What was expected.
        steps: What nodes were told last before the end, such as timers; for the timeline of a failure.
        broken_off: Whether somebody ended it before its time (Ctrl-C).
        started_after_s: Stage seconds that the mesh took to start.
        simulated_s: Stage seconds in all.
        cpu_s: Seconds of CPU that the run took.
    """

    scenario: Scenario
    depth: str
    seed: int
    policy: str = "mesh"
    source: str = ""
    trace_hash: str = ""
    machines: tuple[Machine, ...] = ()
    calls: list[tuple[Call, Outcome | None]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    marks: list[FaultMark] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    broken_off: bool = False
    started_after_s: float = 0.0
    simulated_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all invariants and all that was expected hold."""
        return (
            not self.violations
            and not self.broken_off
            and all(verdict.holds for verdict in self.verdicts)
        )


# What is made of a run.


@dataclass(frozen=True, slots=True)
class Chosen:
    """The part of a run that a figure is made from.

    Attributes:
        calls: Calls that have an outcome, in the order of their making.
        samples: Looks at all nodes while the load ran.
        events: What nodes reported.
        seconds: How long that part took.
        regions: Of every node, by name.
        nodes: Those whose share of the work is asked for.
    """

    calls: Sequence[tuple[Call, Outcome]]
    samples: Sequence[Sample]
    events: Sequence[Record]
    seconds: float
    regions: Mapping[str, str]
    nodes: Collection[str]

    @property
    def answered(self) -> list[tuple[Call, Outcome]]:
        """The calls that were answered."""
        return [(call, outcome) for call, outcome in self.calls if outcome.code == OK]

    def latency_ms(self, share: float) -> float:
        """Return a percentile of the answered calls' latencies, in milliseconds."""
        return 1000 * percentile([outcome.took_s for _, outcome in self.answered], share)


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that scenarios may expect something of.

    Attributes:
        unit: `ms`, `s`, `share` (0 to 1), `1/s`, `nodes`, or `` for another count. None is ever below 0.
        meaning: What it says.
        find: Makes it; NaN where there is nothing to make it from, of which nothing holds.
        is_of_nodes: Whether it is about the nodes that an expectation names.
    """

    unit: str
    meaning: str
    find: Callable[[Chosen], float]
    is_of_nodes: bool = False


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed; NaN for none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def choose(
    result: Result,
    *,
    model: str | None = None,
    after_s: float | None = None,
    before_s: float | None = None,
    gateways: Collection[str] | None = None,
    nodes: Collection[str] | None = None,
) -> Chosen:
    """Return the part of a run that an expectation is about.

    Args:
        result: The run.
        model: Only calls for this model.
        after_s: Only what was made or seen at this time or later.
        before_s: Only what was made or seen before this time.
        gateways: Only calls made at these nodes.
        nodes: Those whose share is asked for by figures that are about some nodes; None for all.
    """
    begin_s = after_s if after_s is not None else 0.0
    end_s = before_s if before_s is not None else math.inf
    calls = [
        (call, outcome)
        for call, outcome in result.calls
        if outcome is not None
        and begin_s <= call.made_at_s < end_s
        and (model is None or call.model == model)
        and (gateways is None or call.gateway in gateways)
    ]
    last_s = min(end_s, result.scenario.duration_s)
    samples = [sample for sample in result.samples if begin_s <= sample.time_s <= last_s]
    events = [event for event in result.events if begin_s <= event.time_s <= last_s]
    regions = {machine.name: machine.region for machine in result.machines}
    about = [*regions] if nodes is None else nodes
    return Chosen(calls, samples, events, max(0.0, last_s - begin_s), regions, about)


def _share(found: int, of: int) -> float:
    return found / of if of else math.nan


def _error_rate(chosen: Chosen) -> float:
    return _share(len(chosen.calls) - len(chosen.answered), len(chosen.calls))


def _in_time(chosen: Chosen) -> int:
    return sum(outcome.took_s <= call.deadline_s for call, outcome in chosen.answered)


def _goodput(chosen: Chosen) -> float:
    return _in_time(chosen) / chosen.seconds if chosen.seconds else math.nan


def _with_code(code: str) -> Callable[[Chosen], float]:
    return lambda chosen: _share(
        sum(outcome.code == code for _, outcome in chosen.calls), len(chosen.calls)
    )


def _failed_attempt_share(chosen: Chosen) -> float:
    attempts = sum(outcome.attempts for _, outcome in chosen.calls)
    return _share(sum(len(outcome.failed_on) for _, outcome in chosen.calls), attempts)


def _longest_outage(chosen: Chosen) -> float:
    """Return the longest time in which calls were made and none of them was answered."""
    longest_s, began_s = 0.0, None
    for call, outcome in chosen.calls:
        if outcome.code != OK:
            began_s = call.made_at_s if began_s is None else began_s
            longest_s = max(longest_s, call.made_at_s - began_s)
        elif began_s is not None:
            longest_s, began_s = max(longest_s, call.made_at_s - began_s), None
    return longest_s


def _busiest_share(chosen: Chosen) -> float:
    served = Counter(outcome.served_by for _, outcome in chosen.answered)
    return _share(max(served.values(), default=0), served.total())


def _served_share(chosen: Chosen) -> float:
    served = [outcome.served_by in chosen.nodes for _, outcome in chosen.answered]
    return _share(sum(served), len(served))


def _local_share(chosen: Chosen) -> float:
    """Return the share of answers from the gateway's own region.

    A call whose client asked a second gateway counts for nothing: which one that was is not told. Nor
    does one that was to run in some region.
    """
    near = [
        chosen.regions.get(call.gateway) == chosen.regions.get(outcome.served_by)
        for call, outcome in chosen.answered
        if outcome.gateways == 1 and not call.hints.region
    ]
    return _share(sum(near), len(near))


def _outside_region(chosen: Chosen) -> float:
    """Return how many answers came from outside the region in which they had to be made."""
    found = 0
    for call, outcome in chosen.answered:
        hints = call.hints
        there = chosen.regions.get(outcome.served_by, "")
        found += bool(hints.region) and hints.region_required and not is_within(there, hints.region)
    return float(found)


def _at_end(find: Callable[[list[NodeSample]], float]) -> Callable[[Chosen], float]:
    """Make a figure of the nodes that ran at the last look."""

    def found(chosen: Chosen) -> float:
        if not chosen.samples:
            return math.nan
        up = [node for node in chosen.samples[-1].nodes.values() if node.state == "up"]
        return find(up) if up else math.nan

    return found


def _agree(up: list[NodeSample]) -> float:
    return _share(sum(node.alive == len(up) for node in up), len(up))


def _releases_agree(up: list[NodeSample]) -> float:
    views = Counter(node.releases for node in up)
    return _share(max(views.values(), default=0), len(up))


def _utilisation(chosen: Chosen) -> float:
    slots = busy = 0.0
    for sample in chosen.samples:
        for node in sample.nodes.values():
            slots += node.slots
            busy += node.slots * node.busy
    return busy / slots if slots else math.nan


def _utilisation_of_busiest(chosen: Chosen) -> float:
    shares: dict[str, list[float]] = {}
    for sample in chosen.samples:
        for name, node in sample.nodes.items():
            if node.slots:
                shares.setdefault(name, []).append(node.busy)
    return max((sum(each) / len(each) for each in shares.values()), default=math.nan)


def _longest_queue(chosen: Chosen) -> float:
    looks = [node.in_system for sample in chosen.samples for node in sample.nodes.values()]
    return float(max(looks)) if looks else math.nan


def _detection(chosen: Chosen) -> float:
    """Return the longest time in which nodes that ran took more nodes to be alive than ran."""
    longest_s, began_s = 0.0, None
    for sample in chosen.samples:
        up = [node for node in sample.nodes.values() if node.state == "up"]
        if all(node.alive <= len(up) for node in up):
            began_s = None
        else:
            began_s = sample.time_s if began_s is None else began_s
            longest_s = max(longest_s, sample.time_s - began_s)
    return longest_s if chosen.samples else math.nan


def _false_deaths(chosen: Chosen) -> float:
    """Return how often a node held another for dead that ran at the looks before and after."""
    times = [sample.time_s for sample in chosen.samples]
    found = 0
    for event in chosen.events:
        if event.kind == "member.dead":
            at = bisect(times, event.time_s)
            around = chosen.samples[max(0, at - 1) : at + 1]
            states = [
                each.nodes[event.subject].state for each in around if event.subject in each.nodes
            ]
            found += bool(states) and all(state == "up" for state in states)
    return float(found)


def _scalings(chosen: Chosen) -> list[list[str]]:
    """Return the changes of each autoscaled model's number of replicas, in order: `scale.up` or `scale.down`."""
    found: dict[str, list[str]] = {}
    for event in chosen.events:
        if event.kind in ("scale.up", "scale.down"):
            found.setdefault(event.subject, []).append(event.kind)
    return [*found.values()]


def _scaling_turns(chosen: Chosen) -> float:
    return float(sum(a != b for kinds in _scalings(chosen) for a, b in pairwise(kinds)))


METRICS: Final[dict[str, Metric]] = {
    "requests": Metric("", "requests that clients made", lambda of: float(len(of.calls))),
    "errors": Metric(
        "", "requests without an answer", lambda of: float(len(of.calls) - len(of.answered))
    ),
    "error_rate": Metric("share", "requests without an answer, of all", _error_rate),
    "gateway_lost_share": Metric(
        "share", "requests of which the client lost every gateway that it asked, of all",
        _with_code(GATEWAY_LOST),
    ),
    "timeout_share": Metric(
        "share", "requests that the client gave up, of all", _with_code(TIMED_OUT)
    ),
    "saturated_share": Metric(
        "share", "requests refused because all replicas were full, of all", _with_code("saturated")
    ),
    "longest_outage_s": Metric(
        "s", "the longest time in which no request that was made was answered", _longest_outage
    ),
    "mean_ms": Metric(
        "ms", "mean latency of answers",
        lambda of: 1000 * fmean(outcome.took_s for _, outcome in of.answered) if of.answered else math.nan,
    ),
    "p50_ms": Metric("ms", "median latency of answers", lambda of: of.latency_ms(0.5)),
    "p90_ms": Metric("ms", "90th percentile of answers' latency", lambda of: of.latency_ms(0.9)),
    "p99_ms": Metric("ms", "99th percentile of answers' latency", lambda of: of.latency_ms(0.99)),
    "p99_9_ms": Metric(
        "ms", "99.9th percentile of answers' latency", lambda of: of.latency_ms(0.999)
    ),
    "max_ms": Metric("ms", "latency of the slowest answer", lambda of: of.latency_ms(1.0)),
    "goodput": Metric("1/s", "answers within their deadline, per second", _goodput),
    "goodput_share": Metric(
        "share", "requests answered within their deadline, of all",
        lambda of: _share(_in_time(of), len(of.calls)),
    ),
    "attempts_per_request": Metric(
        "", "mean number of sends to replicas",
        lambda of: fmean(outcome.attempts for _, outcome in of.calls) if of.calls else math.nan,
    ),
    "failed_attempt_share": Metric(
        "share", "sends to replicas that failed, of all sends", _failed_attempt_share
    ),
    "gateways_per_request": Metric(
        "", "mean number of gateways that a client asked",
        lambda of: fmean(outcome.gateways for _, outcome in of.calls) if of.calls else math.nan,
    ),
    "busiest_share": Metric(
        "share", "answers of the node that gave most of them, of all answers", _busiest_share
    ),
    "served_share": Metric(
        "share", "answers of the expectation's `nodes`, of all answers", _served_share, is_of_nodes=True
    ),
    "local_share": Metric(
        "share", "answers of nodes in the gateway's own region, of those that the first gateway gave", _local_share
    ),
    "outside_region": Metric(
        "", "answers of nodes outside the region in which the request had to run (`region` of a load)",
        _outside_region,
    ),
    "oldest_version": Metric(
        "", "the lowest model version that answered",
        lambda of: float(min((outcome.version for _, outcome in of.answered), default=math.nan)),
    ),
    "utilisation": Metric("share", "slots that worked, of all ready slots; mean", _utilisation),
    "utilisation_of_busiest": Metric(
        "share", "slots that worked at the node where it was most; mean", _utilisation_of_busiest
    ),
    "longest_queue": Metric(
        "", "the most requests that ran or waited at one node, as seen at the looks", _longest_queue
    ),
    "running": Metric("nodes", "nodes that run at the end", _at_end(lambda up: float(len(up)))),
    "serving": Metric(
        "nodes", "nodes with a model ready at the end", _at_end(lambda up: float(sum(each.serving > 0 for each in up)))
    ),
    "alive_seen": Metric(
        "nodes", "the fewest nodes that a running node takes to be alive at the end",
        _at_end(lambda up: float(min(each.alive for each in up))),
    ),
    "agree": Metric(
        "share", "running nodes that take as many nodes to be alive as run at the end", _at_end(_agree)
    ),
    "detection_s": Metric(
        "s", "the longest time in which a running node took more nodes to be alive than ran, as seen at the looks",
        _detection,
    ),
    "scalings": Metric(
        "", "times that the number of an autoscaled model's replicas was changed",
        lambda of: float(sum(map(len, _scalings(of)))),
    ),
    "scaling_turns": Metric(
        "", "times that it was changed in the other direction than the time before", _scaling_turns
    ),
    "stewards": Metric(
        "", "times that a node became the steward of a model with autoscaling or in a release",
        lambda of: float(sum(event.kind == "steward.changed" for event in of.events)),
    ),
    "releases_promoted": Metric(
        "", "releases whose new version took the old one's place in the end",
        lambda of: release_figures.outcomes(of, release_figures.PROMOTED),
    ),
    "releases_rolled_back": Metric(
        "", "releases whose old version serves again in the end",
        lambda of: release_figures.outcomes(of, release_figures.ROLLED_BACK),
    ),
    "release_pauses": Metric(
        "", "times that a release paused: as it was told, as it waits for `promote`, or as too little is known",
        lambda of: release_figures.reported(of, "release.paused", "release.inconclusive"),
    ),
    "release_candidate_requests": Metric(
        "", "requests that model servers were given for a new version until its place was decided; the most",
        release_figures.candidate_requests,
    ),
    "release_decision_s": Metric(
        "s", "from the deployment of a new version until its place was decided; the longest",
        release_figures.decision_s,
    ),
    "release_back_s": Metric(
        "s", "how long after a way back was decided calls were made that the new version answered; the longest",
        release_figures.back_s,
    ),
    "release_switch_s": Metric(
        "s", "from the first call that a new version answered in the old one's place to the last that the old one did; "
        "the longest",
        release_figures.switch_s,
    ),
    "release_steps": Metric("", "steps of releases that were begun", release_figures.steps),
    "release_steps_repeated": Metric(
        "", "steps of releases that were begun again or left out", release_figures.steps_repeated
    ),
    "releases_agree": Metric(
        "share", "running nodes that see all releases stand as most do at the end", _at_end(_releases_agree)
    ),
    "false_deaths": Metric(
        "", "times that a node held another for dead that ran", _false_deaths
    ),
}  # fmt: skip
"""Every figure that scenarios may expect something of, and that results tell."""
