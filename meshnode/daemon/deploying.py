"""Changes what the mesh serves and what its store has: deploying, publishing, and taking a model out of service.

What has no version of its own, such as a bare file, is numbered here; what is said of a version is signed by
`meshnode.daemon.publications`. Only a node whose role allows it changes anything.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.daemon.named import node_named
from meshnode.daemon.offering import check_offer, no_longer_offered
from meshnode.daemon.rollouts import standing_of
from meshnode.deployments import environment_warnings
from meshnode.errors import InvalidRequest, ModelError
from meshnode.gateway.protocols.caller import OWNER
from meshnode.models.exposure import NO_CHANGE, ExposureChange
from meshnode.models.manifest import Manifest, check_model_name
from meshnode.models.provenance import NOTHING, Said
from meshnode.models.repository.scanning import FoundModel, scan
from meshnode.release_edits import Released, released, with_whole_release
from meshnode.state.deployment import (
    UNKNOWN_ORIGIN,
    Deployment,
    Origin,
    kept_variants,
    offered,
    with_variant,
)
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.driver import Driver
    from meshnode.daemon.forwarding import Forwarder
    from meshnode.daemon.model_views import ModelViews
    from meshnode.daemon.publications import Publications
    from meshnode.daemon.uploads import Uploads
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.node import Node
    from meshnode.state.release import Release
    from meshnode.state.scaling import Scaling

log = logging.getLogger(__name__)


class Deploying:
    """Deploys and publishes for one node."""

    def __init__(
        self,
        *,
        node: Node,
        driver: Driver,
        clock: Clock,
        artifacts: Artifacts,
        publications: Publications,
        uploads: Uploads,
        views: ModelViews,
        forwarder: Forwarder,
    ) -> None:
        """Change through these.

        Args:
            node: Its cores.
            driver: Writes what the mesh is asked for.
            clock: Says when.
            artifacts: Its files.
            publications: What was published.
            uploads: What callers send.
            views: How a deployed model is described.
            forwarder: Knows whether this node's role allows it to change the mesh.
        """
        self._node = node
        self._driver = driver
        self._clock = clock
        self._artifacts = artifacts
        self._publications = publications
        self._uploads = uploads
        self._views = views
        self._forwarder = forwarder

    def __repr__(self) -> str:
        return f"<Deploying at {self._node.me[:8]}>"

    def require_operator(self) -> None:
        """Let only nodes go on whose role allows them to change the mesh.

        Raises:
            Forbidden: if this one's does not; says what to do.
        """
        if self._forwarder.must_forward(Role.OPERATOR):
            raise self._forwarder.refusal(Role.OPERATOR)

    async def deploy(
        self,
        path: str,
        name: str | None,
        replicas: int | None,
        on: Sequence[str],
        variant: str = "",
        said: Said = NOTHING,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a model from a path on this machine; return its entry, before it is loaded.

        With a variant's name it becomes one more form of what is deployed under its name.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelError: if the path holds no model, several, or one that cannot be loaded.
            InvalidRequest: if a node is unknown or the number of replicas is out of range.
            ConfigError: if it could not be written to disk.
        """
        self.require_operator()
        pinned = self.pinned(replicas, on)
        model = await one_model(Path(path), name)
        return await self.deploy_found(
            model, replicas, pinned, OWNER, variant, said, offer, scaling, release
        )

    async def deploy_upload(
        self,
        upload: str,
        name: str | None,
        replicas: int | None,
        on: Sequence[str],
        caller: Caller,
        variant: str = "",
        said: Said = NOTHING,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a model that was uploaded; the upload is gone afterwards.

        Raises:
            NotFound: if the caller has no upload of this id.
            InvalidRequest: if it is not complete; else as `deploy`. The upload stays then.
        """
        self.require_operator()
        pinned = self.pinned(replicas, on)
        async with self._uploads.complete(upload, caller) as path:
            model = await one_model(path, name)
            return await self.deploy_found(
                model, replicas, pinned, caller, variant, said, offer, scaling, release
            )

    def deploy_published(
        self,
        name: str,
        version: int | None,
        replicas: int | None,
        on: Sequence[str],
        caller: Caller,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a version that was published, the newest if None; return its entry.

        Raises:
            ModelNotFound: if there is none.
            InvalidRequest: if a node is unknown or the number of replicas is out of range.
            ConfigError: if it could not be written to disk.
        """
        self.require_operator()
        pinned = self.pinned(replicas, on)
        manifests = self._publications.manifests(name, version)
        count = replicas if replicas is not None else max(1, len(pinned))
        found = self._released(name, manifests, release)
        made = Deployment(name, found.manifests, count, pinned, release=found.release)
        deployment = _scaled(with_rest_of(self._node.deployment(name), made), scaling)
        return self.write_deployment(deployment, caller, offer, found)

    async def deploy_found(
        self,
        model: FoundModel,
        replicas: int | None,
        pinned: tuple[NodeId, ...],
        caller: Caller,
        variant: str,
        said: Said,
        offer: ExposureChange,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a model that was found on this disk; arguments and errors as `deploy`."""
        public = check_model_name(model.name)
        manifests = await self._artifacts.publish(model)
        current = self._node.deployment(public)
        if variant:
            made = with_variant(current, public, manifests, variant, numbered=model.numbered)
            found = Released(self._signed(made.manifests, said), made.release)
            deployment = msgspec.structs.replace(made, manifests=found.manifests)
        else:
            count = replicas if replicas is not None else max(1, len(pinned))
            numbered = self.numbered(model, manifests)
            forms = self._signed((*numbered, *kept_variants(current, numbered)), said)
            found = self._released(public, forms, release)
            made = Deployment(public, found.manifests, count, pinned, release=found.release)
            deployment = with_rest_of(current, made)
        entry = self.write_deployment(_scaled(deployment, scaling), caller, offer, found)
        return {**entry, "warnings": [*model.warnings, *entry.get("warnings", ())]}

    def _signed(self, manifests: Sequence[Manifest], said: Said) -> tuple[Manifest, ...]:
        return self._publications.signed(self._publications.numbered(manifests, said), said)

    def _released(self, name: str, manifests: Sequence[Manifest], plan: Release | None) -> Released:
        """Return the versions to deploy, and how they take the place of what serves; who says so wants it now."""
        standing = standing_of(self._node.release_view(name))
        return released(plan, manifests, self._node.deployment(name), standing, again=True)

    async def publish(self, path: str, name: str | None, said: Said) -> dict[str, Any]:
        """Put a model from a path on this machine into the mesh's store; describe what was published.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelError: if the path holds no model, several, or one that cannot be loaded, or what is
                said of it is not within its limits; or if it is a variant of nothing.
            InvalidRequest: if something else was published under its name and number.
            ConfigError: if it could not be written to disk.
        """
        self.require_operator()
        return await self.publish_found(await one_model(Path(path), name), said, OWNER)

    async def publish_upload(
        self, upload: str, name: str | None, said: Said, caller: Caller
    ) -> dict[str, Any]:
        """Put a model that was uploaded into the mesh's store; the upload is gone afterwards.

        Raises:
            NotFound: if the caller has no upload of this id.
            InvalidRequest: if it is not complete; else as `publish`. The upload stays then.
        """
        self.require_operator()
        async with self._uploads.complete(upload, caller) as path:
            return await self.publish_found(await one_model(path, name), said, caller)

    async def publish_found(self, model: FoundModel, said: Said, caller: Caller) -> dict[str, Any]:
        """Publish a model that was found on this disk; arguments and errors as `publish`."""
        public = check_model_name(model.name)
        described = await self._artifacts.publish(model)
        if said.variant:
            manifests = self._publications.forms(public, described, said, numbered=model.numbered)
        else:
            manifests = self._publications.numbered(self.numbered(model, described), said)
        signed = self._publications.signed(manifests, said)
        versions = self._publications.write(signed, caller, replace=said.replace)
        return {"name": public, "versions": versions, "warnings": [*model.warnings]}

    def undeploy(self, name: str, caller: Caller) -> None:
        """Take a model out of service everywhere.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if nothing is deployed under the name.
            UsageError: if it is served from a node's own folder.
            ConfigError: if it could not be written to disk.
        """
        self.require_operator()
        by = str(caller) if caller.key_id or caller.via else ""
        self._driver.write(self._node.drafts.undeployment(name, self._clock.wall_s(), by))
        log.info("model %s was taken out of service by %s", name, caller)

    def write_deployment(
        self,
        deployment: Deployment,
        caller: Caller,
        offer: ExposureChange,
        released: Released | None = None,
    ) -> dict[str, Any]:
        """Write a deployment if it is another than before; return the model's entry, and what it is offered as no longer.

        Args:
            deployment: What to serve; a release of versions that it does not have any more is over.
            caller: Who asks.
            offer: What it is offered as.
            released: What came of the release that was asked for.

        Raises:
            ModelError: if what it offers is not within limits.
            ConfigError: if it could not be written to disk.
        """
        deployment = offered(with_whole_release(deployment), offer)
        check_offer(deployment, self._node)
        before = self._node.deployment(deployment.name)
        if before != deployment or (released is not None and released.is_again):
            by = str(caller) if caller.key_id or caller.via else ""
            deployment = msgspec.structs.replace(deployment, origin=Origin(by=by))
            self._driver.write(self._node.drafts.deployment(deployment, self._clock.wall_s()))
            log.info("model %s was deployed by %s", deployment.name, caller)
        entry = self._views.model(deployment.name)
        notes = () if released is None else released.notes
        warnings = [
            *notes,
            *no_longer_offered(before, deployment),
            *environment_warnings(deployment),
        ]
        return {**entry, "warnings": warnings} if warnings else entry

    def pinned(self, replicas: int | None, on: Sequence[str]) -> tuple[NodeId, ...]:
        """Return the nodes of these names or ids, each once.

        Raises:
            InvalidRequest: if one is unknown, or so many replicas do not fit on them.
        """
        pinned = tuple(
            dict.fromkeys(node_named(self._node.membership.members, each) for each in on)
        )
        if pinned and replicas is not None and replicas > len(pinned):
            raise InvalidRequest(
                f"{replicas} replicas do not fit on {len(pinned)} node(s); name more with --on"
            )
        return pinned

    def numbered(self, model: FoundModel, manifests: list[Manifest]) -> tuple[Manifest, ...]:
        """Give what has no version of its own, such as a bare file, the next number if it has changed.

        What is still on its way out counts too: two files never share a name and number.
        """
        if model.numbered:
            return tuple(manifests)
        (manifest,) = manifests
        digests: dict[int, set[str]] = {}
        current = self._node.deployment(model.name)
        formers = current.manifests if current else ()
        stored = self._publications.all(model.name)
        variants = {former.digest for former in (*formers, *stored) if former.variant}
        for former in formers:
            digests.setdefault(former.version, set()).add(former.digest)
        for published in stored:
            digests.setdefault(published.version, set()).add(published.digest)
        table = self._node.router.table
        for version in table.models().get(model.name, ()):
            found = {self._views.digest(replica) for replica in table.replicas(model.name, version)}
            digests.setdefault(version, set()).update(found)
        same = [
            version for version, found in digests.items() if found - variants == {manifest.digest}
        ]
        number = max(same, default=max(digests, default=0) + 1)
        return (msgspec.structs.replace(manifest, version=number),)


def with_rest_of(current: Deployment | None, made: Deployment) -> Deployment:
    """Return a deployment with what its command does not say as it was; deploying what is paused resumes it.

    Args:
        current: What is deployed under its name now.
        made: What the command says: versions, replicas and nodes, and how the versions are released.
    """
    if current is None:
        return made
    return msgspec.structs.replace(
        current,
        manifests=made.manifests,
        replicas=made.replicas,
        on=made.on,
        enabled=True,
        origin=UNKNOWN_ORIGIN,
        release=made.release,
    )


def _scaled(deployment: Deployment, scaling: Scaling | None) -> Deployment:
    """Return a deployment with autoscaling, if any is given; else with what it has."""
    return deployment if scaling is None else msgspec.structs.replace(deployment, scaling=scaling)


async def one_model(path: Path, name: str | None) -> FoundModel:
    """Return the model at a path, under a name if one is given.

    Raises:
        ModelError: if there is none, or several, or it cannot be loaded.
    """
    found = await asyncio.to_thread(scan, path)
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise ModelError(
            f"{path} holds several models ({names}); deploy one of its folders, or serve them all "
            "from one node with: meshnode join --models"
        )
    model = found[0] if name is None else dataclasses.replace(found[0], name=name)
    if model.error:
        raise ModelError(model.error)
    return model
