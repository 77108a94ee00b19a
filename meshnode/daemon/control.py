"""What the gateway and the control socket ask of the daemon: views of the mesh, and changes to it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode import __version__, capabilities
from meshnode.advertisement import LOAD_KEY, decode_load, decode_replica, replica_key
from meshnode.daemon.api_keys import ApiKeys
from meshnode.daemon.named import name_of, node_named
from meshnode.daemon.round_trips import RoundTrips
from meshnode.daemon.trust import Trust
from meshnode.errors import (
    InvalidRequest,
    MeshError,
    ModelError,
    ModelNotFound,
    NoReplica,
)
from meshnode.gateway.protocols.caller import OWNER
from meshnode.models.manifest import Manifest, check_model_name
from meshnode.models.repository import FoundModel, scan
from meshnode.state.deployment import Deployment
from meshnode.types import Address, NodeId, ReplicaState, Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.about import About
    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.doctor import Doctor
    from meshnode.daemon.driver import Driver
    from meshnode.daemon.forwarding import Forwarder
    from meshnode.daemon.pairing import JoinDesk
    from meshnode.daemon.uploads import Uploads
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.membership.member import Member
    from meshnode.metrics import Metric
    from meshnode.node import Node
    from meshnode.routing.table import Replica
    from meshnode.state.api_keys import ApiKey
    from meshnode.types import Buffer


log = logging.getLogger(__name__)


class Control:
    """One daemon, as its owner and its gateway see it.

    Attributes:
        trust: Who belongs to the mesh.
        join_desk: The devices that ask this node to be admitted.
        http: URL of the HTTP gateway as others reach it, or None without one.
        mesh_address: Where the mesh listens here, with the port that was bound.
        leaving: Whether the node is on its way out.
        on_shutdown: Called when the owner wants the daemon to end; with whether to forget the mesh.
    """

    def __init__(
        self,
        *,
        node: Node,
        driver: Driver,
        credentials: Credentials,
        artifacts: Artifacts,
        clock: Clock,
        mesh_address: Address,
        about: About,
        uploads: Uploads,
        forwarder: Forwarder,
        doctor: Doctor,
        join_desk: JoinDesk,
        metrics: Callable[[], Iterable[Metric]],
    ) -> None:
        """See through these."""
        self.trust = Trust(node, driver, credentials, clock)
        self.join_desk = join_desk
        self._node = node
        self._round_trips = RoundTrips(node)
        self._driver = driver
        self._credentials = credentials
        self._artifacts = artifacts
        self._clock = clock
        self._about = about
        self._uploads = uploads
        self._forwarder = forwarder
        self._doctor = doctor
        self._api_keys = ApiKeys(
            node, driver, clock, self._require_operator, credentials.random_bytes
        )
        self._metrics = metrics
        self.mesh_address = mesh_address
        self.http: str | None = None
        self.leaving = False
        self.on_shutdown: Callable[[bool], None] = lambda _: None

    # Views

    def status(self) -> dict[str, Any]:
        """Describe this node."""
        record = self._node.membership.members[self._node.me].record
        return {
            "id": self._node.me,
            "name": record.name,
            "region": record.region,
            "mesh": self._credentials.mesh_id,
            "role": str(self._credentials.member.role),
            "http": self.http,
            "mesh_address": str(self.mesh_address),
            "state": self._state(),
            "paused": self.paused or None,
            "twin": self._driver.twin_of_mine or None,
            "version": __version__,
            "members": sum(member.live for member in self._node.membership.members.values()),
            "serving": sum(each.state is ReplicaState.READY for each in self._node.own.values()),
            **self._about.view(self._clock.now()),
        }

    @property
    def paused(self) -> str:
        """Why the node serves nothing at the moment, as a sentence; empty if it does."""
        return self._node.paused

    def _state(self) -> str:
        if self.leaving:
            return "leaving"
        return "paused" if self.paused else "running"

    def nodes(self) -> list[dict[str, Any]]:
        """Describe every member that is known, this node first, then by name."""
        members = sorted(
            self._node.membership.members.values(),
            key=lambda member: (member.node_id != self._node.me, member.record.name),
        )
        return [self._node_view(member) for member in members]

    def rtt(self, one: str, other: str) -> dict[str, Any]:
        """Describe the round trip between two nodes, each by its name or id."""
        return self._round_trips.view(one, other)

    def models(self) -> list[dict[str, Any]]:
        """Describe every model that is served or deployed, by name."""
        names = set(self._node.router.table.models())
        names.update(deployment.name for deployment in self._node.deployments())
        return [self._model_view(name) for name in sorted(names)]

    def model(self, name: str) -> dict[str, Any]:
        """Describe one model.

        Raises:
            ModelNotFound: if the mesh neither serves nor deploys it.
        """
        known = name in self._node.router.table.models()
        if not known and self._node.deployment(name) is None:
            raise ModelNotFound(f"no node of this mesh has a model {name!r}")
        return self._model_view(name)

    def ready(self) -> tuple[bool, str]:
        """Say whether the node is in its mesh and answers, and if not, why."""
        if self.leaving:
            return False, "this node is leaving the mesh"
        return True, ""

    async def examine(self, peer: str) -> dict[str, Any]:
        """Try what lies between this node and another, or this node alone; see `Doctor.examine`."""
        return await self._doctor.examine(peer)

    def manifest(self, model: str, version: int | None) -> Manifest:
        """Return what a model version is, ready or not; the newest if None.

        Raises:
            ModelNotFound: if the mesh does not know the model or the version.
        """
        table = self._node.router.table
        versions = table.models().get(model)
        if versions is None:
            raise ModelNotFound(f"no node of this mesh has a model {model!r}")
        manifest = table.manifest(model, versions[-1] if version is None else version)
        if manifest is None:
            known = ", ".join(str(number) for number in versions)
            raise ModelNotFound(f"model {model!r} has no version {version}; there is {known}")
        return manifest

    def is_model_ready(self, model: str, version: int | None) -> bool:
        """Whether some node serves the model (in this version) now.

        Raises:
            ModelNotFound: if the mesh does not know the model or the version.
        """
        try:
            self._node.router.resolve(model, version)
        except NoReplica:
            return False
        return True

    def metrics(self) -> Iterable[Metric]:
        """Return what is measured."""
        return self._metrics()

    # Changes

    def forward(
        self, needed: Role, http: HttpRequest, request_id: str, upload: str | None = None
    ) -> Awaitable[HttpResponse] | None:
        """Have another node answer that has the needed role; None if this node has it.

        See `Forwarder.forward` for what the answer may raise.
        """
        if not self._forwarder.must_forward(needed):
            return None
        return self._forwarder.forward(needed, http, request_id, upload)

    async def deploy(
        self, path: str, name: str | None, replicas: int | None, on: Sequence[str]
    ) -> dict[str, Any]:
        """Deploy a model from a path on this machine; return its entry, before it is loaded.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelError: if the path holds no model, several, or one that cannot be loaded.
            InvalidRequest: if a node is unknown or the number of replicas is out of range.
            ConfigError: if it could not be written to disk.
        """
        self._require_operator()
        pinned = self._pinned(replicas, on)
        return await self._deploy(await _one_model(Path(path), name), replicas, pinned, OWNER)

    async def deploy_upload(
        self, upload: str, name: str | None, replicas: int | None, on: Sequence[str], caller: Caller
    ) -> dict[str, Any]:
        """Deploy a model that was uploaded; the upload is gone afterwards.

        Raises:
            NotFound: if the caller has no upload of this id.
            InvalidRequest: if it is not complete; else as `deploy`. The upload stays then.
        """
        self._require_operator()
        pinned = self._pinned(replicas, on)
        async with self._uploads.complete(upload, caller) as path:
            return await self._deploy(await _one_model(path, name), replicas, pinned, caller)

    async def undeploy(self, name: str, caller: Caller) -> None:
        """Take a model out of service everywhere.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if nothing is deployed under the name.
            UsageError: if it is served from a node's own folder.
            ConfigError: if it could not be written to disk.
        """
        self._require_operator()
        self._driver.write(self._node.drafts.undeployment(name, self._clock.wall_s()))
        log.info("model %s was taken out of service by %s", name, caller)

    # API keys and uploads

    def api_key(self, key_id: str) -> ApiKey | None:
        """Return the API key of an id, whatever its state, or None."""
        return self._api_keys.get(key_id)

    def keys(self) -> list[dict[str, Any]]:
        """Describe all API keys, without their secrets."""
        return self._api_keys.all()

    def create_key(
        self, name: str, scopes: Sequence[str], ttl_s: int | None, caller: Caller
    ) -> dict[str, Any]:
        """Make an API key; see `ApiKeys.create`."""
        return self._api_keys.create(name, scopes, ttl_s, caller)

    def revoke_key(self, key: str, caller: Caller) -> dict[str, Any]:
        """Revoke an API key; see `ApiKeys.revoke`."""
        return self._api_keys.revoke(key, caller)

    def uploads(self) -> list[dict[str, Any]]:
        """Describe all uploads to this node."""
        return self._uploads.all()

    async def begin_upload(
        self, files: Sequence[tuple[str, int]], caller: Caller
    ) -> dict[str, Any]:
        """Make room for a model's files; see `Uploads.begin`.

        Raises:
            Forbidden: if this node's role does not allow it to deploy.
        """
        self._require_operator()
        return await self._uploads.begin(files, caller)

    def upload(self, upload: str, caller: Caller) -> dict[str, Any]:
        """Describe an upload; see `Uploads.view`."""
        return self._uploads.view(upload, caller)

    async def take_piece(
        self, upload: str, index: int, offset: int, data: Buffer, caller: Caller
    ) -> int:
        """Take a piece of an uploaded file; see `Uploads.take`."""
        return await self._uploads.take(upload, index, offset, data, caller)

    async def drop_upload(self, upload: str, caller: Caller) -> None:
        """Forget an upload; see `Uploads.drop`."""
        await self._uploads.drop(upload, caller)

    def shutdown(self, leave: bool) -> dict[str, Any]:
        """End the daemon as a signal would, once this is answered.

        Args:
            leave: Forget the mesh as well: its admission, its state and its models.
        """
        self.on_shutdown(leave)
        return {"pid": os.getpid(), "leave": leave}

    # Inside

    def _pinned(self, replicas: int | None, on: Sequence[str]) -> tuple[NodeId, ...]:
        pinned = tuple(
            dict.fromkeys(node_named(self._node.membership.members, each) for each in on)
        )
        if pinned and replicas is not None and replicas > len(pinned):
            raise InvalidRequest(
                f"{replicas} replicas do not fit on {len(pinned)} node(s); name more with --on"
            )
        return pinned

    async def _deploy(
        self,
        model: FoundModel,
        replicas: int | None,
        pinned: tuple[NodeId, ...],
        caller: Caller,
    ) -> dict[str, Any]:
        public = check_model_name(model.name)
        manifests = await self._artifacts.publish(model)
        count = replicas if replicas is not None else max(1, len(pinned))
        deployment = Deployment(public, self._numbered(model, manifests), count, pinned)
        if self._node.deployment(public) != deployment:
            self._driver.write(self._node.drafts.deployment(deployment, self._clock.wall_s()))
            log.info("model %s was deployed by %s", public, caller)
        return self._model_view(public)

    def _numbered(self, model: FoundModel, manifests: list[Manifest]) -> tuple[Manifest, ...]:
        """Give a bare file, which has no version of its own, the next number if it has changed.

        What is still on its way out counts too: two files never share a name and number.
        """
        if not model.path.is_file():
            return tuple(manifests)
        (manifest,) = manifests
        digests: dict[int, set[str]] = {}
        current = self._node.deployment(model.name)
        for former in current.manifests if current else ():
            digests.setdefault(former.version, set()).add(former.digest)
        table = self._node.router.table
        for version in table.models().get(model.name, ()):
            found = {self._digest(replica) for replica in table.replicas(model.name, version)}
            digests.setdefault(version, set()).update(found)
        same = [version for version, found in digests.items() if found == {manifest.digest}]
        number = max(same, default=max(digests, default=0) + 1)
        return (msgspec.structs.replace(manifest, version=number),)

    def _require_operator(self) -> None:
        if self._forwarder.must_forward(Role.OPERATOR):
            raise self._forwarder.refusal(Role.OPERATOR)

    def _node_view(self, member: Member) -> dict[str, Any]:
        record = member.record
        me = member.node_id == self._node.me
        rtt_ms, is_estimated = self._round_trips.to(member.node_id)
        return {
            "id": member.node_id,
            "name": record.name,
            "region": record.region,
            "zone": record.zone,
            "state": str(member.state),
            "self": me,
            "http": _url(record.http),
            "mesh": str(Address(*record.addresses[0])) if record.addresses else None,
            "labels": record.labels,
            "capabilities": capabilities.shown(record.capabilities),
            "load": self._load_view(member.node_id),
            "linked": me or member.linked,
            "rtt_ms": rtt_ms,
            "rtt_estimated": is_estimated,
        }

    def _load_view(self, node: NodeId) -> dict[str, Any]:
        value = self._node.owners.get(node, LOAD_KEY)
        if value is None:
            return {}
        try:
            load = decode_load(value)
        except MeshError:
            return {}
        return {
            "cpu": load.cpu,
            "memory_available_bytes": load.memory_available_bytes,
            "in_system": sum(each.in_system for each in load.models),
            "temperature_c": load.temperature_c,
            "battery_percent": load.battery_percent,
            "accelerators": [msgspec.structs.asdict(each) for each in load.accelerators],
            "models": [
                {
                    "name": each.model,
                    "version": each.version,
                    "in_system": each.in_system,
                    "slots": each.slots,
                    "service_ms": each.service_ms,
                }
                for each in load.models
            ],
        }

    def _model_view(self, name: str) -> dict[str, Any]:
        table = self._node.router.table
        deployment = self._node.deployment(name)
        versions = set(table.models().get(name, ()))
        if deployment is not None:
            versions.update(manifest.version for manifest in deployment.manifests)
        wanted = {each.version: each.digest for each in deployment.manifests} if deployment else {}
        replicas = []
        for version in sorted(versions):
            digest = wanted.get(version)
            for replica in sorted(table.replicas(name, version), key=lambda each: each.node_name):
                current = deployment is None or self._digest(replica) == digest
                replicas.append(_replica_view(replica, current=current))
        view: dict[str, Any] = {
            "name": name,
            "versions": sorted(versions),
            "replicas": replicas,
            "wanted": deployment.replicas if deployment else None,
        }
        if deployment is not None:
            placement = self._node.placement(deployment)
            entry = self._node.desired.entry(deployment.key)
            view["revision"] = f"{entry.stamp.wall_ms}.{entry.stamp.counter}" if entry else ""
            view["deployed"] = [manifest.version for manifest in deployment.manifests]
            view["placed"] = [self._name_of(node) for node in placement.nodes]
            view["missing"] = placement.missing
            view["ineligible"] = [
                {"node": self._name_of(node), "node_id": node, "reason": reason}
                for node, reason in placement.ineligible
            ]
        return view

    def _digest(self, replica: Replica) -> str:
        """Return the digest of what a replica serves, as its node says; empty if it is unknown."""
        key = replica_key(replica.model, replica.version)
        value = self._node.owners.get(replica.node, key)
        if value is None:
            return ""
        try:
            return decode_replica(key, value).digest
        except MeshError:
            return ""

    def _name_of(self, node: NodeId) -> str:
        return name_of(self._node.membership.members, node)


def _url(http: str) -> str | None:
    """Return a gateway's URL from its record, which has the scheme where it is not plain HTTP."""
    return http if "://" in http else f"http://{http}" if http else None


def _replica_view(replica: Replica, *, current: bool) -> dict[str, Any]:
    return {
        "node": replica.node_name,
        "node_id": replica.node,
        "version": replica.version,
        "state": str(replica.state),
        "reason": replica.reason,
        "current": current,
    }


async def _one_model(path: Path, name: str | None) -> FoundModel:
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
