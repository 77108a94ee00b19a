"""The versions of a model that can be loaded, and how what is deployed is kept in the store before it goes.

Nothing is replaced that is not in the store first. A version that was loaded with a configuration or files of a
client only stands in for that of the store, and is not kept.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest, MeshError, ModelError, ModelNotFound
from meshnode.models.provenance import NOTHING, Said

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.publications import Publications
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.models.manifest import Manifest
    from meshnode.node import Node
    from meshnode.state.deployment import Deployment
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

OVERRIDDEN: Final = Said(note="loaded with a configuration or files that a client sent")
"""What is said of a version that stands in for that of the store until the next plain load."""


class StoredVersions:
    """What the store has, and what is deployed but not in it."""

    def __init__(
        self,
        node: Node,
        artifacts: Artifacts,
        publications: Publications,
        name_of: Callable[[NodeId], str],
    ) -> None:
        """Look at what these know, and keep versions in them; `name_of` returns a node's name."""
        self._node = node
        self._artifacts = artifacts
        self._publications = publications
        self._name_of = name_of

    def __repr__(self) -> str:
        return f"<StoredVersions at {self._node.me[:8]}>"

    def stored(self, name: str, version: int) -> tuple[Manifest, ...]:
        """Return a version of the store with its variants.

        Raises:
            ModelNotFound: if there is none, in the words of who asks for a version, published or not.
            InvalidRequest: if it is of another node's folder.
        """
        stored = {each.version for each in self._publications.all(name)}
        if version in stored:
            return self._publications.manifests(name, version)
        served = set(self._node.router.table.versions(name))
        if version in served:
            self.refuse_own(name)
        deployment = self._node.deployment(name)
        deployed = () if deployment is None else deployment.versions
        known = ", ".join(map(str, sorted({*stored, *served, *deployed} - {version})))
        if not known:
            raise ModelNotFound(f"the store of this mesh has no model {name!r}")
        raise ModelNotFound(
            f"model {name!r} has no version {version} in the store; there is {known}"
        )

    def known(self, name: str, version: int | None) -> Manifest:
        """Return a version without variants that is deployed or published, the newest if None."""
        current = self._node.deployment(name)
        found = [*(current.manifests if current is not None else ()), *self._publications.all(name)]
        fitting = [
            each for each in found if not each.variant and version in (None, each.version)
        ]  # fmt: skip
        if not fitting:
            self.refuse_own(name)
            if name in self._node.router.table.models():
                raise InvalidRequest(
                    f"{name!r} is served from this node's own model folder (--models), with the config.pbtxt there: "
                    "change that one, or deploy the model (meshnode deploy PATH) to load it with others"
                )
            raise ModelNotFound(
                f"nothing was deployed or published under the name {name!r}, so there are no files to load "
                "with this configuration; send them along as 'file:VERSION/NAME'"
            )
        return max(fitting, key=lambda each: each.version)

    def refuse_own(self, name: str) -> None:
        """Refuse what is served from another node's folder.

        Raises:
            InvalidRequest: if it is.
        """
        table = self._node.router.table
        nodes = {
            replica.node for number in table.versions(name) for replica in table.replicas(name, number)
        }  # fmt: skip
        nodes.discard(self._node.me)
        if nodes and self._node.deployment(name) is None:
            names = ", ".join(sorted(map(self._name_of, nodes)))
            raise InvalidRequest(
                f"{name!r} is served from the own model folder of {names} (--models): ask the gateway there"
            )

    def is_overridden(self, deployment: Deployment, version: int) -> bool:
        """Whether what is deployed as a version only stands in for what the store has."""
        return any(
            each.version == version for each in self._publications.all(deployment.name)
        ) and any(each.version == version and _stands_in(each) for each in deployment.manifests)

    async def keep_or_refuse(self, deployment: Deployment, caller: Caller) -> None:
        """Put what is deployed into the store before something else takes its place.

        Raises:
            ModelError: if that cannot be; then nothing may take its place.
        """
        try:
            await self._store(deployment, caller)
        except MeshError as error:
            raise ModelError(
                f"what is deployed of {deployment.name!r} cannot be kept in the store, so nothing took its place: {error}"
            ) from error

    async def keep(self, deployment: Deployment, caller: Caller) -> None:
        """Put what is deployed into the store, so that it can be loaded again by its name."""
        try:
            await self._store(deployment, caller)
        except MeshError as error:
            log.warning(
                "%s is unloaded, but not kept in the store (%s); deploy it from its source again",
                *(deployment.name, error),
            )

    async def _store(self, deployment: Deployment, caller: Caller) -> None:
        stored = self._publications.all(deployment.name)
        digests = {each.digest for each in stored}
        numbers = {each.version for each in stored}
        missing = [
            each
            for each in deployment.manifests
            if each.digest not in digests and not (_stands_in(each) and each.version in numbers)
        ]
        for manifest in missing:
            await self._artifacts.obtain(manifest)
        if missing:
            signed = self._publications.signed(missing, NOTHING)
            self._publications.write(signed, caller)


def _stands_in(manifest: Manifest) -> bool:
    """Whether a version was loaded with a configuration or files that a client sent."""
    return manifest.provenance is not None and manifest.provenance.note == OVERRIDDEN.note
