"""Which release a definition begins, goes on with or ends, when it is written over what is deployed.

What a definition is about is one version, the candidate. The version that serves now is the baseline. A release that
is in progress keeps its baseline, whatever is released next: that one has proven itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.deployment_changes import asked_manifests
from meshnode.errors import InvalidRequest
from meshnode.release_file import plan_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.state.deployment import Deployment
    from meshnode.state.release import Ending, Release


_TOLD_TENSORS: Final = 4  # inputs or outputs that a sentence names


@dataclass(frozen=True, slots=True)
class Standing:
    """How a deployment's release stands, as far as edits have to know.

    Attributes:
        is_new_serving: Whether the new version has taken the old one's place.
        is_over: Whether it has ended.
        reason: Why it is as it is.
    """

    is_new_serving: bool = False
    is_over: bool = False
    reason: str = ""


NO_RELEASE = Standing()
"""Of a deployment without one."""


class Released(NamedTuple):
    """What a definition makes of the versions.

    Attributes:
        manifests: The versions to keep, the baseline's first.
        release: How the one takes the other's place; None for directly.
        is_again: Whether a release that has ended begins anew, though nothing else changes.
        notes: What people should know.
    """

    manifests: tuple[Manifest, ...]
    release: Release | None
    is_again: bool = False
    notes: tuple[str, ...] = ()


def released(
    plan: Release | None,
    asked: Sequence[Manifest],
    current: Deployment | None,
    standing: Standing = NO_RELEASE,
    *,
    again: bool = False,
) -> Released:
    """Return the versions of a deployment and its release.

    Args:
        plan: What the definition says of releases; None for directly.
        asked: The versions that it is about.
        current: What is deployed under its name.
        standing: How the release of that stands.
        again: Whether one that was rolled back is tried again.

    Raises:
        InvalidRequest: if these versions cannot be released so.
    """
    asked = tuple(asked)
    if current is None:
        notes = (
            () if plan is None else ("there is no version before it, so it is deployed directly",)
        )
        return Released(asked, None, notes=notes)
    running = current.release
    ended: tuple[str, ...] = ()
    if running is not None and not standing.is_over and not standing.is_new_serving:
        ended = (
            f"the release of version {running.candidate} ends with this, before it had come to its end",
        )
    if plan is None:
        if ended:
            ended += (
                "what is deployed now is served directly; to release it instead, give it a release",
            )
        return Released(asked, None, notes=ended)
    is_same = _digests(asked) == _digests(asked_manifests(current))
    if running is not None and is_same and plan_of(running) == plan:
        kept = (*_of(current, running.baseline), *asked)
        was_undone = standing.is_over and not standing.is_new_serving
        if was_undone and again:
            begun = structs.replace(running, begun_ms=0)
            return Released(kept, begun, is_again=True)
        notes = (_undone(current, running, standing),) if was_undone else ()
        return Released(kept, running, notes=notes)
    serving = serving_version(current, standing)
    baseline = _of(current, serving)
    if _digests(baseline) == _digests(asked):
        return Released(asked, None, notes=ended)
    flaw = _flaw(plan, baseline, asked)
    if flaw:
        raise InvalidRequest(f"{current.name!r} cannot be released so: {flaw}")
    begun = structs.replace(plan, baseline=serving, candidate=asked[0].version)
    told = filter(None, (*ended, unlike((*baseline, *asked), begun)))
    return Released((*baseline, *asked), begun, notes=tuple(told))


def unlike(manifests: Sequence[Manifest], release: Release) -> str:
    """Return in what the two versions of a release are called differently from outside, or an empty text.

    Args:
        manifests: Those of both.
        release: Names them.
    """
    told = []
    for what, more in (("inputs", "takes"), ("outputs", "gives")):
        old, new = (
            next(
                (
                    {spec.name: spec for spec in getattr(each, what)}
                    for each in manifests
                    if each.version == version
                ),
                {},
            )
            for version in (release.baseline, release.candidate)
        )
        if old.keys() != new.keys() or not all(_agree(old[name], new[name]) for name in old):
            told.append(
                f"version {release.candidate} {more} {_tensors(new.values())}, version {release.baseline} "
                f"{_tensors(old.values())}"
            )
    if not told:
        return ""
    return (
        f"{'; '.join(told)}: a request that the new version does not take goes to the old one, and where none fits "
        "both nothing can be compared, so that no gate passes"
    )


def _agree(old: TensorSpec, new: TensorSpec) -> bool:
    """Whether one tensor can be both."""
    if old.datatype != new.datatype or len(old.shape) != len(new.shape):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(old.shape, new.shape, strict=True))


def _tensors(specs: Iterable[TensorSpec]) -> str:
    named = [f"{spec.name} ({spec.datatype.value}{[*spec.shape]})" for spec in specs]
    more = f" and {len(named) - _TOLD_TENSORS} more" if len(named) > _TOLD_TENSORS else ""
    return ", ".join(named[:_TOLD_TENSORS]) + more


def serving_version(deployment: Deployment, standing: Standing) -> int:
    """Return the version that requests get which name none: of a release that which has proven itself."""
    release = deployment.release
    if release is None:
        return max(deployment.versions)
    return release.candidate if standing.is_new_serving else release.baseline


def restored(
    former: Deployment,
    later: Deployment | None,
    endings: Iterable[Ending],
    identity: tuple[int, int],
) -> Deployment:
    """Return what restores an earlier revision: the version that served in the end, directly.

    Args:
        former: That revision.
        later: The one after it, as far as it is kept.
        endings: How releases of the deployment came out.
        identity: What tells the revision's release from others (`release_id`).
    """
    release = former.release
    if release is None:
        return former
    told = next((each.outcome for each in endings if each.revision == identity), None)
    stays = release.candidate if told == "promoted" else release.baseline
    following = later.release.baseline if later is not None and later.release is not None else 0
    if told is None and following in (release.baseline, release.candidate):
        stays = following  # the next release began from the version that had stayed
    # What it was made from is the new version's: applied again, that one is to come.
    source = former.origin.source if stays == release.candidate else ""
    origin = structs.replace(former.origin, source=source)
    return structs.replace(former, manifests=_of(former, stays), release=None, origin=origin)


def with_whole_release(deployment: Deployment) -> Deployment:
    """Return a deployment without its release, if that is about a version that it does not have."""
    release = deployment.release
    if release is None or {release.baseline, release.candidate} <= deployment.versions.keys():
        return deployment
    return structs.replace(deployment, release=None)


def _of(deployment: Deployment, version: int) -> tuple[Manifest, ...]:
    return tuple(each for each in deployment.manifests if each.version == version)


def _digests(manifests: Iterable[Manifest]) -> set[tuple[int, str, str]]:
    return {(each.version, each.variant, each.digest) for each in manifests}


def _undone(current: Deployment, release: Release, standing: Standing) -> str:
    return (
        f"version {release.candidate} of {current.name} was rolled back ({standing.reason}); version {release.baseline} "
        "serves. To release it once more, apply this with --force"
    )


def _flaw(plan: Release, baseline: Sequence[Manifest], asked: Sequence[Manifest]) -> str:
    """Return why versions cannot be released so, or an empty text."""
    versions = sorted({each.version for each in asked})
    if len(versions) != 1:
        return f"these are versions {', '.join(map(str, versions))}, and a release leads to one; name that version"
    version = versions[0]
    if version == baseline[0].version:
        return (
            f"other files serve as version {version}, and two versions of one number cannot be told apart; give the "
            "new one a number of its own"
        )
    both = (*baseline, *asked)
    if plan.strategy != "blue_green" and any(each.execution.sequences for each in both):
        return (
            f"a sequence must stay at one version, and {plan.strategy} sends each request to one by itself; use "
            'strategy = "blue_green"'
        )
    mirrors = any(step.mirror for step in plan.steps)
    if mirrors and any(each.execution.decoupled or each.execution.sequences for each in both):
        return (
            "answers of several parts, and those of sequences, cannot be compared: leave out mirror"
        )
    return ""
