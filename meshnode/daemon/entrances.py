"""The HTTP servers of one node: the gateway for its users, and the channel for its owner."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.client.control import ControlAddress
from meshnode.gateway.access import ChannelAccess, GatewayAccess
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.idempotency import AnswersOnce
from meshnode.gateway.oip_shared_memory_routes import OipSharedMemoryRoutes
from meshnode.gateway.protocols.cors import Cors
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.refusal_log import RefusalLog
from meshnode.gateway.server import HttpServer
from meshnode.gateway.shared_memory import SharedMemory
from meshnode.gateway.some_paths import SomePaths
from meshnode.hardware.addresses import reachable_hosts
from meshnode.limits import HTTP_CLOSE_GRACE_S
from meshnode.options import is_loopback
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.access_log import AccessLog
    from meshnode.daemon.control import Control
    from meshnode.gateway.access import Access
    from meshnode.gateway.bodies import Bodies
    from meshnode.gateway.grpc_server import GrpcServer
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.tls import GatewayTls


class Entrances:
    """Opens them and closes them."""

    def __init__(
        self,
        pipeline: Pipeline,
        control: Control,
        metrics: GatewayMetrics,
        clock: Clock,
        bodies: Bodies,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        access_log: AccessLog | None = None,
        *,
        shared_memory: bool = False,
    ) -> None:
        """Answer from these; `bodies` counts what they hold together.

        Args:
            pipeline: Answers inferences.
            control: Answers what the daemon is asked.
            metrics: Where requests are counted.
            clock: The node's.
            bodies: Counts the memory of bodies.
            random_bytes: Draws so many bytes that nobody can guess.
            access_log: Told of every request; it is closed with the entrances. None for no such log.
            shared_memory: Whether programs on this machine may hand tensors over in shared memory.
        """
        self.key_limits = metrics.key_limits
        """What callers with API keys ask, at all entrances together."""
        self.access_log = access_log
        self._clock = clock
        self._random_bytes = random_bytes
        self._bodies = bodies
        self._control = control
        self._refusals = RefusalLog(clock)
        self._metrics = metrics
        self.dispatcher = Dispatcher(pipeline, control, metrics)
        """The routes, the same at each."""
        self.once = AnswersOnce(clock.now, metrics, random_bytes=random_bytes)
        """Requests with an `Idempotency-Key`, likewise."""
        self.dispatcher.answer_once = self.once.answer
        self.shared_memory = SharedMemory(is_on=shared_memory)
        """What programs on this machine hand over by name, likewise."""
        self.dispatcher.oip.shared_memory = self.shared_memory
        self.dispatcher.add(OipSharedMemoryRoutes(self.shared_memory).routes())
        self._grpc: list[GrpcServer] = []
        self._gateways: list[HttpServer] = []
        self._servers: list[HttpServer] = []

    def __repr__(self) -> str:
        return f"<Entrances: {len(self._servers)} open>"

    async def open_gateway(
        self,
        address: Address,
        allow_hosts: Sequence[str],
        tls: GatewayTls | None,
        *,
        require_key: bool,
        cors_origins: Sequence[str] = (),
        paths: Collection[str] | None = None,
    ) -> Address:
        """Offer HTTP, or HTTPS; return where, with the port that was bound.

        Args:
            address: Where to listen.
            allow_hosts: Names under which it is asked besides its own addresses.
            tls: Offer HTTPS with this instead.
            require_key: Want a key of programs on this machine too.
            cors_origins: Other origins whose pages may use it.
            paths: Answer these only; None for all.

        Raises:
            ConfigError: if the address is in use or not ours.
        """
        cors = Cors(cors_origins)
        policy = OriginPolicy(address.host, allow_hosts, cors)
        access = GatewayAccess(
            policy,
            self._control.api_key,
            require_key=require_key,
            on_refusal=self._refusals.write,
        )
        server = self._server(access, cors, paths)
        bound = await server.listen_tcp(address, tls.context if tls is not None else None)
        self._gateways.append(server)
        return bound

    async def open_grpc(
        self, address: Address, tls: GatewayTls | None, *, require_key: bool
    ) -> Address:
        """Offer gRPC; return where, with the port that was bound.

        Args:
            address: Where to listen.
            tls: Serve with this certificate.
            require_key: Want a key of programs on this machine too.

        Raises:
            ConfigError: if grpcio is not installed, or the address is in use or not ours.
        """
        from meshnode.gateway.grpc_server import GrpcServer  # only where it is asked for

        access = GatewayAccess(
            OriginPolicy(address.host),
            self._control.api_key,
            require_key=require_key,
            on_refusal=self._refusals.write,
        )
        server = GrpcServer(
            self.dispatcher,
            self._metrics,
            access,
            bodies=self._bodies,
            shared_memory=self.shared_memory,
            is_ready=lambda: self._control.ready()[0],
            key_limits=self.key_limits,
            access_log=self.access_log,
            grace_s=HTTP_CLOSE_GRACE_S,
            wall_s=self._clock.wall_s,
            random_bytes=self._random_bytes,
        )
        bound = await server.listen(address, tls)
        self._grpc.append(server)
        return bound

    async def open_control(self, plan: ControlAddress) -> ControlAddress:
        """Open the owner's channel as planned; return it with the port that was bound.

        Raises:
            ConfigError: if it cannot be opened.
        """
        if plan.unix is not None:
            await self._server(None).listen_unix(Path(plan.unix))
            return plan
        assert plan.tcp is not None
        server = self._server(ChannelAccess(OriginPolicy(plan.tcp.host), plan.authorizes))
        return ControlAddress(tcp=await server.listen_tcp(plan.tcp), token=plan.token)

    async def stop_accepting(self) -> None:
        """Take no new connections of users; what is asked on standing ones is still answered."""
        for entrance in self._grpc:
            entrance.stop_accepting()
        for server in self._gateways:
            await server.stop_accepting()

    def close_idle(self) -> None:
        """Close the connections of users who ask nothing."""
        for server in self._gateways:
            server.close_idle()

    async def close(self) -> None:
        """Close everything."""
        self._control.events.close()
        await self.dispatcher.streams.close()
        for entrance in self._grpc:
            await entrance.stop()
        self.shared_memory.close()
        for server in self._servers:
            await server.stop()
        if self.access_log is not None:
            await self.access_log.close()

    def _server(
        self,
        access: Access | None,
        cors: Cors | None = None,
        paths: Collection[str] | None = None,
    ) -> HttpServer:
        server = HttpServer(
            self.dispatcher if paths is None else SomePaths(self.dispatcher, paths),
            self._metrics,
            access,
            bodies=self._bodies,
            grace_s=HTTP_CLOSE_GRACE_S,
            wall_s=self._clock.wall_s,
            random_bytes=self._random_bytes,
            cors=cors,
            key_limits=self.key_limits,
            access_log=self.access_log,
        )
        self._servers.append(server)
        return server


def reached_at(bound: Address, told: Sequence[Address]) -> Address:
    """Return where others reach a gateway: a wildcard is no address that anybody can dial.

    Args:
        bound: Where it listens.
        told: Where others are told to reach this node, the best first.
    """
    try:
        if not ipaddress.ip_address(bound.host).is_unspecified:
            return bound
    except ValueError:
        return bound
    found = [address.host for address in told if not is_loopback(address.host)]
    return Address((found or reachable_hosts(bound.host))[0], bound.port)
