"""What a deployment says, for people, and in what two revisions of it differ."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.deployment_file import DeploymentSpec
from meshnode.deployment_writing import constraints_document, resources_document, scaling_document
from meshnode.models.tasks import written
from meshnode.owner_limits import size_text
from meshnode.release_file import plan_of, release_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meshnode.models.exposure import Exposure
    from meshnode.models.manifest import Manifest
    from meshnode.state.deployment import Deployment
    from meshnode.state.release import Release
    from meshnode.types import NodeId

    NameOf = Callable[[NodeId], str]

HIDDEN: Final = "…"
"""Stands for a variable's value that is not shown."""

_DIGEST_CHARACTERS: Final = 12
_TOLD: Final = 4  # changes that one line tells
_SHOWN: Final = 40  # characters of a value in it


class Change(NamedTuple):
    """One key that differs; None where it is not there.

    Attributes:
        key: Such as `replicas`, `where.regions`, `env.MODE` or `version 2`.
        before: Its value before.
        after: Its value after.
    """

    key: str
    before: Any
    after: Any

    def document(self) -> dict[str, Any]:
        """Return it as the API tells it."""
        return {"key": self.key, "from": self.before, "to": self.after}


def spec_of_deployment(
    deployment: Deployment,
    name_of: NameOf,
    known: Mapping[tuple[int, str], Exposure] | None = None,
) -> DeploymentSpec:
    """Return the definition that, applied, makes this deployment: its model is what the mesh has.

    Args:
        deployment: What it is of.
        name_of: A node's name.
        known: How the mesh's store has its versions offered, by number and variant: what is otherwise is said.
    """
    release = deployment.release
    asked = asked_manifests(deployment)
    first = asked[0]
    exposure = first.exposure
    base = (known or {}).get((first.version, first.variant), exposure)
    is_same = base.path == exposure.path and not exposure.path
    tasks = tuple(written(each) for each in exposure.tasks)
    return DeploymentSpec(
        name=deployment.name,
        model=deployment.name,
        versions=tuple(sorted({each.version for each in asked})),
        replicas=deployment.replicas,
        on=tuple(name_of(node) for node in deployment.on),
        enabled=deployment.enabled,
        path=None if is_same else exposure.path,
        tasks=None if base.tasks == exposure.tasks and not tasks else tasks,
        cache=exposure.cache,
        standby=deployment.standby,
        where=deployment.constraints,
        resources=deployment.resources,
        env=deployment.env,
        scaling=deployment.scaling,
        release=None if release is None else plan_of(release),
    )


def asked_manifests(deployment: Deployment) -> tuple[Manifest, ...]:
    """Return the versions that a deployment's definition is about: of a release that to which it leads."""
    release = deployment.release
    if release is None:
        return deployment.manifests
    return tuple(each for each in deployment.manifests if each.version == release.candidate)


def described(deployment: Deployment | None, name_of: NameOf) -> dict[str, Any]:
    """Return everything that a deployment says, by flat keys; nothing of none."""
    if deployment is None:
        return {}
    exposure = asked_manifests(deployment)[0].exposure
    said: dict[str, Any] = {_version_key(each): _version(each) for each in deployment.manifests}
    said |= {
        "replicas": deployment.replicas,
        "on": [name_of(node) for node in deployment.on] or None,
        "enabled": deployment.enabled,
        "path": exposure.path or None,
        "tasks": [written(each) for each in exposure.tasks] or None,
        "cache": exposure.cache,
        "standby": deployment.standby,
    }
    tables = {
        "where": constraints_document(deployment.constraints),
        "resources": resources_document(deployment.resources),
        "autoscaling": scaling_document(deployment.scaling),
        "release": _release(deployment),
        "env": dict(deployment.env),
    }
    said |= {
        f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()
    }
    return {key: value for key, value in said.items() if value is not None}


def _release(deployment: Deployment) -> dict[str, Any]:
    release = deployment.release
    if release is None:
        return {}
    return {"from": release.baseline, "to": release.candidate, **release_document(release)}


def _version_key(manifest: Manifest) -> str:
    return f"version {manifest.version}" + (f" ({manifest.variant})" if manifest.variant else "")


def _version(manifest: Manifest) -> str:
    size = size_text(manifest.size_bytes)
    said = f"{manifest.digest[:_DIGEST_CHARACTERS]}, {manifest.runtime}, {size}"
    provenance = manifest.provenance
    if provenance is None:
        return said
    metrics = "".join(f", {name}={value:g}" for name, value in provenance.metrics)
    return said + metrics + (f", {provenance.note!r}" if provenance.note else "")


def changes(before: Deployment | None, after: Deployment | None, name_of: NameOf) -> list[Change]:
    """Return in what a deployment differs from another one."""
    old, new = described(before, name_of), described(after, name_of)
    keys = dict.fromkeys((*old, *new))
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def hidden(found: Iterable[Change]) -> list[Change]:
    """Return the same without the values of variables, which may be secret."""
    return [
        Change(
            each.key,
            HIDDEN if each.before is not None else None,
            HIDDEN if each.after is not None else None,
        )
        if each.key.startswith("env.")
        else each
        for each in found
    ]


def summary(found: Sequence[Change], before: Deployment | None, after: Deployment | None) -> str:
    """Return in one line what happened from one revision to the next; variables without their values."""
    if after is None:
        return "deleted"
    if before is None:
        versions = ", ".join(map(str, after.versions))
        count = f"{after.replicas} replica{'s' if after.replicas != 1 else ''}"
        return f"deployed version {versions}, {count}"
    if not found:
        return "nothing that is served"
    release = after.release
    if release is not None and _is_begun(before.release, release):
        told_begun = (
            f"release of version {release.candidate} from {release.baseline}, {release.strategy}"
        )
        others = [each for each in found if not each.key.startswith(("release.", "version "))]
        count = f"; {len(others)} more change{'s' if len(others) != 1 else ''}" if others else ""
        return told_begun + count
    if [each.key for each in found] == ["enabled"]:
        return "resumed" if after.enabled else "paused"
    told = [_told(each) for each in found[:_TOLD]]
    more = len(found) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _is_begun(before: Release | None, after: Release) -> bool:
    if before is None:
        return True
    return (before.baseline, before.candidate) != (after.baseline, after.candidate)


def _told(change: Change) -> str:
    if change.key.startswith("env."):
        what = "set" if change.after is not None else "taken away"
        return f"{change.key} {'changed' if None not in (change.before, change.after) else what}"
    return f"{change.key} {_shown(change.before)} → {_shown(change.after)}"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
