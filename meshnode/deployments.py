"""The deployments of the mesh, decoded once for each change.

`Deployments` reads them from the desired state. Its values come from any operator of the mesh, in
whatever version of meshnode that runs, so one that is no deployment is left alone, never an error.
Where they belong is `meshnode.fleet`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.errors import MeshError
from meshnode.models.variables import TAKING_RUNTIMES, with_variables
from meshnode.state.deployment import KEY_PREFIX, Deployment, release_id, removal_of
from meshnode.suitability import mark_of
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from meshnode.models.manifest import Manifest
    from meshnode.reconcile import OwnReplica
    from meshnode.routing.placement import Placement
    from meshnode.state.desired import DesiredState
    from meshnode.types import NodeId


_NAMED_NODES: Final = 4
"""Nodes that a sentence about a placement names; the mesh's own list has all."""


@dataclass(frozen=True, slots=True)
class Target:
    """A version that a deployment wants, with its digest, which costs a hash to compute.

    Attributes:
        manifest: It, with the deployment's variables where its code takes them.
        digest: Of that.
        files: The mark of its files (`meshnode.suitability`), whatever the variables are.
        size_bytes: Of all its files.
    """

    manifest: Manifest
    digest: str
    files: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Known:
    """A deployment, decoded.

    Attributes:
        deployment: It.
        versions: All variants of each of its versions, by number.
        release_id: Which release of it this is (`meshnode.state.deployment.release_id`).
    """

    deployment: Deployment
    versions: Mapping[int, tuple[Target, ...]]
    release_id: tuple[int, int] = (0, 0)

    def only(self, versions: Container[int]) -> Known:
        """Return it with these of its versions alone."""
        kept = {number: each for number, each in self.versions.items() if number in versions}
        return self if len(kept) == len(self.versions) else replace(self, versions=kept)


class Resident(NamedTuple):
    """Which of a deployment's versions are wanted now.

    Attributes:
        versions: Those that are placed as the deployment is; None for all.
        candidate: One of a release on its way, which has a place of its own; None for none.
    """

    versions: frozenset[int] | None = None
    candidate: int | None = None


ALL_RESIDENT: Final = Resident()
"""Of a deployment without a release."""


def known_of(deployment: Deployment) -> Known:
    """Return a deployment with all that follows from it."""
    versions = {
        version: tuple(_target(manifest, deployment) for manifest in variants)
        for version, variants in deployment.versions.items()
    }
    return Known(deployment, versions, release_id(deployment))


def environment_warnings(deployment: Deployment) -> list[str]:
    """Return what people should know of variables that nothing reads."""
    idle = sorted({each.runtime for each in deployment.manifests} - TAKING_RUNTIMES)
    if not deployment.env or not idle:
        return []
    warning = (
        f"{deployment.name} has env, and its model of runtime {', '.join(idle)} runs no code that could read it: the "
        "variables change nothing there"
    )
    return [warning]


class Deployments:
    """The deployments as the desired state holds them at this moment."""

    def __init__(self, desired: DesiredState) -> None:
        """Read from `desired`."""
        self._desired = desired
        # By name: the value it was decoded from, and what came of it. Bounded as the desired state.
        self._decoded: dict[str, tuple[bytes, Known | str]] = {}

    def __repr__(self) -> str:
        return f"<Deployments: {len(self._decoded)} decoded>"

    def names(self) -> list[str]:
        """Return the names of all deployments, those that are none included, sorted."""
        return [
            key.removeprefix(KEY_PREFIX)
            for key, value in self._desired.items()
            if key.startswith(KEY_PREFIX) and removal_of(value) is None
        ]

    def get(self, name: str) -> Known | None:
        """Return what is deployed under a name, or None; what was deleted is not."""
        found = self._look_up(name)
        return found if isinstance(found, Known) else None

    def flaw(self, name: str) -> str | None:
        """Return why the value under a name is no deployment, or None if it is one or is absent."""
        found = self._look_up(name)
        return found if isinstance(found, str) else None

    def _look_up(self, name: str) -> Known | str | None:
        value = self._desired.get(KEY_PREFIX + name)
        if value is None or removal_of(value) is not None:
            self._decoded.pop(name, None)
            return None
        before = self._decoded.get(name)
        if before is not None and before[0] == value:
            return before[1]
        found = _decode(name, value)
        self._decoded[name] = (value, found)
        return found


def offered_otherwise(known: Known | None, own: Mapping[int, OwnReplica]) -> dict[int, Manifest]:
    """Return what of a model runs here and is to be offered otherwise, by version, as it is from now on.

    Other paths or tasks are no reason to load a model again: its files and settings are the same.

    Args:
        known: What is deployed under its name.
        own: This node's replicas of it, by version.
    """
    found: dict[int, Manifest] = {}
    for version, variants in ({} if known is None else known.versions).items():
        replica = own.get(version)
        if replica is None or not replica.deployed or replica.state is not ReplicaState.READY:
            continue
        wanted = next((each.manifest for each in variants if each.digest == replica.digest), None)
        if wanted is not None and wanted.exposure != replica.manifest.exposure:
            found[version] = structs.replace(replica.manifest, exposure=wanted.exposure)
    return found


def describe(placement: Placement, name_of: Callable[[NodeId], str]) -> str:
    """Say for people where a deployment belongs, or why nowhere."""
    if placement.paused:
        return "its deployment is paused"
    if placement.nodes:
        names = [name_of(node) for node in placement.nodes[:_NAMED_NODES]]
        more = len(placement.nodes) - len(names)
        return f"it is placed on {', '.join(names)}" + (f" and {more} more" if more else "")
    if not placement.missing:
        return "it is scaled to zero: the next request wakes it up"
    reasons = [f"{name_of(node)}: {reason}" for node, reason in placement.ineligible[:_NAMED_NODES]]
    more = len(placement.ineligible) - len(reasons)
    reasons += [f"and {more} more"] if more else []
    return f"no node can take it ({'; '.join(reasons) or 'none was asked for'})"


def _decode(name: str, value: bytes) -> Known | str:
    try:
        deployment = Deployment.decode(value)
    except MeshError as error:
        return str(error)
    if deployment.name != name:
        return f"the value under {name!r} is a deployment of {deployment.name!r}"
    return known_of(deployment)


def _target(manifest: Manifest, deployment: Deployment) -> Target:
    plain = manifest.digest
    complete = with_variables(manifest, deployment.env)
    digest = plain if complete is manifest else complete.digest
    return Target(complete, digest, mark_of(plain), manifest.size_bytes)
