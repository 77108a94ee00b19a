"""The connections of a client to one gateway, shared by threads and kept between calls."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from meshnode.client.calls import Message
from meshnode.client.connection import Stale, Watch, connect
from meshnode.client.plan import Fault, Try
from meshnode.client.tries import LIVENESS_PATH, TryFailed
from meshnode.errors import MeshError
from meshnode.limits import CLIENT_IDLE_S, MAX_CLIENT_CONNECTIONS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from meshnode.client.calls import Call, Reply
    from meshnode.client.connection import Connection
    from meshnode.client.endpoints import Endpoint


class Pool:
    """Connections to one gateway: as many as calls run, up to a limit, the idle ones kept a while.

    A control channel's are closed after each call, so that a client of one holds nothing in between
    and outlives a restart of its daemon.
    """

    def __init__(
        self,
        gateway: int,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        """Make an empty pool.

        Args:
            gateway: Its index among the client's gateways.
            endpoint: Where it is.
            headers: Sent with every request.
            context: Returns the TLS settings.
        """
        self._gateway = gateway
        self._endpoint = endpoint
        self._headers = headers
        self._context = context
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CLIENT_CONNECTIONS)
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool of {self._endpoint}, {len(self._idle)} idle>"

    def close(self) -> None:
        """Close what is idle; what is in use is closed after its call."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def attempt(self, call: Call, step: Try) -> Reply:
        """Ask the gateway once.

        Args:
            call: The call. One that must not be repeated gets a fresh connection: on one that was kept
                nobody can tell whether a request that got no answer was read.
            step: The times that it has.

        Raises:
            TryFailed: if there is no answer.
            MeshError: if no gateway could do better.
        """
        message = call.message(step.timeout_s)
        watch = Watch(step, self._is_alive)
        if not self._slots.acquire(timeout=step.timeout_s):
            raise TryFailed(
                Fault.UNREACHABLE, f"all {MAX_CLIENT_CONNECTIONS} connections to it are in use"
            )
        try:
            while call.repeatable and (kept := self._take()) is not None:
                try:
                    return self._exchange(kept, call, message, watch)
                except Stale:
                    continue
            return self._exchange(
                connect(self._endpoint, self._context, watch), call, message, watch
            )
        finally:
            self._slots.release()

    def _exchange(
        self, connection: Connection, call: Call, message: Message, watch: Watch
    ) -> Reply:
        reusable = False
        try:
            reply, reusable = connection.exchange(
                call.method, call.path, self._headers, message, watch, self._gateway
            )
        finally:
            if not reusable or not self._put(connection):
                connection.close()
        return reply

    def _take(self) -> Connection | None:
        """Return the connection that was used last and still stands."""
        oldest = time.monotonic() - CLIENT_IDLE_S
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.idle_since >= oldest and not connection.is_stale:
                return connection
            connection.close()

    def _put(self, connection: Connection) -> bool:
        """Keep a connection; return whether it was."""
        connection.idle_since = time.monotonic()
        with self._lock:
            if self._closed or self._endpoint.control is not None:
                return False
            self._idle.append(connection)
        return True

    def _is_alive(self, timeout_s: float) -> bool:
        """Whether the gateway answers anything at all on another connection."""
        step = Try(self._gateway, timeout_s, timeout_s, None, timeout_s)
        watch = Watch(step, lambda _: False)
        try:
            connection = connect(self._endpoint, self._context, watch)
        except (TryFailed, MeshError):
            return False
        try:
            connection.exchange("GET", LIVENESS_PATH, self._headers, Message({}), watch, 0)
        except (TryFailed, MeshError):
            return False
        finally:
            connection.close()
        return True
