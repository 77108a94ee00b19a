"""Carrying out calls from threads: connections, failover, and flows of calls, without a word of what is asked."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakSet

from meshnode.client.calls import (
    Blocking,
    Call,
    Emit,
    Flow,
    Open,
    Pause,
    Read,
    Reply,
    delete_document,
    get_document,
    post_document,
    put_document,
)
from meshnode.client.driving import (
    accepted,
    call_plan,
    call_timeout_s,
    checked_timeout_s,
    interrupted,
    keyed,
    no_stream,
    read_timeout_s,
    settle,
    tls_context,
)
from meshnode.client.endpoints import control_target, gateway_target
from meshnode.client.infer import MetadataCache
from meshnode.client.paths import data_dir as default_data_dir
from meshnode.client.plan import Failure, Gateways, GiveUp, Try, Wait
from meshnode.client.replies import error_of_end, failure_of
from meshnode.client.tries import TryFailed
from meshnode.errors import UsageError
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from meshnode.client.calls import StreamFlow
    from meshnode.client.endpoints import Target
    from meshnode.client.pool import LiveAnswer, Pool

A = TypeVar("A")
T = TypeVar("T")


class BlockingCalls:
    """The part of `MeshClient` that does not know what is asked."""

    def __init__(
        self,
        gateways: str | Iterable[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        ca_file: str | None = None,
    ) -> None:
        """Make a client; nothing is connected before the first call.

        Args:
            gateways: URLs, such as `http://192.0.2.7:8470`, in the order of preference. Without any,
                those of `MESHNODE_URL` or `MESHNODE_GATEWAY` (separated by commas), else `http://127.0.0.1:8470`.
            api_key: An API key; else that of `MESHNODE_API_KEY`, or in the file that
                `MESHNODE_API_KEY_FILE` names. A gateway on this machine needs none to infer and read.
            timeout_s: Seconds for each call, unless the call says otherwise.
            ca_file: File of certificates (PEM) to trust for `https`, instead of the system's; else the
                one that `MESHNODE_CA_FILE` names.

        Raises:
            ConfigError: if a URL, the key or a file cannot be used.
        """
        self._start(gateway_target(gateways, api_key, os.environ, ca_file=ca_file), timeout_s)

    @classmethod
    def local(
        cls, data_dir: str | Path | None = None, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    ) -> Self:
        """Return a client of this machine's daemon, as its owner: it may do everything, without a key.

        It talks over the control channel, which only the daemon's owner can open, and holds nothing
        open between calls.

        Args:
            data_dir: The daemon's data folder; else `MESHNODE_DATA_DIR`, else the platform's.
            timeout_s: Seconds for each call, unless the call says otherwise.
        """
        option = None if data_dir is None else str(data_dir)
        return cls.of(control_target(default_data_dir(option, os.environ)), timeout_s=timeout_s)

    @classmethod
    def discover(
        cls,
        *,
        mesh: str | None = None,
        api_key: str | None = None,
        ca_file: str | None = None,
        wait_s: float = 2.0,
        timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
    ) -> Self:
        """Return a client of the gateways that are found on the local network by mDNS.

        Where `MESHNODE_URL` or `MESHNODE_GATEWAY` names gateways, those are used and nobody is looked for. Anybody may
        announce a gateway, so an API key goes only to those that prove by a certificate who they are (`https`);
        without a key only gateways on this machine are used.

        Args:
            mesh: The id of the mesh, or its beginning, where there may be several.
            api_key: As for the constructor.
            ca_file: As for the constructor.
            wait_s: Seconds to listen for nodes.
            timeout_s: Seconds for each call, unless the call says otherwise.

        Raises:
            ConfigError: if no gateway is found that can be used, or there are several meshes.
        """
        from meshnode.client.discovery import find_blocking

        return cls.of(
            find_blocking(mesh, api_key, ca_file, checked_timeout_s(wait_s)), timeout_s=timeout_s
        )

    @classmethod
    def of(cls, target: Target, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S) -> Self:
        """Return a client of a target that was made before."""
        client = cls.__new__(cls)
        client._start(target, timeout_s)
        return client

    def _start(self, target: Target, timeout_s: float) -> None:
        # Sockets, HTTP and TLS are a third of the import, and no concern of an `AsyncMeshClient`.
        from meshnode.client.pool import Pool

        self._target = target
        self._timeout_s = checked_timeout_s(timeout_s)
        self._rng = random.Random()
        self._gateways = Gateways(len(target.endpoints))
        self._cache = MetadataCache()
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._closed = False
        self._streams: WeakSet[Stream[Any]] = WeakSet()
        key = target.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pools: list[Pool] = [
            Pool(index, endpoint, headers, self._context)
            for index, endpoint in enumerate(target.endpoints)
        ]

    def __repr__(self) -> str:
        where = ", ".join(str(endpoint) for endpoint in self._target.endpoints)
        return f"<{type(self).__name__} of {where}{', closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the idle connections and the streams; calls that run finish, and no new one begins."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        for pool in self._pools:
            pool.close()

    # What has no method of its own

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """GET a path of the HTTP API and return its JSON document as it came."""
        return self._ask(get_document(path), timeout_s)

    def post(
        self,
        path: str,
        document: object,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """POST a JSON document and return the answer's; never carried out twice.

        Args:
            path: As it is sent.
            document: The body.
            idempotency_key: Text under which the mesh carries out the same request only once, however often it is
                sent; None for a request without.
            timeout_s: Seconds for the call.
        """
        return self._ask(post_document(path, document, idempotency_key), timeout_s)

    def put(self, path: str, document: object, *, timeout_s: float | None = None) -> Any:
        """PUT a JSON document and return the answer's; it may be carried out twice."""
        return self._ask(put_document(path, document), timeout_s)

    def delete(self, path: str, *, timeout_s: float | None = None) -> Any:
        """DELETE a path and return the answer's document, if it has one; never carried out twice."""
        return self._ask(delete_document(path), timeout_s)

    def run(self, flow: Flow[T], *, timeout_s: float | None = None) -> T:
        """Carry out a flow of calls.

        Args:
            flow: From the modules of this package.
            timeout_s: Seconds for all of it; None where only each call is limited.
        """
        deadline = None
        if timeout_s is not None:
            deadline = time.monotonic() + checked_timeout_s(timeout_s)
        try:
            step = next(flow)
            while True:
                try:
                    result = self._carry_out(step, deadline)
                except Exception as error:  # noqa: BLE001 - the flow decides what it means
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            returned: T = end.value
            return returned
        finally:
            flow.close()

    # Inside

    def _ask(self, flow: Flow[T], timeout_s: float | None) -> T:
        return self.run(flow, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def _seconds(self, timeout_s: float | None) -> float:
        """Return the time of one call: its own, else the client's."""
        return self._timeout_s if timeout_s is None else checked_timeout_s(timeout_s)

    def _carry_out(self, step: Call | Pause | Blocking, deadline: float | None) -> object:
        match step:
            case Call():
                return self._call(step, deadline)
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Blocking(function):
                return function()

    def _call(self, call: Call, deadline: float | None) -> Reply:
        sent = keyed(call)
        return self._tried(sent, deadline, lambda pool, step: pool.attempt(sent, step))

    def _open(self, call: Call, deadline: float | None) -> LiveAnswer:
        answer = self._tried(call, deadline, lambda pool, step: pool.open(call, step))
        if isinstance(answer, Reply):
            raise no_stream(answer)
        return answer

    def _tried(self, call: Call, deadline: float | None, attempt: Callable[[Pool, Try], A]) -> A:
        """Ask gateways by a plan until one answers."""
        if self._closed:
            raise UsageError("this client was closed; make a new one")
        now = time.monotonic()
        timeout_s = call_timeout_s(call, deadline, self._timeout_s, now)
        plan = call_plan(call, self._gateways, self._target, now, now + timeout_s, self._rng)
        while True:
            with self._lock:
                step = plan.next(time.monotonic())
            match step:
                case Try(gateway):
                    outcome = self._try(attempt, step)
                    with self._lock:
                        answer = settle(plan, gateway, outcome, time.monotonic())
                    if answer is not None:
                        return accepted(answer)
                case Wait(seconds):
                    time.sleep(seconds)
                case GiveUp():
                    endpoints = self._target.endpoints
                    raise error_of_end(step, endpoints, timeout_s, f"{call.method} {call.path}")

    def _try(self, attempt: Callable[[Pool, Try], A], step: Try) -> A | Failure:
        try:
            answer = attempt(self._pools[step.gateway], step)
        except TryFailed as failed:
            return failed.failure(step.gateway)
        if isinstance(answer, Reply):
            return failure_of(answer) or answer
        return answer

    def _stream_broke(self, failed: TryFailed, gateway: int) -> None:
        with self._lock:
            self._gateways.failed(failed.failure(gateway), time.monotonic(), self._rng)

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = tls_context(self._target)
            return self._tls


class Stream(Iterator[T]):
    """What comes of a stream, one after the other: a value for each `next`.

    It holds a connection until its end. Close one that is not read to its end, or use it with `with`: the mesh
    stops the work. It is for one thread.
    """

    def __init__(
        self, client: BlockingCalls, flow: StreamFlow[T], timeout_s: float | None = None
    ) -> None:
        """Use the methods of `MeshClient`; nothing is asked before the first `next`.

        Args:
            client: Carries out the calls.
            flow: Emits the values.
            timeout_s: Seconds until its end, from the first `next`; None for no limit.
        """
        self._client = client
        self._flow = flow
        self._timeout_s = None if timeout_s is None else checked_timeout_s(timeout_s)
        self._deadline: float | None = None
        self._live: LiveAnswer | None = None
        self._begun = False
        self._closed = False
        self._is_in_use = False

    def __repr__(self) -> str:
        return f"<Stream of {self._client!r}{', open' if self._live else ''}>"

    def __enter__(self) -> Self:
        """Return the stream."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        """Close the connection of one that was dropped, as a generator's would be."""
        live = getattr(self, "_live", None)  # its making may have failed
        if live is not None:
            live.close()

    def __next__(self) -> T:
        """Return the next value, as soon as it is there.

        Raises:
            UsageError: if another thread reads it at the same time, or closes it meanwhile.
            MeshError: as the method that made the stream says.
        """
        if self._is_in_use:
            self.close()
            raise interrupted()
        self._is_in_use = True
        was_closed = self._closed
        if not self._begun:
            self._begun = True
            if self._timeout_s is not None:
                self._deadline = time.monotonic() + self._timeout_s
        try:
            step = next(self._flow)
            while not isinstance(step, Emit):
                try:
                    result = self._carry_out(step)
                except Exception as error:  # noqa: BLE001 - the flow decides what it means
                    step = self._flow.throw(error)
                else:
                    step = self._flow.send(result)
        except BaseException as error:
            was_cut = self._closed and not was_closed and isinstance(error, Exception)
            self.close()
            if was_cut:
                raise interrupted() from None
            raise
        finally:
            self._is_in_use = False
        return step.value

    def close(self) -> None:
        """End it; nothing more comes."""
        self._closed = True
        live, self._live = self._live, None
        if live is not None:
            live.close()
        with suppress(ValueError):  # another thread is in it, and meets the closed connection
            self._flow.close()

    def _carry_out(self, step: Call | Pause | Blocking | Open | Read) -> object:
        client = self._client
        match step:
            case Open(call):
                live, self._live = self._live, None
                if live is not None:
                    live.close()
                if self._closed:
                    raise UsageError("this stream was closed; ask for a new one")
                self._live = client._open(call, self._deadline)
                client._streams.add(self)
                return self._live.head
            case Read():
                assert self._live is not None
                timeout_s = read_timeout_s(step, self._deadline, time.monotonic())
                try:
                    return self._live.read(timeout_s)
                except TryFailed as failed:
                    # It is the stream's own time that is over, or the gateway that is gone.
                    read_timeout_s(step, self._deadline, time.monotonic())
                    client._stream_broke(failed, self._live.head.gateway)
                    raise
            case _:
                return client._carry_out(step, self._deadline)
