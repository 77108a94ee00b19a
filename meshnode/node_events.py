"""What the driver tells the node's cores of models and the machine, besides the events of `meshnode.events`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshnode.advertisement import ShownReplica
from meshnode.events import Event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.advertisement import NodeLoad
    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.profile import Profile
    from meshnode.state.drain import DrainReport
    from meshnode.types import ReplicaState


@dataclass(frozen=True, slots=True)
class ReplicaChanged(Event):
    """A model version on this node is being fetched or loaded, is ready, or failed.

    Attributes:
        manifest: The version that it is about.
        state: Where it stands.
        reason: Why it failed.
        slots: Requests that run at once.
        service_ms: Run time of one row.
        deployed: Whether it follows a deployment.
        profile: Service time by batch size.
        shown: What people are shown of it.
        replaces: Whether the version's older files, if any, go on serving until these are ready.
    """

    manifest: Manifest
    state: ReplicaState
    reason: str = ""
    slots: int = 1
    service_ms: float = 0.0
    deployed: bool = True
    profile: Profile = ()
    shown: ShownReplica = field(default_factory=ShownReplica)
    replaces: bool = True


@dataclass(frozen=True, slots=True)
class ReplicaGone(Event):
    """A model version is not on this node any more."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class LoadSampled(Event):
    """How busy this node is now."""

    load: NodeLoad


@dataclass(frozen=True, slots=True)
class FilesHere(Event):
    """Of the versions that this mesh knows, those whose files are all on this disk now.

    Attributes:
        digests: Of their manifests, as they were published.
    """

    digests: frozenset[str]


@dataclass(frozen=True, slots=True)
class RequestsWait(Event):
    """For these models requests wait at this node's gateway until a replica is there: the number by model."""

    models: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CapabilitiesChanged(Event):
    """This machine's facts are other ones now; a word under `paused` takes it out of service."""

    capabilities: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DrainReported(Event):
    """How far this node is that is to be emptied.

    Attributes:
        report: What the mesh is told.
        withdrawn: Why its replicas serve nobody any more; empty as long as they do.
    """

    report: DrainReport
    withdrawn: str = ""
