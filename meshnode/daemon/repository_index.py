"""The mesh's models as a repository's index lists them: each version, with Triton's word for how it fares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.gateway.repository_api import IndexEntry
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.publications import Publications
    from meshnode.node import Node

UNLOADED: Final = "unloaded"
"""Why a version of the store is not served: nobody asks for it. Triton's word."""

_COMING: Final = (ReplicaState.FETCHING, ReplicaState.LOADING)


class RepositoryIndex:
    """Lists what is served, deployed, published, or held back in this node's own folder."""

    def __init__(
        self,
        node: Node,
        artifacts: Artifacts,
        publications: Publications,
        name_of: Callable[[NodeId], str],
    ) -> None:
        """List what these know; `name_of` returns a node's name."""
        self._node = node
        self._artifacts = artifacts
        self._publications = publications
        self._name_of = name_of

    def __repr__(self) -> str:
        return f"<RepositoryIndex of {self._node.me[:8]}>"

    def entries(self, *, only_ready: bool) -> list[IndexEntry]:
        """Describe every version that is served, deployed or published, by name and version."""
        table = self._node.router.table
        known = {(name, each) for name, versions in table.models().items() for each in versions}
        deployed = {
            (each.name, version) for each in self._node.deployments() for version in each.versions
        }
        stored = {(each["name"], each["version"]) for each in self._publications.view()}
        held = set(self._artifacts.own.held)
        entries = [
            self._entry(name, version, is_deployed=(name, version) in deployed)
            for name, version in sorted(known | deployed | stored | held)
        ]
        return [each for each in entries if each.state == "READY" or not only_ready]

    def _entry(self, name: str, version: int, *, is_deployed: bool) -> IndexEntry:
        table = self._node.router.table
        group = table.group(name, version)
        if group is not None and group.ready:
            return IndexEntry(name, version, "READY")
        replicas = table.replicas(name, version)
        states = {replica.state for replica in replicas}
        if any(state in states for state in _COMING):
            return IndexEntry(name, version, "LOADING")
        failed = next((each for each in replicas if each.state is ReplicaState.FAILED), None)
        if failed is not None:
            reason = failed.reason or "loading failed"
            return IndexEntry(name, version, "UNAVAILABLE", f"{failed.node_name}: {reason}")
        if ReplicaState.PAUSED in states:
            return IndexEntry(name, version, "UNAVAILABLE", "its nodes are paused")
        if not is_deployed:
            if ReplicaState.UNLOADING in states:
                return IndexEntry(name, version, "UNLOADING")
            return IndexEntry(name, version, "UNAVAILABLE", UNLOADED)
        deployment = self._node.deployment(name)
        assert deployment is not None
        placement = self._node.placement(deployment)
        if placement.nodes:
            return IndexEntry(name, version, "LOADING")
        reasons = "; ".join(
            f"{self._name_of(node)}: {why}" for node, why in placement.ineligible[:8]
        )
        return IndexEntry(name, version, "UNAVAILABLE", f"no node can serve it ({reasons})")
