"""Whether a new version keeps to its limits, compared with the old one on the same class of devices at the same time.

A gate *fails* where both hold: the figures are beyond its limit, and they would hardly come about by chance if the new
version were half as far from the old one as the limit allows (`RUNNING_SLACK`). The first alone would roll back one of
two versions that are exactly at their limit, and every third one while there are few answers; the second alone would
roll back a version that is a little worse, beyond doubt, and within what its operator allows.

How improbable is enough? Each try of the gates is a chance to be wrong, and so is each gate and each class of devices.
`FALSE_ROLLBACKS` is what may go wrong in a whole release, and is shared out (Bonferroni's inequality): over the tries by
`share_of_try`, equally over the gates, and within a gate half to all devices together and half to its classes.

All devices together are never one heap, since the new version may lie on slower ones than the old one: the old one's
figures are weighed as the new one's answers are spread over the classes (direct standardisation). The tests themselves are in `meshnode.routing.releasing.findings`.

A gate *passes* where the figures of all classes together are within its limit and rest on `min_requests` of each version, and
no class is left out (`LEAST_OF_CLASS`); else it is inconclusive, and says what is missing.

Once the new version answers everything there is nothing at the same time to compare with. Its figures are then held
against those of the step before, with more slack (`LATER_SLACK`), as load changes over a day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meshnode.routing.releasing.evidence import Cell
from meshnode.routing.releasing.findings import Pair, finder_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.rollout import Progress
    from meshnode.routing.releasing.findings import Finding
    from meshnode.state.release import Gate, Release

FALSE_ROLLBACKS: Final = 0.005
"""Share of good releases that may be rolled back by chance, over all steps, gates and classes of devices."""

EXPECTED_OF_CLASS: Final = 30
"""Answers that a class of devices would have of the new version, from which on it must have some."""

LEAST_OF_CLASS: Final = 10
"""Those."""

_OF_REQUESTS: Final = ("errors", "latency_p50", "latency_p90", "latency_p99")

RUNNING_SLACK: Final = 0.5
"""Which part of a gate's limit a version may use up without any doubt about it."""

LATER_SLACK: Final = 2.0
"""The same, of a version that is compared with an earlier time."""

EVEN_TRIES: Final = 32
"""So many tries share half of what may go wrong equally: they take a step to 3,000 answers."""

Verdict = Literal["pass", "fail", "inconclusive"]


class GateResult(NamedTuple):
    """What one gate says.

    Attributes:
        metric: Of the gate.
        verdict: What follows.
        reason: For people.
        device: Class of devices that it failed on; empty for all together.
        baseline: The old version's figure, or None where there is none.
        candidate: The new one's, likewise.
        limit: Of the gate.
        figures: Of the new version, that this rests on.
        chance: How probable figures as bad would be of a version that is good (p-value); 1 where nothing speaks
            against it.
    """

    metric: str
    verdict: Verdict
    reason: str
    device: str = ""
    baseline: float | None = None
    candidate: float | None = None
    limit: float = 0.0
    figures: int = 0
    chance: float = 1.0


class Judgement(NamedTuple):
    """What all gates of a step say.

    Attributes:
        verdict: `fail` if one fails, `pass` if all that apply pass, else `inconclusive`.
        reason: For people.
        results: Of each gate that applies.
    """

    verdict: Verdict
    reason: str
    results: tuple[GateResult, ...] = ()


def judge(release: Release, progress: Progress, cells: Mapping[tuple[int, str], Cell]) -> Judgement:
    """Return what the gates of the present step say of what was seen in it.

    Only at a try that `progress.looks` counts may anything follow from a failure: whoever looks oftener than that finds
    one by chance in the end.

    Args:
        release: The plan.
        progress: How far it has come.
        cells: What all gateways have seen of this step.
    """
    pairs = _pairs(release, cells)
    gates = [gate for gate in release.gates if _applies(gate, release, progress, pairs)]
    slack = LATER_SLACK if progress.share(release) >= 1 else RUNNING_SLACK
    allowed = FALSE_ROLLBACKS * share_of_try(progress.looks) / max(1, len(gates))
    results = tuple(_result(gate, release, pairs, slack, allowed) for gate in gates)
    for verdict in ("fail", "inconclusive"):
        found = [each.reason for each in results if each.verdict == verdict]
        if found and (verdict == "fail" or _sends(release, progress)):
            return Judgement(verdict, "; ".join(found), results)
    if not results or not _sends(release, progress):
        return Judgement("pass", "nothing is measured in this step", results)
    return Judgement("pass", "; ".join(each.reason for each in results), results)


def share_of_try(number: int) -> float:
    """Return which part of all that may go wrong by chance is the n-th try's, from 1 on; together they are 1.

    Half of it lies evenly on the first tries, in which most releases are decided, the rest falls as 1 / (k (k + 1)).
    """
    if number <= 0:
        return 0.0
    if number <= EVEN_TRIES:
        return 0.5 / EVEN_TRIES
    later = number - EVEN_TRIES
    return 0.5 / (later * (later + 1))


def _pairs(release: Release, cells: Mapping[tuple[int, str], Cell]) -> list[Pair]:
    devices = sorted({device for _, device in cells})
    nothing = Cell()
    return [
        Pair(
            device,
            cells.get((release.baseline, device), nothing),
            cells.get((release.candidate, device), nothing),
        )
        for device in devices
    ]


def _sends(release: Release, progress: Progress) -> bool:
    return progress.share(release) > 0 or progress.mirror(release) > 0


def _applies(gate: Gate, release: Release, progress: Progress, pairs: Iterable[Pair]) -> bool:
    return (
        gate.metric != "agreement"
        or progress.mirror(release) > 0
        or release.against.startswith(("labels", "request:"))
        or any(pair.candidate.compared for pair in pairs)
    )


def _result(
    gate: Gate, release: Release, pairs: Sequence[Pair], slack: float, allowed: float
) -> GateResult:
    find = finder_of(gate, release)
    alone = [pair for pair in pairs if pair.candidate.requests or pair.candidate.compared]
    findings = [("", find(gate, pairs, slack))]
    if len(alone) > 1:
        allowed /= 2
        findings += [(pair.device, find(gate, [pair], slack)) for pair in alone]
    for place, (device, finding) in enumerate(findings):
        share = 1 if place == 0 else len(alone)
        if finding is not None and finding.is_beyond and finding.chance < allowed / share:
            return _worded(gate, release, "fail", finding, device)
    together = findings[0][1]
    if together is None:
        missing = f"{gate.metric}: nothing to compare was seen of version {release.candidate} yet"
        return GateResult(gate.metric, "inconclusive", missing, limit=gate.limit)
    needed = release.min_requests
    if together.figures < needed:
        return _lacking(gate, together, together.figures, needed, release.candidate)
    is_alone = gate.metric == "agreement" and not release.against
    if not is_alone and together.baseline_figures < needed:
        return _lacking(gate, together, together.baseline_figures, needed, release.baseline)
    starved = _starved(pairs) if gate.metric in _OF_REQUESTS else None
    if starved is not None and not together.is_beyond:
        reason = (
            f"{gate.metric}: {starved.candidate.requests} answers of version {release.candidate} on "
            f"{starved.device}, where version {release.baseline} gave {starved.baseline.requests}"
        )
        return GateResult(
            gate.metric, "inconclusive", reason, starved.device, together.baseline, together.candidate, gate.limit,
            together.figures, together.chance,
        )  # fmt: skip
    verdict: Verdict = "inconclusive" if together.is_beyond else "pass"
    return _worded(gate, release, verdict, together, "")


def _starved(pairs: Sequence[Pair]) -> Pair | None:
    """Return a class of devices on which much less was seen of the new version than the old one's answers let expect.

    Routing asks a replica less that was slow: it must not hide that by being asked no more.
    """
    old = sum(pair.baseline.requests for pair in pairs)
    new = sum(pair.candidate.requests for pair in pairs)
    for pair in pairs:
        expected = pair.baseline.requests * new / old if old else 0.0
        if expected >= EXPECTED_OF_CLASS and pair.candidate.requests < LEAST_OF_CLASS:
            return pair
    return None


def _lacking(gate: Gate, finding: Finding, figures: int, needed: int, version: int) -> GateResult:
    noun = "comparisons" if gate.metric == "agreement" else "answers"
    reason = f"{gate.metric}: {figures} of {needed} {noun} of version {version}"
    return GateResult(
        gate.metric, "inconclusive", reason, "", finding.baseline, finding.candidate, gate.limit,
        finding.figures, finding.chance,
    )  # fmt: skip


def _worded(
    gate: Gate, release: Release, verdict: Verdict, finding: Finding, device: str
) -> GateResult:
    words = [f"{gate.metric} {_amount(gate, finding.candidate)} of version {release.candidate}"]
    if finding.baseline is not None:
        words.append(f"{_amount(gate, finding.baseline)} of version {release.baseline}")
    words.append(_limit(gate, release))
    reason = ", ".join(words) + f" ({finding.figures} figures)"
    if device:
        reason += f" on {device}"
    if verdict == "inconclusive":
        reason += ", which may be chance"
    return GateResult(
        gate.metric, verdict, reason, device, finding.baseline, finding.candidate, gate.limit,
        finding.figures, finding.chance,
    )  # fmt: skip


def _amount(gate: Gate, value: float) -> str:
    if gate.metric in ("errors", "agreement"):
        return f"{100 * value:.3g} %"
    return f"{value:.3g} ms" if gate.metric.startswith("latency_") else f"{value:.4g}"


def _limit(gate: Gate, release: Release) -> str:
    if gate.metric == "errors":
        return f"limit {100 * gate.limit:.3g} % more"
    if gate.metric == "agreement":
        if release.against:
            return f"limit {100 * (1 - gate.limit):.3g} % less"
        return f"limit {100 * gate.limit:.4g} %"
    if gate.metric.startswith("latency_"):
        return f"limit {gate.limit:g} times"
    return f"limit {gate.limit:g} {'lower' if gate.higher_is_better else 'higher'}"
