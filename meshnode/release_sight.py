"""What a release's steward sees of it: the evidence of all gateways, and who serves which version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.deployments import describe
from meshnode.errors import ProtocolError
from meshnode.rollout import Evidence, Progress, evidence_key
from meshnode.routing.releasing.evidence import merged
from meshnode.routing.releasing.progress import Ready
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.deployments import Known
    from meshnode.fleet import Part
    from meshnode.routing.releasing.evidence import Cells
    from meshnode.routing.table import ReplicaTable
    from meshnode.state.owner import OwnerStates
    from meshnode.types import NodeId


class ReleaseSight:
    """What one node sees of all releases."""

    def __init__(
        self,
        owners: OwnerStates,
        members: Iterable[NodeId],
        table: ReplicaTable,
        parts: Callable[[Known], Sequence[Part]],
        name_of: Callable[[NodeId], str],
    ) -> None:
        """Look at live views.

        Args:
            owners: What each node says about itself.
            members: All members.
            table: Who serves what.
            parts: Where the versions of a deployment belong.
            name_of: A node's name.
        """
        self._owners = owners
        self._members = members
        self._table = table
        self._parts = parts
        self._name_of = name_of
        # By deployment and gateway: what it told last, decoded once.
        self._evidence: dict[str, dict[NodeId, tuple[bytes, Evidence | None]]] = {}

    def __repr__(self) -> str:
        return f"<ReleaseSight of {len(self._evidence)} releases>"

    def forget(self, name: str) -> None:
        """Take that a deployment has no release any more."""
        self._evidence.pop(name, None)

    def cells(self, name: str, progress: Progress) -> Cells:
        """Return what all gateways saw of the step that counts."""
        key = evidence_key(name)
        before = self._evidence.get(name, {})
        read: dict[NodeId, tuple[bytes, Evidence | None]] = {}
        for node in self._members:
            value = self._owners.get(node, key)
            if value is None:
                continue
            known = before.get(node)
            read[node] = known if known and known[0] is value else (value, _evidence_of(value))
        self._evidence[name] = read
        told = (evidence for _, evidence in read.values() if evidence is not None)
        return merged(told, progress.revision, progress.watched_step)

    def ready(self, known: Known, wanted: int, progress: Progress) -> Ready:
        """Return how many nodes serve each version, and how many of the new one are enough.

        Up to the last step, as many as have room beside the old version; to take its place, as many as are wanted.
        """
        release = known.deployment.release
        assert release is not None
        placed = sum(len(each.placement.nodes) for each in self._parts(known) if each.is_candidate)
        is_last = progress.step + 1 >= len(release.steps)
        return Ready(
            self._serving(known, release.baseline),
            self._serving(known, release.candidate),
            max(1, wanted if is_last else min(wanted, placed)),
        )

    def _serving(self, known: Known, version: int) -> int:
        group = self._table.group(known.deployment.name, version)
        return 0 if group is None else len(group.ready)

    def waits(self, known: Known) -> str:
        """Say why the new version has no room on as many nodes as it is wanted on; empty if it has."""
        for part in self._parts(known):
            placement = part.placement
            if not part.is_candidate or placement.paused or not placement.missing:
                continue
            if not placement.nodes:
                return f"the new version has no place: {describe(placement, self._name_of)}"
            found = len(placement.nodes)
            reasons = "; ".join(
                f"{self._name_of(node)}: {reason}" for node, reason in placement.ineligible[:4]
            )
            return f"{found} of {found + placement.missing} replicas of the new version have a place: {reasons}"
        return ""

    def trouble(self, known: Known) -> str:
        """Return why the new version's replicas fail; empty if as many may still come up as have been given up.

        A node gives a version up after several failures (`meshnode.reconcile`), and then another one tries. One bad
        node is no trouble therefore; where most of those that tried gave up it is the version.
        """
        for part in self._parts(known):
            if not part.is_candidate or not part.failing:
                continue
            failed = self._failed(known)
            hopeful = sum(node not in failed for node in part.placement.nodes)
            if len(part.failing) > hopeful:
                node = min(part.failing)
                return f"{self._name_of(node)}: {part.failing[node]}"
        return ""

    def _failed(self, known: Known) -> set[NodeId]:
        release = known.deployment.release
        assert release is not None
        replicas = self._table.replicas(known.deployment.name, release.candidate)
        return {each.node for each in replicas if each.state is ReplicaState.FAILED}


def _evidence_of(value: bytes) -> Evidence | None:
    try:
        return Evidence.decode(value)
    except ProtocolError:
        return None
