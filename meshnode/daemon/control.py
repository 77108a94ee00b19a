"""What the gateway and the control socket ask of the daemon: views of the mesh, and changes to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from meshnode import __version__
from meshnode.daemon.api_keys import ApiKeys
from meshnode.daemon.deploying import Deploying
from meshnode.daemon.deployment_edits import DeploymentEdits
from meshnode.daemon.deployment_views import DeploymentViews
from meshnode.daemon.draining import Draining
from meshnode.daemon.event_feed import EventFeed
from meshnode.daemon.model_views import ModelViews
from meshnode.daemon.named import name_of
from meshnode.daemon.node_views import NodeViews
from meshnode.daemon.publications import Publications
from meshnode.daemon.repository import Repository
from meshnode.daemon.rollouts import Rollouts
from meshnode.daemon.round_trips import RoundTrips
from meshnode.daemon.routing_views import RoutingViews
from meshnode.daemon.trust import Trust
from meshnode.errors import ModelNotFound, NoReplica
from meshnode.key_limit import NO_LIMIT, KeyLimit
from meshnode.models.exposure import NO_CHANGE, ExposureChange
from meshnode.models.provenance import NOTHING, Said
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
    from meshnode.daemon.jobs import Jobs
    from meshnode.daemon.pairing import JoinDesk
    from meshnode.daemon.statistics import Statistics
    from meshnode.daemon.uploads import Uploads
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.metrics import Metric
    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.statistics import ModelStatistics
    from meshnode.net.outbound import OutboundRule
    from meshnode.node import Node
    from meshnode.routing.decisions import Recorder
    from meshnode.state.api_keys import ApiKey
    from meshnode.state.release import Release
    from meshnode.state.scaling import Scaling
    from meshnode.types import Buffer


class Control:
    """One daemon, as its owner and its gateway see it.

    Attributes:
        trust: Who belongs to the mesh.
        join_desk: The devices that ask this node to be admitted.
        jobs: The mesh's jobs.
        drains: The nodes that are to be emptied.
        definitions: What is deployed, as definitions with their history.
        rollouts: Releases on their way.
        routing: How the gateway decides about requests.
        events: What happens in the mesh, for those that follow it.
        repository: The mesh's models as clients of model servers load and unload them.
        http: URL of the HTTP gateway as others reach it, or None without one.
        grpc: Where gRPC is served, `HOST:PORT`, or None.
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
        statistics: Statistics,
        outbound: OutboundRule,
        jobs: Jobs,
        recorder: Recorder,
    ) -> None:
        """See through these."""
        self.trust = Trust(node, driver, credentials, clock)
        self.join_desk = join_desk
        self._node = node
        self._driver = driver
        self._credentials = credentials
        self._clock = clock
        self._about = about
        self._uploads = uploads
        self._forwarder = forwarder
        self._doctor = doctor
        self._views = ModelViews(node, self._name_of)
        self._publications = Publications(node, driver, clock, credentials.identity, self._name_of)
        self._deploying = deploying = Deploying(
            node=node,
            driver=driver,
            clock=clock,
            artifacts=artifacts,
            publications=self._publications,
            uploads=uploads,
            views=self._views,
            forwarder=forwarder,
        )
        self.rollouts = Rollouts(node, driver, clock, self._name_of, deploying.require_operator)
        feed = EventFeed(node, clock, self._name_of, self.rollouts)
        self.events = feed.events
        driver.on_report, driver.on_replicas = feed.heard, feed.replicas_changed
        self.definitions = DeploymentEdits(
            node=node,
            driver=driver,
            clock=clock,
            artifacts=artifacts,
            publications=self._publications,
            uploads=uploads,
            deploying=deploying,
            models=self._views,
            views=DeploymentViews(
                node,
                self._name_of,
                self._views,
                self._publications,
                lambda: self.http,
                self.rollouts,
            ),
            name_of=self._name_of,
        )
        self._require_operator = deploying.require_operator
        self._api_keys = ApiKeys(
            node, driver, clock, self._require_operator, credentials.random_bytes
        )
        self.repository = Repository(
            node,
            artifacts,
            self._publications,
            self._views,
            deploying,
            self._name_of,
            clock.now,
            outbound,
        )
        self._metrics = metrics
        self._statistics = statistics
        self.jobs = jobs
        self.routing = RoutingViews(node, clock, self._name_of, recorder)
        self.drains = Draining(node, driver, clock, self._require_operator, jobs)
        self._nodes = NodeViews(node, RoundTrips(node, driver.hub.relay), self.drains)
        self.mesh_address = mesh_address
        self.http: str | None = None
        self.grpc: str | None = None
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
            "grpc": self.grpc,
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
        if self.drains.state is not None:
            return str(self.drains.state)
        return "paused" if self.paused else "running"

    def nodes(self) -> list[dict[str, Any]]:
        """Describe every member that is known, this node first, then by name."""
        return self._nodes.all()

    def rtt(self, one: str, other: str) -> dict[str, Any]:
        """Describe the round trip between two nodes, each by its name or id."""
        return self._nodes.rtt(one, other)

    def models(self) -> list[dict[str, Any]]:
        """Describe every model that is served or deployed, by name."""
        names = set(self._node.router.table.models())
        names.update(deployment.name for deployment in self._node.deployments())
        return [self._views.model(name) for name in sorted(names)]

    def model(self, name: str) -> dict[str, Any]:
        """Describe one model.

        Raises:
            ModelNotFound: if the mesh neither serves nor deploys it.
        """
        known = name in self._node.router.table.models()
        if not known and self._node.deployment(name) is None:
            raise ModelNotFound(f"no node of this mesh has a model {name!r}")
        return self._views.model(name)

    def ready(self) -> tuple[bool, str]:
        """Say whether the node is in its mesh and answers, and if not, why."""
        if self.leaving:
            return False, "this node is leaving the mesh"
        if self.drains.state is not None:
            return False, f"this node is {self.drains.state}; ask another one"
        return True, ""

    def health(self) -> str:
        """Return what the process does: `ok`, or `draining`, `drained` or `leaving`."""
        if self.leaving:
            return "leaving"
        return str(self.drains.state or "ok")

    async def examine(self, peer: str) -> dict[str, Any]:
        """Try what lies between this node and another, or this node alone; see `Doctor.examine`."""
        return await self._doctor.examine(peer)

    def manifest(self, model: str, version: int | None) -> Manifest:
        """Return what a model version is, ready or not; the one that answers who names none if None.

        Raises:
            ModelNotFound: if the mesh does not know the model or the version.
        """
        table = self._node.router.table
        versions = table.models().get(model)
        if versions is None:
            raise ModelNotFound(f"no node of this mesh has a model {model!r}")
        manifest = table.usual(model) if version is None else table.manifest(model, version)
        if manifest is None:
            known = ", ".join(str(number) for number in versions)
            what = (
                "what it is is not known yet" if version is None else f"it has no version {version}"
            )
            raise ModelNotFound(f"model {model!r}: {what}; its versions are {known}")
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

    async def statistics(self, model: str | None, version: int | None) -> list[ModelStatistics]:
        """Return what models have done on the whole mesh; see `Statistics.of`."""
        return await self._statistics.of(model, version)

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
        """Deploy a model from a path on this machine; see `Deploying.deploy`."""
        return await self._deploying.deploy(
            path, name, replicas, on, variant, said, offer, scaling, release
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
        """Deploy a model that was uploaded; see `Deploying.deploy_upload`."""
        return await self._deploying.deploy_upload(
            upload, name, replicas, on, caller, variant, said, offer, scaling, release
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
        """Deploy a version that was published; see `Deploying.deploy_published`."""
        return self._deploying.deploy_published(
            name, version, replicas, on, caller, offer, scaling, release
        )

    async def publish(self, path: str, name: str | None, said: Said) -> dict[str, Any]:
        """Put a model from a path on this machine into the mesh's store; see `Deploying.publish`."""
        return await self._deploying.publish(path, name, said)

    async def publish_upload(
        self, upload: str, name: str | None, said: Said, caller: Caller
    ) -> dict[str, Any]:
        """Put a model that was uploaded into the mesh's store; see `Deploying.publish_upload`."""
        return await self._deploying.publish_upload(upload, name, said, caller)

    def artifacts(self) -> list[dict[str, Any]]:
        """Describe every version that was published or is deployed."""
        return self._publications.view()

    def withdraw(self, name: str, version: int, caller: Caller) -> None:
        """Take a published version back; see `Publications.withdraw`."""
        self._require_operator()
        self._publications.withdraw(name, version, caller)

    # API keys and uploads

    def api_key(self, key_id: str) -> ApiKey | None:
        """Return the API key of an id, whatever its state, or None."""
        return self._api_keys.get(key_id)

    def keys(self) -> list[dict[str, Any]]:
        """Describe all API keys, without their secrets."""
        return self._api_keys.all()

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        ttl_s: int | None,
        caller: Caller,
        limit: KeyLimit = NO_LIMIT,
    ) -> dict[str, Any]:
        """Make an API key; see `ApiKeys.create`."""
        return self._api_keys.create(name, scopes, ttl_s, caller, limit)

    def limit_key(self, key: str, limit: KeyLimit, caller: Caller) -> dict[str, Any]:
        """Change how much an API key's holder may ask; see `ApiKeys.limit`."""
        return self._api_keys.limit(key, limit, caller)

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

    def _name_of(self, node: NodeId) -> str:
        return name_of(self._node.membership.members, node)
