"""The connections of a client to one gateway, shared by threads and kept between calls."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from meshnode.client.calls import Message, Reply
from meshnode.client.connection import Stale, Watch, connect
from meshnode.client.event_stream import is_event_stream
from meshnode.client.plan import Fault, Try
from meshnode.client.tries import LIVENESS_PATH, TryFailed
from meshnode.errors import MeshError
from meshnode.limits import (
    CLIENT_IDLE_S,
    CLIENT_PROBE_TIMEOUT_S,
    CLIENT_STREAM_LOOK_S,
    MAX_CLIENT_CONNECTIONS,
    MAX_CLIENT_SILENCE_S,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from meshnode.client.calls import Call
    from meshnode.client.connection import Answer, Connection
    from meshnode.client.endpoints import Endpoint


class LiveAnswer:
    """A stream that a gateway has begun to send.

    Attributes:
        head: Its status and headers, as a reply without a body.
    """

    def __init__(
        self,
        head: Reply,
        answer: Answer,
        release: Callable[[], object],
        is_alive: Callable[[float], bool] | None,
    ) -> None:
        """Use `Pool.open`; without `is_alive` only silence ends it."""
        self.head = head
        self._answer = answer
        self._is_alive = is_alive
        self._look_s = CLIENT_STREAM_LOOK_S
        self._release: Callable[[], object] | None = release

    def __repr__(self) -> str:
        return f"<LiveAnswer of {self.head.url}>"

    def read(self, timeout_s: float) -> bytes:
        """Return the next bytes, as soon as there are some; empty at the end.

        Raises:
            TryFailed: if the stream breaks off, nothing comes in so many seconds, or nothing comes and the gateway
                gives no sign of life.
        """
        look_s = self._look_s if self._is_alive is not None else None
        step = Try(self.head.gateway, timeout_s, timeout_s, look_s, CLIENT_PROBE_TIMEOUT_S)
        return self._answer.read(Watch(step, self._look))

    def _look(self, timeout_s: float) -> bool:
        assert self._is_alive is not None
        self._look_s = min(2 * self._look_s, MAX_CLIENT_SILENCE_S)
        return self._is_alive(timeout_s)

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        release, self._release = self._release, None
        if release is not None:
            self._answer.close()
            release()


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
        self._acquire(step)
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

    def open(self, call: Call, step: Try) -> Reply | LiveAnswer:
        """Ask the gateway for a stream once, on a connection of its own.

        Args:
            call: The call.
            step: The times that it has until the stream begins.

        Returns:
            The stream, which must be closed; or the whole answer if it is none.

        Raises:
            TryFailed: if there is no answer.
            MeshError: if no gateway could do better.
        """
        message = call.message(step.timeout_s)
        watch = Watch(step, self._is_alive)
        self._acquire(step)
        connection: Connection | None = None
        try:
            connection = connect(self._endpoint, self._context, watch)
            answer = connection.begin(call.method, call.path, self._headers, message, watch)
            if is_event_stream(answer.status, answer.headers):
                head = Reply(answer.status, answer.headers, b"", self._gateway, str(self._endpoint))
                is_alive = None if step.silence_s is None else self._is_alive
                return LiveAnswer(head, answer, self._slots.release, is_alive)
            reply = answer.complete(self._gateway)
        except BaseException:
            self._slots.release()
            if connection is not None:
                connection.close()
            raise
        self._slots.release()
        connection.close()
        return reply

    def _acquire(self, step: Try) -> None:
        if not self._slots.acquire(timeout=step.timeout_s):
            raise TryFailed(
                Fault.UNREACHABLE, f"all {MAX_CLIENT_CONNECTIONS} connections to it are in use"
            )

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
