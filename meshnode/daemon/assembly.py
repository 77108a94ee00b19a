"""A running member: what its parts do together, from its start to its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from meshnode.daemon.background import BackgroundTasks
from meshnode.daemon.entrances import Entrances, reached_at
from meshnode.daemon.forwarding import ForwardServer
from meshnode.daemon.load_probes import LoadProbes
from meshnode.daemon.load_sampling import LoadSampling
from meshnode.daemon.model_folder import ModelFolder, server_models
from meshnode.daemon.named import name_of
from meshnode.daemon.once import KeyHomes
from meshnode.draining import Work
from meshnode.events import Start
from meshnode.node_events import RequestsWait
from meshnode.types import Address

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.client.control import ControlAddress
    from meshnode.daemon.access_log import AccessLog
    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.control import Control
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.decision_log import DecisionLog
    from meshnode.daemon.driver import Driver
    from meshnode.daemon.serving import PeerServer
    from meshnode.daemon.surroundings import Surroundings
    from meshnode.daemon.uploads import Uploads
    from meshnode.daemon.watch import Watch
    from meshnode.gateway.bodies import Bodies
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.tls import GatewayTls
    from meshnode.membership.messages import MemberRecord
    from meshnode.models.serving.server import ModelServer
    from meshnode.net.links import LinkHub
    from meshnode.node import Node
    from meshnode.options import JoinOptions

log = logging.getLogger(__name__)


class Assembly:
    """A running member. Made by `meshnode.daemon.composition.assemble`; `start` sets it going, `close` ends it."""

    def __init__(
        self,
        *,
        node: Node,
        record: MemberRecord,
        driver: Driver,
        hub: LinkHub,
        credentials: Credentials,
        models: ModelServer,
        artifacts: Artifacts,
        peer_server: PeerServer,
        pipeline: Pipeline,
        control: Control,
        uploads: Uploads,
        watch: Watch,
        gateway_metrics: GatewayMetrics,
        bodies: Bodies,
        surroundings: Surroundings,
        access_log: AccessLog | None = None,
        decision_log: DecisionLog | None = None,
        shared_memory: bool = False,
    ) -> None:
        """Take the parts."""
        self.node = node
        self.record = record
        self.driver = driver
        self.hub = hub
        self.credentials = credentials
        self.control = control
        self._gateway_metrics = gateway_metrics
        self._models = models
        self._artifacts = artifacts
        self._uploads = uploads
        self._peer_server = peer_server
        self._pipeline = pipeline
        self._watch = watch
        self._clock = clock = surroundings.clock
        self._load = LoadSampling(
            node,
            driver,
            models=models,
            artifacts=artifacts,
            watch=watch,
            hardware=surroundings.hardware,
            clock=clock,
        )
        self._entrances = Entrances(
            pipeline,
            control,
            gateway_metrics,
            clock,
            bodies,
            surroundings.random_bytes,
            access_log,
            shared_memory=shared_memory,
        )
        forwards = ForwardServer(
            self._entrances.dispatcher,
            control.api_key,
            clock,
            lambda: name_of(node.membership.members, node.me),
        )
        peer_server.forwards = forwards
        homes = KeyHomes(node, driver, self._entrances.once)
        self._entrances.once.home = peer_server.homes = homes
        self._decision_log = decision_log
        self._tasks = BackgroundTasks(log, "a part of this node stopped")
        self._gateway: tuple[str, Address] | None = None  # scheme, and where it listens

    def __repr__(self) -> str:
        return f"<Assembly of {self.node!r}>"

    @property
    def busy(self) -> bool:
        """Whether any request is being worked on, for a client or for a peer."""
        return self._peer_server.running > 0 or self._pipeline.in_flight > 0

    @property
    def http_connections(self) -> int:
        """HTTP connections that stand, on the gateway and on the owner's channel."""
        return self._gateway_metrics.connections

    @property
    def models(self) -> ModelServer:
        """What serves models here."""
        return self._models

    async def stop_http(self) -> None:
        """Take no new HTTP connections; what is asked on standing ones is still answered."""
        await self._entrances.stop_accepting()

    def reopen_access_log(self) -> bool:
        """Open the file of the access log anew with its next line; False if there is none."""
        log_of_requests = self._entrances.access_log
        return log_of_requests is not None and log_of_requests.reopen()

    def close_idle_http(self) -> None:
        """Close the HTTP connections of programs that ask nothing."""
        self._entrances.close_idle()

    @property
    def http_busy(self) -> bool:
        """Whether a request of a client is being worked on."""
        return self._pipeline.in_flight > 0

    async def open_gateway(
        self,
        address: Address,
        allow_hosts: tuple[str, ...] = (),
        tls: GatewayTls | None = None,
        *,
        require_key: bool = False,
        cors_origins: tuple[str, ...] = (),
    ) -> None:
        """Offer HTTP; where others reach it goes into this node's record.

        Args:
            address: Where to listen.
            allow_hosts: Names under which it is asked besides its own addresses.
            tls: Offer HTTPS with this instead, and follow its files.
            require_key: Want a key of programs on this machine too.
            cors_origins: Other origins whose pages may use it.

        Raises:
            ConfigError: if the address is in use or not ours.
        """
        bound = await self._entrances.open_gateway(
            address, allow_hosts, tls, require_key=require_key, cors_origins=cors_origins
        )
        self._gateway = ("http" if tls is None else "https", bound)
        self._tell_gateway(tuple(Address(*each) for each in self.record.addresses))
        if tls is not None:
            self._tasks.start(tls.follow())

    async def open_further_gateway(
        self,
        address: Address,
        options: JoinOptions,
        tls: GatewayTls | None,
        *,
        only_metrics: bool = False,
    ) -> Address:
        """Offer HTTP at one more address, of which others are not told; return where, with the port.

        Args:
            address: Where to listen.
            options: What its callers need, as at the gateway.
            tls: Offer HTTPS with this instead.
            only_metrics: Answer `/metrics` and nothing else.

        Raises:
            ConfigError: if the address is in use or not ours.
        """
        return await self._entrances.open_gateway(
            address,
            options.allow_hosts,
            tls,
            require_key=options.is_key_required_here,
            cors_origins=options.cors_origins,
            paths=("/metrics",) if only_metrics else None,
        )

    async def open_grpc(
        self, address: Address, tls: GatewayTls | None = None, *, require_key: bool = False
    ) -> Address:
        """Offer gRPC, in the same way as `open_gateway` offers HTTP; return where, with the port that was bound.

        Raises:
            ConfigError: if grpcio is not installed, or the address is in use or not ours.
        """
        bound = await self._entrances.open_grpc(address, tls, require_key=require_key)
        if self.control.grpc is None:
            told = tuple(Address(*each) for each in self.record.addresses)
            self.control.grpc = str(reached_at(bound, told))
        return bound

    async def open_control(self, plan: ControlAddress) -> ControlAddress:
        """Open the owner's channel as planned; return it with the port that was bound.

        Raises:
            ConfigError: if it cannot be opened.
        """
        return await self._entrances.open_control(plan)

    def start(self) -> None:
        """Begin to be a member."""
        if self.node.has_friends:
            self._pipeline.cold_starts.begins()
        self._pipeline.cold_starts.on_waits = lambda models: self.driver.handle(
            RequestsWait(dict(models))
        )
        self.driver.handle(Start())
        assert self.driver.relaying is not None
        self.driver.relaying.start(self.driver.kinds)
        self.control.jobs.start(self._entrances.dispatcher)
        if self._gateway is not None:
            now = self._clock.now()
            self.driver.carry_out(self.node.membership.update_record(now, http=self._http()))
        self._tasks.start(self._load.run())
        self._tasks.start(LoadProbes(self.node.router, self.hub, self._clock).run())
        self.control.drains.work = self._work
        self._tasks.start(self.control.drains.follow())
        self._tasks.start(self._watch.run(self.driver.handle, self._models))
        self._tasks.start(self._watch.measure_speed(lambda: self.busy))
        self._tasks.start(self._uploads.expire_regularly())
        self._tasks.start(self._artifacts.tend())

    def moved(self, addresses: tuple[Address, ...]) -> None:
        """Tell the mesh where this node is reached from now on; equal addresses change nothing."""
        changes: dict[str, Any] = {"addresses": addresses}
        if self._gateway is not None:
            self._tell_gateway(addresses)
            changes["http"] = self._http()
        now = self._clock.now()
        self.driver.carry_out(self.node.membership.update_record(now, **changes))

    def _tell_gateway(self, told: tuple[Address, ...]) -> None:
        assert self._gateway is not None
        scheme, bound = self._gateway
        self.control.http = f"{scheme}://{reached_at(bound, told)}"

    def _http(self) -> str:
        """Return the gateway's address as records have it: without a scheme, unless it is HTTPS."""
        assert self.control.http is not None
        return self.control.http.removeprefix("http://")

    def follow_models(self, place: str, poll_s: float, copies: Path) -> None:
        """Serve every model of this node's own folder or URL, in the background, and follow its changes.

        Args:
            place: Absolute path of a folder, or a URL.
            poll_s: Seconds between two looks; 0 for a single one.
            copies: The folder for copies of what lies elsewhere.
        """
        folder = ModelFolder(
            place,
            self._artifacts.own,
            copies=copies,
            poll_s=poll_s,
            now=self._clock.now,
            server_models=server_models(),
        )
        self._tasks.start(folder.follow())

    async def close(self) -> None:
        """Close servers, models and what is under way."""
        self.driver.stop()
        assert self.driver.relaying is not None
        self.driver.relaying.stop()
        await self._tasks.close()
        await self.control.jobs.close()
        await self._entrances.close()
        await self._pipeline.releasing.mirroring.close()
        if self._decision_log is not None:
            await self._decision_log.close()
        await self._artifacts.close()
        if self._peer_server.kept is not None:
            await self._peer_server.kept.close()
        await self._models.close()

    def _work(self) -> Work:
        kept = self._peer_server.kept
        return Work(
            self._peer_server.running + (0 if kept is None else kept.unread),
            self._pipeline.in_flight,
            self._models.open_sequences,
            len(self.control.jobs.book.held),
            self._artifacts.own.is_settled,
        )
