"""The mesh's models as a repository: what loading and unloading by Triton's and TorchServe's clients mean here.

| | |
|---|---|
| load | deploy the newest version of the store, on as many nodes as now or one; what is deployed already and no older stays |
| load with a configuration | deploy the same files with it, until the next load without |
| load with files | deploy these, likewise |
| register | put a version into the store, and deploy it beside those that are deployed |
| unload | keep what is deployed in the store, and withdraw the deployment |

A model of this node's own folder (`--models`) is unloaded and loaded on this node alone; one of another node's
folder is that node's, and is refused here. Nothing is replaced that is not in the store first. A load returns once a replica is ready, or with what went wrong.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from meshnode.daemon.deploying import with_rest_of
from meshnode.daemon.model_download import ANYWHERE, downloaded
from meshnode.daemon.replica_waits import ReplicaWaits
from meshnode.daemon.repository_files import archive_version, config_text, laid_out, written
from meshnode.daemon.repository_index import RepositoryIndex
from meshnode.daemon.stored_versions import OVERRIDDEN, StoredVersions
from meshnode.errors import InvalidRequest, ModelError, ModelNotFound
from meshnode.gateway.repository_api import IndexEntry, Load, Register
from meshnode.limits import MAX_DEPLOYMENT_REPLICAS
from meshnode.models.exposure import NO_CHANGE, ExposureChange
from meshnode.models.provenance import NOTHING, Said
from meshnode.models.repository.scanning import scan
from meshnode.net.outbound import PUBLIC, OutboundRule
from meshnode.state.deployment import Deployment
from meshnode.types import NodeId, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.deploying import Deploying
    from meshnode.daemon.model_views import ModelViews
    from meshnode.daemon.publications import Publications
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.models.manifest import Manifest
    from meshnode.node import Node


class Repository:
    """Carries out what clients ask of the repository."""

    def __init__(
        self,
        node: Node,
        artifacts: Artifacts,
        publications: Publications,
        views: ModelViews,
        deploying: Deploying,
        name_of: Callable[[NodeId], str],
        now: Callable[[], float],
        outbound: OutboundRule = PUBLIC,
    ) -> None:
        """Work for a node.

        Args:
            node: Its cores.
            artifacts: Its files, and its own folder's models.
            publications: What was published.
            views: How replicas fare.
            deploying: Makes the changes.
            name_of: A node's name.
            now: Monotonic seconds.
            outbound: Where URLs that callers name may lead; those of the node's owner may lead anywhere.
        """
        self._index = RepositoryIndex(node, artifacts, publications, name_of)
        self._versions = StoredVersions(node, artifacts, publications, name_of)
        self._waits = ReplicaWaits(node, views, now)
        self._node = node
        self._artifacts = artifacts
        self._publications = publications
        self._deploying = deploying
        self._outbound = outbound

    def __repr__(self) -> str:
        return f"<Repository of {self._node.me[:8]}>"

    def index(self, *, only_ready: bool) -> list[IndexEntry]:
        """Describe every version that is served, deployed or published, by name and version."""
        return self._index.entries(only_ready=only_ready)

    async def load(self, name: str, wish: Load, caller: Caller) -> int:
        """Serve a model; see `RepositoryControl.load`.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if nothing is known under the name.
            ModelError: if it cannot be loaded, with the reason of a node that tried.
            InvalidRequest: if it is of another node's folder, or a configuration or file name is none.
            DeadlineExceeded: if it takes longer than `LOAD_WAIT_S`; it goes on loading.
        """
        self._deploying.require_operator()
        if wish.files:
            version = await self._load_files(name, wish, caller)
        elif wish.config is not None:
            version = await self._load_configured(name, wish, caller)
        else:
            version = await self._load_stored(name, wish, caller)
        if wish.wait:
            await self._waits.ready(name, version)
        return version

    async def unload(self, name: str, caller: Caller, *, dependents: bool = False) -> None:
        """Serve a model no more; see `RepositoryControl.unload`.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if nothing is known under the name.
            InvalidRequest: if it is of another node's folder.
            ConfigError: if it could not be written to disk.
        """
        self._deploying.require_operator()
        deployment = self._node.deployment(name)
        if deployment is None:
            await self._unload_own(name)
            return
        await self._versions.keep(deployment, caller)
        self._deploying.undeploy(name, caller)
        await self._waits.gone(name)
        if dependents:
            steps = {step.model for each in deployment.manifests for step in each.execution.steps}
            for part in sorted(steps):
                if self._node.deployment(part) is not None and not self._is_step(part):
                    await self.unload(part, caller, dependents=True)

    async def remove(self, name: str, version: int | None, caller: Caller) -> None:
        """Take a model, or one version of it, out of service; one that is not served, out of the store.

        Raises:
            ModelNotFound: if nothing is known under the name, or it has no such version.
        """
        self._deploying.require_operator()
        deployment = self._node.deployment(name)
        if deployment is None:
            stored = {each.version for each in self._publications.all(name)}
            if not stored:
                await self._unload_own(name)
                return
            for number in sorted(stored) if version is None else (version,):
                self._publications.withdraw(name, number, caller)
            return
        if version is not None and version not in deployment.versions:
            if version in {each.version for each in self._publications.all(name)}:
                self._publications.withdraw(name, version, caller)
                return
            known = ", ".join(map(str, deployment.versions))
            raise ModelNotFound(f"model {name!r} has no version {version}; there is {known}")
        left = tuple(each for each in deployment.manifests if version not in (None, each.version))
        if left:
            wanted = msgspec.structs.replace(deployment, manifests=left)
            self._deploying.write_deployment(wanted, caller, NO_CHANGE)
            return
        self._deploying.undeploy(name, caller)
        await self._waits.gone(name)

    async def register(self, wish: Register, caller: Caller) -> tuple[str, int]:
        """Bring a model in and serve it; see `RepositoryControl.register`.

        Raises:
            Forbidden: if this node's role does not allow it, or the URL leads to where callers may not send it.
            InvalidRequest: if the URL is none that models come from.
            ModelNotFound: if nothing was published under the name.
            ModelError: if what is there is no model.
            TransferFailed: if it cannot be fetched.
        """
        self._deploying.require_operator()
        if "://" not in wish.url:
            return await self._register_here(wish, caller)
        scratch = await asyncio.to_thread(self._artifacts.scratch)
        try:
            rule = ANYWHERE if caller.scope is Scope.OWNER else self._outbound
            path = await downloaded(wish.url, rule, scratch)
            return await self._register_found(path, wish, caller)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def scale(self, name: str, version: int | None, replicas: int, caller: Caller) -> None:
        """Serve a model on so many nodes, a version of the store beside those deployed; 0 unloads it, or the version.

        Raises:
            ModelNotFound: if nothing is known under the name, or it has no such version.
            InvalidRequest: if it is of a node's own folder, or the number is out of range.
        """
        self._deploying.require_operator()
        if not 0 <= replicas <= MAX_DEPLOYMENT_REPLICAS:
            raise InvalidRequest(f"a model has 0 to {MAX_DEPLOYMENT_REPLICAS} replicas")
        deployment = self._node.deployment(name)
        deployed = () if deployment is None else tuple(deployment.versions)
        if version is not None and version not in deployed:
            self._versions.stored(name, version)
            if replicas:
                self._add(name, version, replicas, caller)
            return
        if replicas == 0:
            await self._scale_to_none(name, version, caller)
            return
        if deployment is None:
            await self.load(name, Load(replicas=replicas, wait=False), caller)
            return
        pinned = deployment.on if len(deployment.on) >= replicas else ()
        wanted = msgspec.structs.replace(deployment, replicas=replicas, on=pinned)
        self._deploying.write_deployment(wanted, caller, NO_CHANGE)

    async def make_default(self, name: str, version: int, caller: Caller) -> None:
        """Let a version answer who names none.

        The newest that is ready does; so an older one becomes it where it alone is deployed.

        Raises:
            ModelNotFound: if it is neither deployed nor in the store.
        """
        self._deploying.require_operator()
        deployment = self._node.deployment(name)
        if deployment is not None and version == max(deployment.versions):
            return
        if deployment is not None and version in deployment.versions:
            await self._versions.keep_or_refuse(deployment, caller)
            forms = tuple(each for each in deployment.manifests if each.version == version)
            wanted = msgspec.structs.replace(deployment, manifests=forms)
            self._deploying.write_deployment(wanted, caller, NO_CHANGE)
        else:
            await self.load(name, Load(version=version), caller)
        await self._waits.gone(name, but=version)

    async def ready(self, name: str, version: int | None, replicas: int = 1) -> None:
        """Wait for so many replicas of a version, the newest that is deployed if None; see `RepositoryControl.ready`.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
            NoReplica: if there are not as many nodes that can serve it; else as `load`.
        """
        deployment = self._node.deployment(name)
        if deployment is None:
            raise ModelNotFound(f"nothing is deployed under the name {name!r}")
        await self._waits.ready(name, version or max(deployment.versions), replicas)

    # Registering

    async def _register_here(self, wish: Register, caller: Caller) -> tuple[str, int]:
        """Register a model of the store by its name, or, for the node's owner, of a path of this machine."""
        name = wish.url.removesuffix(".mar")
        if not self._publications.all(name) and self._node.deployment(name) is None:
            if caller.scope is Scope.OWNER and Path(wish.url).is_absolute():
                return await self._register_found(Path(wish.url), wish, caller)
            raise ModelNotFound(
                f"nothing was published under the name {name[:80]!r}; publish it with: meshnode publish PATH, or "
                "register it from an http:// or https:// URL"
            )
        if wish.name not in (None, name):
            raise InvalidRequest(
                f"{name!r} keeps the name under which it was published; leave model_name out"
            )
        if not wish.replicas:
            return name, self._versions.known(name, None).version
        load = Load(replicas=wish.replicas, wait=False)
        return name, await self.load(name, load, caller)

    async def _register_found(self, path: Path, wish: Register, caller: Caller) -> tuple[str, int]:
        found = await asyncio.to_thread(scan, path, wish.name)
        if len(found) != 1:
            raise ModelError(f"{path.name} holds several models; register one at a time")
        (model,) = found
        if model.error:
            raise ModelError(model.error)
        number = await asyncio.to_thread(archive_version, path)
        said = NOTHING if number is None or model.numbered else Said(version=number)
        kept = await self._deploying.publish_found(model, said, caller)
        version = max(int(each["version"]) for each in kept["versions"])
        if wish.replicas:
            self._add(model.name, version, wish.replicas, caller)
        return model.name, version

    def _add(self, name: str, version: int, replicas: int, caller: Caller) -> None:
        """Deploy a version of the store beside those that are deployed.

        Raises:
            InvalidRequest: if other files are deployed under its number.
        """
        manifests = self._versions.stored(name, version)
        current = self._node.deployment(name)
        others: tuple[Manifest, ...] = ()
        pinned: tuple[NodeId, ...] = ()
        count = replicas
        if current is not None:
            digests = {each.digest for each in manifests}
            if any(
                each.version == version and each.digest not in digests for each in current.manifests
            ):
                raise InvalidRequest(
                    f"version {version} of {name!r} is deployed with other files; unregister it first, or give this "
                    "one another number"
                )
            others = tuple(each for each in current.manifests if each.version != version)
            count = max(replicas, current.replicas)
            pinned = current.on if len(current.on) >= count else ()
        made = Deployment(name, (*others, *manifests), count, pinned)
        deployment = with_rest_of(current, made)
        self._deploying.write_deployment(deployment, caller, _offer_of(current))

    # Loading

    async def _load_stored(self, name: str, wish: Load, caller: Caller) -> int:
        current = self._node.deployment(name)
        deployed = max(current.versions) if current is not None else 0
        stored = max((each.version for each in self._publications.all(name)), default=0)
        version = wish.version or max(deployed, stored)
        if not version:
            return await self._load_own(name)
        if (
            current is not None
            and version in current.versions
            and not self._versions.is_overridden(current, version)
        ):
            if wish.replicas not in (None, current.replicas):
                await self.scale(name, None, wish.replicas or 1, caller)
            return version
        manifests = self._versions.stored(name, version)
        if current is not None:
            await self._versions.keep_or_refuse(current, caller)
        replicas = wish.replicas or (current.replicas if current is not None else 1)
        pinned = current.on if current is not None and len(current.on) >= replicas else ()
        deployment = with_rest_of(current, Deployment(name, manifests, replicas, pinned))
        self._deploying.write_deployment(deployment, caller, _offer_of(current))
        return version

    async def _load_files(self, name: str, wish: Load, caller: Caller) -> int:
        text = await asyncio.to_thread(config_text, name, wish.config or "{}")
        scratch = await asyncio.to_thread(self._artifacts.scratch)
        try:
            folder = await asyncio.to_thread(written, scratch, name, text, wish.files)
            return await self._load_folder(folder, wish, caller)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _load_configured(self, name: str, wish: Load, caller: Caller) -> int:
        text = await asyncio.to_thread(config_text, name, wish.config or "{}")
        manifest = self._versions.known(name, wish.version)
        files = await self._artifacts.obtain(manifest)
        scratch = await asyncio.to_thread(self._artifacts.scratch)
        try:
            folder = await asyncio.to_thread(laid_out, scratch, manifest, files, text)
            return await self._load_folder(folder, wish, caller)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _load_folder(self, folder: Path, wish: Load, caller: Caller) -> int:
        (model,) = await asyncio.to_thread(scan, folder)
        if model.error:
            raise ModelError(f"failed to load {model.name!r}: {model.error}")
        current = self._node.deployment(model.name)
        if current is not None:
            await self._versions.keep_or_refuse(current, caller)
        count = wish.replicas or (current.replicas if current is not None else 1)
        pinned = current.on if current is not None and len(current.on) >= count else ()
        offer = _offer_of(current)
        await self._deploying.deploy_found(model, count, pinned, caller, "", OVERRIDDEN, offer)
        deployed = self._node.deployment(model.name)
        return max(deployed.versions) if deployed is not None else model.versions[-1].version

    # Unloading

    async def _scale_to_none(self, name: str, version: int | None, caller: Caller) -> None:
        """Unload a model, or one version of several."""
        deployment = self._node.deployment(name)
        if version is None or deployment is None or len(deployment.versions) == 1:
            await self.unload(name, caller)
            return
        await self._versions.keep_or_refuse(deployment, caller)
        left = tuple(each for each in deployment.manifests if each.version != version)
        wanted = msgspec.structs.replace(deployment, manifests=left)
        self._deploying.write_deployment(wanted, caller, NO_CHANGE)

    def _is_step(self, name: str) -> bool:
        """Whether an ensemble that is deployed needs a model."""
        return any(
            step.model == name
            for deployment in self._node.deployments()
            for manifest in deployment.manifests
            for step in manifest.execution.steps
        )

    # This node's own folder

    async def _load_own(self, name: str) -> int:
        version = await self._artifacts.own.release(name)
        if version is None:
            self._versions.refuse_own(name)
            raise ModelNotFound(
                f"failed to load {name!r}: nothing was deployed or published under that name in this mesh"
            )
        return version

    async def _unload_own(self, name: str) -> None:
        if await self._artifacts.own.hold(name):
            return
        self._versions.refuse_own(name)
        if not self._publications.all(name):
            raise ModelNotFound(f"no node of this mesh has a model {name!r}")


def _offer_of(deployment: Deployment | None) -> ExposureChange:
    """Return how a deployment offers its newest version, for another one in its place."""
    if deployment is None:
        return NO_CHANGE
    exposure = max(deployment.manifests, key=lambda each: each.version).exposure
    return ExposureChange(exposure.path, exposure.tasks, exposure.cache)
