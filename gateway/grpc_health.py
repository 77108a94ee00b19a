"""`grpc.health.v1.Health`: what load balancers and orchestrators ask of a gRPC server.

Its two messages are so small that they are read and written here: the package that has them compiled is one
more for its users to install. A request has the service's name in field 1, an answer the state in field 1.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import InvalidRequest, NotFound
from meshnode.gateway.caller_shares import CallerShares
from meshnode.limits import HEALTH_WATCH_INTERVAL_S, MAX_GRPC_STREAMS_PER_CALLER

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.grpc_calls import Asking, GrpcCalls

_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"
_SERVICE_UNKNOWN: Final = b"\x08\x03"

_SERVICES: Final = frozenset({"", "inference.GRPCInferenceService"})
"""What can be asked about; the empty name is the server as a whole."""


class Health:
    """Answers whether this node serves."""

    def __init__(self, is_ready: Callable[[], bool], leaving: asyncio.Event) -> None:
        """Answer by these.

        Args:
            is_ready: Whether the node is in its mesh.
            leaving: Set when it leaves.
        """
        self._is_ready = is_ready
        self._leaving = leaving
        self._watches = CallerShares(MAX_GRPC_STREAMS_PER_CALLER)

    def __repr__(self) -> str:
        return f"<Health: {'serving' if self._state() is _SERVING else 'not serving'}>"

    async def check(self, calls: GrpcCalls, asking: Asking, context: Any) -> bytes:
        """Answer `Check`.

        Raises:
            NotFound: for another service's name.
        """
        data, held = await calls.read_only(asking, context)
        held.end()
        name = service_in(data)
        if name not in _SERVICES:
            raise NotFound(
                f"there is no service {name[:100]!r} here; ask for '' or {max(_SERVICES)!r}"
            )
        return self._state()

    async def watch(self, calls: GrpcCalls, asking: Asking, context: Any) -> None:
        """Answer `Watch`: the state now, and each other one that follows.

        Raises:
            Saturated: if the caller has too many open.
        """
        with self._watches.one_of(asking.caller):
            data, held = await calls.read_only(asking, context)
            held.end()
            await self._watched(service_in(data) in _SERVICES, context)

    async def _watched(self, is_known: bool, context: Any) -> None:
        told = b""
        while not self._leaving.is_set():
            state = self._state() if is_known else _SERVICE_UNKNOWN
            if state != told:
                await context.write(state)
                told = state
            try:
                async with asyncio.timeout(HEALTH_WATCH_INTERVAL_S):
                    await self._leaving.wait()
            except TimeoutError:
                continue
        if is_known and told != _NOT_SERVING:
            await context.write(_NOT_SERVING)

    def _state(self) -> bytes:
        return _SERVING if self._is_ready() and not self._leaving.is_set() else _NOT_SERVING


def service_in(message: bytes) -> str:
    """Return the name in a `HealthCheckRequest`.

    Raises:
        InvalidRequest: if the bytes are none, or have more than that.
    """
    if not message:
        return ""
    length = message[1] if len(message) > 1 else 0
    if message[0] != 0x0A or length > 0x7F or len(message) != 2 + length:
        raise InvalidRequest("the message is no HealthCheckRequest with a service's name")
    try:
        return message[2:].decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("the service's name is not UTF-8") from error
