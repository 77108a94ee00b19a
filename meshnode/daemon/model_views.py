"""Models and their replicas, as the gateway and the command line show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.advertisement import (
    LOAD_KEY,
    ShownReplica,
    decode_load,
    decode_replica,
    replica_key,
)
from meshnode.daemon.offering import offer_view
from meshnode.daemon.publications import provenance_view
from meshnode.daemon.rollouts import brief_of
from meshnode.errors import MeshError
from meshnode.reconcile import why_not_replaced
from meshnode.state.deployment_history import revision_id
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.advertisement import ReplicaAdvert
    from meshnode.node import Node
    from meshnode.routing.placement import Placement
    from meshnode.routing.table import Replica
    from meshnode.state.deployment import Deployment
    from meshnode.types import NodeId


class ModelViews:
    """What one node knows of the mesh's models, as plain dictionaries."""

    def __init__(self, node: Node, name_of: Callable[[NodeId], str]) -> None:
        """Look at a node's cores; `name_of` gives a node's name."""
        self._node = node
        self._name_of = name_of

    def __repr__(self) -> str:
        return f"<ModelViews of {self._node.me[:8]}>"

    def model(self, name: str) -> dict[str, Any]:
        """Describe a model and its replicas; one that nobody knows has none."""
        table = self._node.router.table
        deployment = self._node.deployment(name)
        versions = set(table.models().get(name, ()))
        parts = self._node.parts(name)
        resident = {number for part in parts for number in part.versions}
        if deployment is not None:  # of a release that is over only one version is there
            versions.update(resident or deployment.versions)
        replicas = [
            self._replica(replica, deployment)
            for version in sorted(versions)
            for replica in sorted(table.replicas(name, version), key=lambda each: each.node_name)
        ]
        view: dict[str, Any] = {
            "name": name,
            "versions": sorted(versions),
            "replicas": replicas,
            "wanted": self._node.scaling(deployment).wanted if deployment else None,
            **offer_view(table.usual(name), table.manifests()),
        }
        if deployment is not None:
            placement = self._node.placement(deployment)
            entry = self._node.desired.entry(deployment.key)
            view["revision"] = revision_id(entry) if entry else ""
            view["release"] = brief_of(self._node.release_view(name))
            view["deployed"] = [number for number in deployment.versions if number in resident]
            variants = {
                str(number): [each.variant for each in of]
                for number, of in deployment.versions.items()
                if number in resident
            }
            view["variants"] = {number: names for number, names in variants.items() if any(names)}
            placed = dict.fromkeys(node for part in parts for node in part.placement.nodes)
            view["placed"] = [self._name_of(node) for node in placed]
            view["missing"] = placement.missing
            view["standby"] = [self._name_of(node) for node in placement.standby]
            view["missing_standby"] = placement.missing_standby
            view["paused"] = placement.paused
            view["ineligible"] = [
                {
                    "node": self._name_of(node),
                    "node_id": node,
                    "reason": reason,
                    "lasting": self._node.is_lasting(node, deployment),
                }
                for node, reason in placement.ineligible
            ]
        return view

    def digest(self, replica: Replica) -> str:
        """Return the digest of what a replica serves, as its node says; empty if it is unknown."""
        advert = self._advert(replica)
        return "" if advert is None else advert.digest

    def _replica(self, replica: Replica, deployment: Deployment | None) -> dict[str, Any]:
        """Describe a replica, and how it stands to what is deployed under its name."""
        advert = self._advert(replica)
        said = "" if advert is None else advert.digest
        wanted = self._node.chosen_digest(replica.model, replica.version, replica.node)
        is_current = deployment is None or (bool(said) and said == wanted)
        failure = why_not_replaced(replica.reason, wanted) if wanted else ""
        if replica.state is ReplicaState.FAILED and is_current:
            failure = replica.reason or "no reason given"
        # A node tells its load less often than its replicas: of one that is past fetching it is old news.
        serves = replica.state in (ReplicaState.READY, ReplicaState.PAUSED)
        placement = None if deployment is None else self._placement(replica)
        is_coming = replica.state is ReplicaState.FETCHING or (serves and not is_current)
        return {
            **_replica_view(replica, advert, current=is_current),
            "provenance": advert and provenance_view(advert.manifest, said, self._name_of),
            "placed": deployment is None
            or (placement is not None and replica.node in placement.nodes),
            "standby": placement is not None and replica.node in placement.standby,
            "failure": failure,
            "fetch": self._fetch(replica) if is_coming else None,
        }

    def _placement(self, replica: Replica) -> Placement | None:
        """Return where a replica's version belongs; None if it is not wanted now."""
        parts = self._node.parts(replica.model)
        return next((each.placement for each in parts if replica.version in each.versions), None)

    def _advert(self, replica: Replica) -> ReplicaAdvert | None:
        """Return what a replica's node says of it, or None if that is unknown."""
        key = replica_key(replica.model, replica.version)
        value = self._node.owners.get(replica.node, key)
        if value is None:
            return None
        try:
            return decode_replica(key, value)
        except MeshError:
            return None

    def _fetch(self, replica: Replica) -> dict[str, Any] | None:
        """Return how far a replica's node is with fetching its files, as it says; None if it is not."""
        value = self._node.owners.get(replica.node, LOAD_KEY)
        try:
            fetches = decode_load(value).fetches if value is not None else ()
        except MeshError:
            return None
        for each in fetches:
            if (each.model, each.version) == (replica.model, replica.version):
                return {
                    "received_bytes": each.received_bytes,
                    "total_bytes": each.total_bytes,
                    "bytes_s": each.bytes_s,
                }
        return None


def _replica_view(
    replica: Replica, advert: ReplicaAdvert | None, *, current: bool
) -> dict[str, Any]:
    manifest = replica.manifest
    shown = ShownReplica() if advert is None else advert.shown
    return {
        "node": replica.node_name,
        "node_id": replica.node,
        "version": replica.version,
        "state": str(replica.state),
        "reason": replica.reason,
        "current": current,
        "runtime": "" if manifest is None else manifest.runtime,
        "variant": "" if manifest is None else manifest.variant,
        "device": shown.device,
        "instances": shown.instances,
        "batching": shown.batching,
        "restarted": shown.restarted,
        "profile": [] if advert is None else [[*pair] for pair in advert.profile],
    }
