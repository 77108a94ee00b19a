"""The gRPC server: grpcio's connection handling around `GrpcCalls`.

| limit | where |
|---|---|
| a message | `MAX_GRPC_MESSAGE_BYTES`, also when it comes compressed |
| metadata | `MAX_HEADER_BYTES` |
| calls at once; on one connection | `MAX_GRPC_CALLS`; `MAX_GRPC_CALLS_PER_CONNECTION` |
| streams of inferences at once; of one caller | `MAX_GRPC_STREAMS`; `MAX_GRPC_STREAMS_PER_CALLER`, as many watches |
| requests of a stream at once; a stream without any | `MAX_GRPC_STREAM_REQUESTS`; ended after `GRPC_STREAM_IDLE_S` |
| messages with tensors or files that are being read | `MAX_GRPC_READS`, each for `GRPC_MESSAGE_TIMEOUT_S` |
| other messages that are being read | `MAX_GRPC_SMALL_READS`, each for `GRPC_SMALL_MESSAGE_TIMEOUT_S` |
| of either kind of one caller | `MAX_GRPC_READS_PER_CALLER` |
| memory of messages | `bodies`, together with HTTP bodies |
| time for a TLS handshake | `TLS_HANDSHAKE_TIMEOUT_S` |
| idle connections | asked after `GRPC_KEEPALIVE_S`, closed after `GRPC_IDLE_S` |
| a client that does not take its answers | `BODY_GRACE_S`, then its stream ends |

grpcio is imported when a server is made and not before: a node without one does without its threads and memory.
A client that goes away cancels the task that works for it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ConfigError
from meshnode.gateway.grpc_calls import GrpcCalls, Parts
from meshnode.gateway.grpc_health import Health
from meshnode.gateway.key_limits import KeyLimits
from meshnode.limits import (
    DRAIN_LIMIT_S,
    GRPC_IDLE_S,
    GRPC_KEEPALIVE_S,
    GRPC_KEEPALIVE_TIMEOUT_S,
    MAX_GRPC_CALLS,
    MAX_GRPC_CALLS_PER_CONNECTION,
    MAX_GRPC_MESSAGE_BYTES,
    MAX_HEADER_BYTES,
    MIN_GRPC_PING_INTERVAL_S,
    TLS_HANDSHAKE_TIMEOUT_S,
)
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshnode.gateway.access import GatewayAccess
    from meshnode.gateway.bodies import Bodies
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.grpc_calls import Asking
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.server import AccessLog
    from meshnode.gateway.shared_memory import SharedMemory
    from meshnode.gateway.tls import GatewayTls

    _Answer = Callable[[Asking, Any], Awaitable[Any]]

_SERVICE: Final = "/inference.GRPCInferenceService/"
_HEALTH: Final = "/grpc.health.v1.Health/"
_TRANSLATED: Final = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting",
    "LogSettings",
)  # fmt: skip


def is_installed() -> bool:
    """Whether gRPC can be served here: its packages come with the extra `meshnode[grpc]`."""
    return find_spec("grpc") is not None


class GrpcServer:
    """One entrance: a dispatcher at one address."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: GatewayMetrics,
        access: GatewayAccess,
        *,
        bodies: Bodies,
        shared_memory: SharedMemory,
        is_ready: Callable[[], bool],
        key_limits: KeyLimits | None = None,
        access_log: AccessLog | None = None,
        grace_s: float = 10.0,
        wall_s: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Make a server; call within a running loop.

        Args:
            dispatcher: What answers.
            metrics: Where calls are counted.
            access: Who may ask.
            bodies: Counts the memory of messages, for all entrances together.
            shared_memory: The regions of clients on this machine.
            is_ready: Whether the node is in its mesh.
            key_limits: Counts what callers with keys ask, for all entrances together.
            access_log: Told of every call; None for no such log.
            grace_s: How long `stop` lets running calls finish, in seconds.
            wall_s: Returns seconds since the Unix epoch.
            random_bytes: Draws so many bytes that nobody can guess, for the ids of calls.

        Raises:
            ConfigError: if grpcio is not installed.
        """
        prefix, numbers = random_bytes(4).hex() + "-", itertools.count(1)
        parts = Parts(
            dispatcher,
            metrics,
            access,
            bodies,
            key_limits or KeyLimits(),
            access_log,
            shared_memory,
            wall_s,
            lambda: f"{prefix}{next(numbers):x}",
        )
        self._grpc = _grpcio()
        self._calls = GrpcCalls(parts)
        self._health = Health(is_ready, self._calls.leaving)
        self._grace_s = grace_s
        self._stopping: asyncio.Task[None] | None = None
        self._address: Address | None = None
        self._methods = self._table()
        self._server = self._grpc.aio.server(
            options=_options(), maximum_concurrent_rpcs=MAX_GRPC_CALLS
        )
        self._server.add_generic_rpc_handlers((_Handler(self._methods.get),))

    def __repr__(self) -> str:
        return f"<GrpcServer at {self._address or 'no address'}>"

    async def listen(self, address: Address, tls: GatewayTls | None = None) -> Address:
        """Accept connections at an address and return it with its real port; once.

        Args:
            address: Where; port 0 takes any free one, and `::` IPv4 as well.
            tls: Speak TLS with this.

        Raises:
            ConfigError: if the address cannot be bound.
        """
        try:
            if tls is None:
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(str(address), self._credentials(tls))
        except RuntimeError as error:
            port, reason = 0, str(error)
        else:
            reason = "the port is taken, or the address not this machine's"
        if port == 0:
            raise ConfigError(
                f"gRPC cannot listen at {address} ({reason}); choose another with --grpc HOST:PORT, or --no-grpc"
            )
        await self._server.start()
        self._address = Address(address.host, port)
        return self._address

    def stop_accepting(self) -> None:
        """Send clients elsewhere: take no new calls, end streams, let what runs finish."""
        self._calls.leaving.set()
        if self._address is not None and self._stopping is None:
            self._stopping = asyncio.ensure_future(self._server.stop(DRAIN_LIMIT_S))

    async def stop(self) -> None:
        """Let running calls finish for the grace period, and end the rest."""
        self._calls.leaving.set()
        if self._address is not None:
            await self._server.stop(self._grace_s)
            if self._stopping is not None:
                await self._stopping

    def _credentials(self, tls: GatewayTls) -> Any:
        """Return what serves the certificate that was loaded last; asked in each handshake, in a thread of grpcio."""
        grpc = self._grpc
        known: list[Any] = []

        def current() -> Any:
            pair = tls.pem()
            if not known or known[0] != pair:
                key, chain = pair
                known[:] = [pair, grpc.ssl_server_certificate_configuration([(key, chain)])]
            return known[1]

        return grpc.dynamic_ssl_server_credentials(current(), current)

    def _table(self) -> dict[str, Any]:
        """Return what answers each method, as grpcio has it.

        A call of one message is declared as one of many, so that its caller is known before the message is
        read: on the wire they are the same.
        """
        calls, grpc = self._calls, self._grpc
        unary = {f"{_SERVICE}{name}": calls.translated for name in _TRANSLATED}
        unary[f"{_SERVICE}ModelInfer"] = calls.infer
        for verb in ("Status", "Register", "Unregister"):
            unary[f"{_SERVICE}SystemSharedMemory{verb}"] = calls.shared_memory
            unary[f"{_SERVICE}CudaSharedMemory{verb}"] = calls.gpu_memory
        unary[f"{_HEALTH}Check"] = partial(self._health.check, calls)
        table = {
            path: grpc.stream_unary_rpc_method_handler(_behaviour(calls, path, answer))
            for path, answer in unary.items()
        }
        streamed: dict[str, _Answer] = {
            f"{_SERVICE}ModelStreamInfer": self._stream,
            f"{_HEALTH}Watch": partial(self._health.watch, calls),
        }
        for path, answer in streamed.items():
            behaviour = _behaviour(calls, path, answer)
            table[path] = grpc.stream_stream_rpc_method_handler(behaviour)
        return table

    async def _stream(self, asking: Asking, context: Any) -> None:
        if self._streams is None:
            from meshnode.gateway.grpc_stream import InferStreams

            self._streams = InferStreams(self._calls)
        await self._streams.answer(asking, context)

    _streams: Any = None


class _Handler:
    """Finds what answers a method. grpcio wants the class and only calls `service`."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def service(self, details: Any) -> Any:
        """Return the method's handler; None for one that is not known."""
        return self._find(details.method)


def _behaviour(
    calls: GrpcCalls,
    path: str,
    answer: _Answer,
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def behave(_messages: Any, context: Any) -> Any:
        return await calls.call(path, context, answer)

    return behave


def _options() -> tuple[tuple[str, int], ...]:
    return (
        # Two daemons must not share a port, each with half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.max_concurrent_streams", MAX_GRPC_CALLS_PER_CONNECTION),
        # Calls that came at once wait for their turn to be looked at; by default all above 1000 or so are cancelled
        # unseen. With room for twice what is answered, whoever is too many is told so.
        ("grpc.server.max_pending_requests", 2 * MAX_GRPC_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_GRPC_CALLS),
        ("grpc.server_handshake_timeout_ms", int(1000 * TLS_HANDSHAKE_TIMEOUT_S)),
        ("grpc.keepalive_time_ms", int(1000 * GRPC_KEEPALIVE_S)),
        ("grpc.keepalive_timeout_ms", int(1000 * GRPC_KEEPALIVE_TIMEOUT_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * MIN_GRPC_PING_INTERVAL_S)),
        ("grpc.max_connection_idle_ms", int(1000 * GRPC_IDLE_S)),
    )


def _grpcio() -> Any:
    """Return grpcio, told to keep its own log lines to itself.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ.setdefault(
        "GRPC_VERBOSITY", "NONE"
    )  # it would write to stderr, among the lines of our log
    try:
        import grpc
        import grpc.aio
    except ImportError as error:
        raise ConfigError(
            f"gRPC needs more packages ({error}): pip install 'meshnode[grpc]', or leave gRPC out with --no-grpc"
        ) from error
    return grpc
