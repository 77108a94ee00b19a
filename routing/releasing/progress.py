"""How a release goes on: what follows from its plan, from what is seen, and from what operators ask.

Its steward looks about once a second and calls `advance`; all that a look needs to know of those before is in `Progress`,
which the steward tells everybody, so that another one goes on where it stopped. One look makes one change at most: no
step is skipped, and what is seen of one step decides nothing in the next. There is one machine for all strategies, which
differ in their steps alone:

    preparing ──ready──> step 0 ──held and passed──> step 1 … ──> keeping ──kept──> done
        │                  │                           │             │
        └──────────────────┴──── a gate fails, the replicas fail, abort, undo ──> rolled_back

| phase | goes on when | otherwise |
|---|---|---|
| preparing | enough replicas of the new version are ready | after `max_wait_s` it pauses |
| running | the step has lasted `hold_s`, all its gates pass, and enough replicas are ready | `max_wait_s` later it pauses |
| running, of a step that waits | never by itself: once it has passed it pauses, and waits for `promote` | |
| paused | `resume` begins the time of its phase anew, `promote` goes to the next step | |
| keeping | the new version has answered everything for `keep_s` | |

Wherever it stands, also paused, it is rolled back at once when a gate fails, when the new version's replicas fail for
`TROUBLE_LASTS_S`, and on `abort`. What is not known passes no gate.

Gates are tried while the data grows (`LOOK_GROWTH`), since each try is a chance to be wrong (`meshnode.routing.releasing.gates`).
An order is obeyed once, by its number, and only if it is about this revision of the deployment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.limits import MAX_RELEASE_LOOKS
from meshnode.rollout import Progress, shortened
from meshnode.routing.releasing.gates import judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.rollout import Phase
    from meshnode.routing.releasing.evidence import Cell
    from meshnode.state.release import Order, Release

TROUBLE_LASTS_S: Final = 30.0
"""For so long the new version's replicas fail before it is given up: one that starts anew once may recover."""

LEAST_SEEN: Final = 10
"""Figures of the new version before its gates are tried."""

LOOK_GROWTH: Final = 1.2
"""How many times those of the last try there are before the next one."""


class Ready(NamedTuple):
    """Replicas that can answer.

    Attributes:
        baseline: Of the old version.
        candidate: Of the new one.
        wanted: How many of the new one are enough.
    """

    baseline: int
    candidate: int
    wanted: int


class Decided(NamedTuple):
    """What is to be told of a change.

    Attributes:
        kind: `release.began`, `release.step`, `release.paused`, `release.inconclusive` (it pauses since too little is
            known), `release.resumed`, `release.promoted`, `release.done`, `release.rolled_back`, or `release.refused`
            (an order that nothing followed from).
        reason: Why, for people.
    """

    kind: str
    reason: str


_Change = tuple[Progress, list[Decided]]


def begin(revision: tuple[int, int], now_ms: int) -> Progress:
    """Return how a release begins.

    Args:
        revision: Of the deployment.
        now_ms: Milliseconds since the Unix epoch.
    """
    return Progress(revision, "preparing", -1, now_ms, "replicas of the new version start")


def advance(
    progress: Progress,
    release: Release,
    *,
    revision: tuple[int, int],
    order: Order | None,
    ready: Ready,
    trouble: str,
    cells: Mapping[tuple[int, str], Cell],
    now_ms: int,
) -> _Change:
    """Return how far a release is after a look, and what there is to tell; the same `progress` if nothing changed.

    Args:
        progress: As it counts.
        release: The plan.
        revision: Of the deployment now: another one than the progress's begins anew.
        order: The last that operators asked; None for nothing.
        ready: Replicas.
        trouble: Why the new version's replicas fail; empty if they do not.
        cells: What all gateways have seen of `progress.watched_step` (`meshnode.routing.releasing.evidence.merged`).
        now_ms: Milliseconds since the Unix epoch.
    """
    if progress.revision != revision:
        return begin(revision, now_ms), [Decided("release.began", _course(release))]
    if order is not None and order.revision == revision and order.number > progress.order:
        return _obey(progress, release, order, ready, now_ms)
    if progress.is_over:
        return progress, []
    if now_ms < progress.since_ms:  # a clock was set back, or an earlier steward's was ahead
        progress = structs.replace(progress, since_ms=max(0, now_ms))
    progress = _noting(progress, trouble, now_ms)
    if trouble and now_ms - progress.troubled_ms >= 1000 * TROUBLE_LASTS_S:
        return _back(progress, f"replicas of version {release.candidate} fail: {trouble}", now_ms)
    if progress.phase == "preparing":
        return _preparing(progress, release, ready, now_ms)
    if progress.step < 0:
        return progress, []
    if (looking := _looking(progress, release, cells)) is not None:
        progress = looking
        judgement = judge(release, progress, cells)
        if judgement.verdict == "fail":
            return _back(progress, judgement.reason, now_ms)
    if progress.phase == "running":
        return _running(progress, release, ready, cells, now_ms)
    if progress.phase == "keeping":
        return _keeping(progress, release, ready, now_ms)
    return progress, []


# The phases


def _preparing(progress: Progress, release: Release, ready: Ready, now_ms: int) -> _Change:
    if ready.candidate >= ready.wanted:
        return _to_step(progress, release, 0, _ready_text(release, ready), now_ms)
    if _lasted_s(progress, now_ms) < release.max_wait_s:
        return progress, []
    reason = f"{_ready_text(release, ready)} after {release.max_wait_s:g} s"
    return _paused(progress, reason, now_ms, kind="release.inconclusive")


def _running(
    progress: Progress,
    release: Release,
    ready: Ready,
    cells: Mapping[tuple[int, str], Cell],
    now_ms: int,
) -> _Change:
    step = release.steps[progress.step]
    lasted_s = _lasted_s(progress, now_ms)
    if lasted_s < step.hold_s and not progress.granted:
        return progress, []
    judgement = judge(release, progress, cells)
    passed = progress.granted or judgement.verdict == "pass"
    if passed and step.wait and not progress.granted:
        reason = f"{judgement.reason}; waits for promote"
        return _paused(progress, reason, now_ms, waits=True)
    if passed and ready.candidate >= ready.wanted:
        reason = progress.reason if progress.granted else judgement.reason
        return _onwards(progress, release, reason, now_ms)
    if lasted_s < step.hold_s + release.max_wait_s:
        return progress, []
    reason = _ready_text(release, ready) if passed else judgement.reason
    return _paused(progress, reason, now_ms, kind="release.inconclusive")


def _keeping(progress: Progress, release: Release, ready: Ready, now_ms: int) -> _Change:
    if _lasted_s(progress, now_ms) < release.keep_s or ready.candidate < min(1, ready.wanted):
        return progress, []
    return _done(progress, f"version {release.candidate} has proven itself", now_ms)


def _looking(
    progress: Progress, release: Release, cells: Mapping[tuple[int, str], Cell]
) -> Progress | None:
    """Return the progress with one more try of the gates, or None where too little is new for one."""
    seen = sum(
        _figures(cell) for (version, _), cell in cells.items() if version == release.candidate
    )
    if seen < max(LEAST_SEEN, LOOK_GROWTH * progress.seen) or progress.looks >= MAX_RELEASE_LOOKS:
        return None
    return structs.replace(progress, looks=progress.looks + 1, seen=seen)


def _figures(cell: Cell) -> int:
    return cell.requests + cell.compared + sum(each.number for each in cell.metrics.values())


def _noting(progress: Progress, trouble: str, now_ms: int) -> Progress:
    if bool(trouble) == bool(progress.troubled_ms):
        return progress
    return structs.replace(progress, troubled_ms=now_ms if trouble else 0)


# Orders


def _obey(progress: Progress, release: Release, order: Order, ready: Ready, now_ms: int) -> _Change:
    progress = structs.replace(progress, order=order.number)
    by = f"{order.verb} by {order.by or 'an operator'}" + (
        f": {order.reason}" if order.reason else ""
    )
    if progress.is_over:
        return _refused(progress, f"{by}: {_too_late(progress, release)}")
    if order.verb == "pause":
        return _pause(progress, by, now_ms)
    if order.verb == "resume":
        return _resume(progress, release, by, now_ms)
    if order.verb == "promote":
        return _promote(progress, release, ready, by, now_ms)
    return _back(progress, by, now_ms)


def _too_late(progress: Progress, release: Release) -> str:
    if progress.phase == "rolled_back":
        return f"the release was rolled back; version {release.baseline} answers"
    return f"the release is done; version {release.baseline} comes back with: meshnode rollback"


def _pause(progress: Progress, by: str, now_ms: int) -> _Change:
    if progress.phase == "paused":
        return _refused(progress, f"{by}: the release is paused already")
    return _paused(progress, by, now_ms)


def _resume(progress: Progress, release: Release, by: str, now_ms: int) -> _Change:
    if progress.phase != "paused":
        return _refused(progress, f"{by}: the release is not paused")
    if progress.waits:
        return _refused(progress, f"{by}: the release has passed this step and waits for promote")
    phase: Phase = "running"
    if progress.step < 0:
        phase = "preparing"
    elif progress.is_promoted(release):
        phase = "keeping"
    return _moved(progress, phase, progress.step, by, now_ms), [Decided("release.resumed", by)]


def _promote(progress: Progress, release: Release, ready: Ready, by: str, now_ms: int) -> _Change:
    if progress.is_promoted(release):
        return _done(progress, by, now_ms)
    if ready.candidate < min(1, ready.wanted):
        return _refused(progress, f"{by}: no replica of version {release.candidate} is ready")
    if progress.step + 1 == len(release.steps) and ready.candidate < ready.wanted:
        waiting = _moved(progress, "running", progress.step, by, now_ms)
        reason = f"{by}; {_ready_text(release, ready)}"
        return structs.replace(waiting, granted=True), [Decided("release.resumed", reason)]
    return _onwards(progress, release, by, now_ms)


# Changes


def _onwards(progress: Progress, release: Release, reason: str, now_ms: int) -> _Change:
    following = progress.step + 1
    if following < len(release.steps):
        return _to_step(progress, release, following, reason, now_ms)
    text = f"version {release.candidate} answers all requests: {reason}"
    kept = _moved(progress, "keeping", following, text, now_ms)
    return kept, [Decided("release.promoted", text)]


def _to_step(
    progress: Progress, release: Release, number: int, reason: str, now_ms: int
) -> _Change:
    step = release.steps[number]
    mirrored = f", {step.mirror:.4g} of the others mirrored" if step.mirror else ""
    text = (
        f"step {number + 1} of {len(release.steps)}: a share of {step.share:.4g} for version "
        f"{release.candidate}{mirrored}; {reason}"
    )
    return _moved(progress, "running", number, text, now_ms), [Decided("release.step", text)]


def _paused(
    progress: Progress,
    reason: str,
    now_ms: int,
    *,
    kind: str = "release.paused",
    waits: bool = False,
) -> _Change:
    paused = _moved(progress, "paused", progress.step, reason, now_ms)
    return structs.replace(paused, waits=waits), [Decided(kind, reason)]


def _back(progress: Progress, reason: str, now_ms: int) -> _Change:
    back = _moved(progress, "rolled_back", progress.step, reason, now_ms)
    return back, [Decided("release.rolled_back", reason)]


def _done(progress: Progress, reason: str, now_ms: int) -> _Change:
    return _moved(progress, "done", progress.step, reason, now_ms), [
        Decided("release.done", reason)
    ]


def _refused(progress: Progress, reason: str) -> _Change:
    return progress, [Decided("release.refused", reason)]


def _moved(progress: Progress, phase: Phase, step: int, reason: str, now_ms: int) -> Progress:
    return structs.replace(
        progress,
        phase=phase,
        step=step,
        since_ms=max(0, now_ms),
        reason=shortened(reason),
        seen=progress.seen if step == progress.step else 0,
        waits=False,
        granted=False,
    )


def _lasted_s(progress: Progress, now_ms: int) -> float:
    return (now_ms - progress.since_ms) / 1000


def _ready_text(release: Release, ready: Ready) -> str:
    return f"{ready.candidate} of {ready.wanted} replicas of version {release.candidate} are ready"


def _course(release: Release) -> str:
    return (
        f"{release.strategy} from version {release.baseline} to {release.candidate} in "
        f"{len(release.steps)} steps"
    )
