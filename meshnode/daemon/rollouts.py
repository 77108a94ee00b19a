"""Releases on their way, as people see them and what they ask of them."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import to_builtins

from meshnode.errors import ModelNotFound, NotFound, ProtocolError
from meshnode.limits import MAX_KEPT_DECISIONS, MAX_RELEASES_REMEMBERED
from meshnode.release_edits import NO_RELEASE, Standing, unlike
from meshnode.routing.releasing.evidence import milliseconds_at
from meshnode.routing.releasing.significance import compare_arms
from meshnode.state.release import END_PREFIX, Ending
from meshnode.trust.records import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.clock import Clock
    from meshnode.daemon.driver import Driver
    from meshnode.effects import Emit
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.node import Node
    from meshnode.releases import ReleaseView
    from meshnode.rollout import Progress
    from meshnode.routing.releasing.evidence import Cell
    from meshnode.routing.releasing.gates import GateResult
    from meshnode.state.desired import DesiredState
    from meshnode.state.release import Release, Step, Verb
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

KIND_PREFIX: Final = "release."
"""Reports of what was decided about releases begin with this."""

_HEARD: Final = "heard"
_QUANTILES: Final = (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99))


class _Decision(NamedTuple):
    at: str
    kind: str
    reason: str


class _Decided(NamedTuple):
    """What was decided last about one release."""

    revision: tuple[int, int]
    last: deque[_Decision]


def standing_of(view: ReleaseView | None) -> Standing:
    """Return how a release stands, as far as edits of its deployment have to know."""
    if view is None:
        return NO_RELEASE
    progress = view.progress
    reason = view.ending.reason if view.ending is not None else progress.reason
    return Standing(progress.is_promoted(view.release), progress.is_over, reason)


def endings_of(desired: DesiredState, name: str) -> list[Ending]:
    """Return how releases of a deployment came out, the newest first, as far as that is kept."""
    key = END_PREFIX + name
    newest = desired.entry(key)
    endings = []
    for entry in () if newest is None else (newest, *desired.history(key)):
        with suppress(ProtocolError):  # of a later version of meshnode, or deleted
            endings.append(Ending.decode(entry.value))
    return endings


class Rollouts:
    """The releases of a mesh, as one node sees them; `RolloutControl` for the gateway."""

    def __init__(
        self,
        node: Node,
        driver: Driver,
        clock: Clock,
        name_of: Callable[[NodeId], str],
        require_operator: Callable[[], None],
    ) -> None:
        """Look at a node's cores.

        Args:
            node: Its cores.
            driver: Writes what operators ask.
            clock: Says when.
            name_of: Gives a node's name.
            require_operator: Raises Forbidden where this node's role does not allow it to change the mesh.
        """
        self._node = node
        self._driver = driver
        self._clock = clock
        self._name_of = name_of
        self._require_operator = require_operator
        self._decided: OrderedDict[str, _Decided] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Rollouts at {self._node.me[:8]}: of {len(self._decided)} deployments>"

    def heard(self, emit: Emit) -> bool:
        """Take a report about a release and keep it for people; return whether it is news.

        A node that decided something itself hears of it, too.
        """
        view = self._node.release_view(emit.subject)
        revision = (0, 0) if view is None else view.revision
        known = self._decided.pop(emit.subject, None)
        if known is None or known.revision != revision:
            known = _Decided(revision, deque(maxlen=MAX_KEPT_DECISIONS))
        self._decided[emit.subject] = known
        kind = emit.kind.removeprefix(KIND_PREFIX)
        if kind == _HEARD and known.last and emit.detail.endswith(known.last[-1].reason):
            return False
        known.last.append(_Decision(rfc3339(self._clock.wall_s()), kind, emit.detail))
        if len(self._decided) > MAX_RELEASES_REMEMBERED:
            self._decided.popitem(last=False)
        return True

    def show(self, name: str) -> dict[str, Any]:
        """Describe the release of a deployment; see `RolloutControl.show`."""
        view = self._node.release_view(name)
        if view is None:
            raise self._none(name)
        return self._view(name, view)

    def brief(self, name: str) -> dict[str, Any] | None:
        """Describe the release of a deployment in a few words; None where there is none."""
        return brief_of(self._node.release_view(name))

    def ask(self, name: str, verb: Verb, reason: str, caller: Caller) -> dict[str, Any]:
        """Ask something of a release; see `RolloutControl.ask`."""
        self._require_operator()
        if self._node.release_view(name) is None:
            raise self._none(name)
        by = str(caller) if caller.key_id or caller.via else self._name_of(self._node.me)
        wall_s = self._clock.wall_s()
        draft = self._node.release_order(name, verb, wall_s, by=by, reason=reason)
        self._driver.write(draft)
        log.info("the release of %s was asked to %s by %s", name, verb, caller)
        return self.show(name)

    # Inside

    def _none(self, name: str) -> Exception:
        if self._node.deployment(name) is None:
            return ModelNotFound(f"nothing is deployed under the name {name!r}")
        return NotFound(
            f"{name!r} has no release in progress: its versions are served directly. To begin one, apply a new version "
            "with a table [release] (docs/releases.md)"
        )

    def _unlike(self, name: str, release: Release) -> str:
        deployment = self._node.deployment(name)
        return "" if deployment is None else unlike(deployment.manifests, release)

    def _decisions(self, name: str, revision: tuple[int, int]) -> list[dict[str, Any]]:
        known = self._decided.get(name)
        if known is None or known.revision != revision:
            return []
        return [each._asdict() for each in known.last]

    def _view(self, name: str, view: ReleaseView) -> dict[str, Any]:
        release, progress, judgement = view.release, view.progress, view.judgement
        over = view.ending
        steward = view.steward
        return {
            "name": name,
            "strategy": release.strategy,
            "baseline": release.baseline,
            "candidate": release.candidate,
            "begun_at": rfc3339(release.begun_ms / 1000),
            **_course(release, progress),
            "steps": [_step(each) for each in release.steps],
            "mirror": progress.mirror(release),
            "split_by": release.split_by,
            "only": [*release.only],
            "resident": [*progress.resident(release)],
            "since": rfc3339((progress.since_ms or release.begun_ms) / 1000),
            "outcome": _outcome(view),
            "ended_at": None if over is None else rfc3339(over.at_ms / 1000),
            "steward": None if steward is None else self._name_of(steward),
            "steward_id": steward,
            "epoch": view.epoch,
            "ready": {
                "baseline": view.baseline_ready,
                "candidate": view.candidate_ready,
                "wanted": view.wanted,
            },
            "room": view.waits,
            "unlike": self._unlike(name, release),
            "verdict": None if judgement is None else judgement.verdict,
            "verdict_reason": "" if judgement is None else judgement.reason,
            "gates": [] if judgement is None else [_gate(each) for each in judgement.results],
            "arms": [
                {"version": version, "device": device, **_arm(cell)}
                for (version, device), cell in sorted(view.cells.items())
            ],
            "significance": [to_builtins(each) for each in compare_arms(release, view.cells)],
            "verbs": _verbs(progress),
            "decisions": self._decisions(name, view.revision),
        }


def brief_of(view: ReleaseView | None) -> dict[str, Any] | None:
    """Describe a release in a few words; None where there is none."""
    if view is None:
        return None
    release, progress = view.release, view.progress
    return {
        "strategy": release.strategy,
        "baseline": release.baseline,
        "candidate": release.candidate,
        **_course(release, progress),
        "steps": len(release.steps),
        "outcome": _outcome(view),
    }


def _course(release: Release, progress: Progress) -> dict[str, Any]:
    """Return where a release stands; its steps are counted from 1."""
    return {
        "phase": progress.phase,
        "step": progress.step + 1,
        "share": progress.share(release),
        "serving": progress.serving(release),
        "waits": progress.waits,
        "reason": progress.reason,
    }


def _outcome(view: ReleaseView) -> str | None:
    if view.ending is not None:
        return view.ending.outcome
    return {"done": "promoted", "rolled_back": "rolled_back"}.get(view.progress.phase)


def _step(step: Step) -> dict[str, Any]:
    return {
        "share": step.share,
        "mirror": step.mirror,
        "hold_s": step.hold_s,
        "wait": step.wait,
    }


def _gate(result: GateResult) -> dict[str, Any]:
    return {
        "metric": result.metric,
        "device": result.device,
        "limit": result.limit,
        "verdict": result.verdict,
        "reason": result.reason,
        "baseline": result.baseline,
        "candidate": result.candidate,
        "answers": result.figures,
    }


def _arm(cell: Cell) -> dict[str, Any]:
    return {
        "requests": cell.requests,
        "errors": cell.errors,
        **{name: quantile_ms(cell.run_times, share) for name, share in _QUANTILES},
        "compared": cell.compared,
        "agreed": cell.agreed,
        "metrics": {
            name: {"number": each.number, "mean": each.mean, "deviation": each.variance**0.5}
            for name, each in sorted(cell.metrics.items())
        },
    }


def quantile_ms(run_times: Mapping[int, int], share: float) -> float | None:
    """Return the run time in milliseconds that a share of answers did not exceed; None of no answers.

    Args:
        run_times: Number of answers by bucket.
        share: 0 to 1.
    """
    left = share * sum(run_times.values())
    for bucket, count in sorted(run_times.items()):
        left -= count
        if left <= 0:
            return round(milliseconds_at(bucket + 0.5), 4)
    return None


def _verbs(progress: Progress) -> list[Verb]:
    """Return what operators may ask of a release as it stands."""
    if progress.is_over:
        return []
    if progress.phase == "paused":
        return (
            ["promote", "abort", "undo"]
            if progress.waits
            else ["resume", "promote", "abort", "undo"]
        )
    return ["promote", "pause", "abort", "undo"]
