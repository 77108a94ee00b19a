"""Carrying out calls on an event loop: as `blocking_calls`, with coroutines."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
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
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from meshnode.client.async_pool import AsyncLiveAnswer, AsyncPool
    from meshnode.client.calls import StreamFlow
    from meshnode.client.endpoints import Target

A = TypeVar("A")
T = TypeVar("T")


class AsyncCalls:
    """The part of `AsyncMeshClient` that does not know what is asked."""

    def __init__(
        self,
        gateways: str | Iterable[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        ca_file: str | None = None,
    ) -> None:
        """Make a client, as `MeshClient(...)` does; no event loop needs to run yet.

        Raises:
            ConfigError: if a URL, the key or a file cannot be used.
        """
        self._start(gateway_target(gateways, api_key, os.environ, ca_file=ca_file), timeout_s)

    @classmethod
    def local(
        cls, data_dir: str | Path | None = None, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    ) -> Self:
        """Return a client of this machine's daemon, as `MeshClient.local` does."""
        option = None if data_dir is None else str(data_dir)
        return cls.of(control_target(default_data_dir(option, os.environ)), timeout_s=timeout_s)

    @classmethod
    async def discover(
        cls,
        *,
        mesh: str | None = None,
        api_key: str | None = None,
        ca_file: str | None = None,
        wait_s: float = 2.0,
        timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
    ) -> Self:
        """Return a client of the gateways that are found on the local network, as `MeshClient.discover` does."""
        from meshnode.client.discovery import find

        return cls.of(
            await find(mesh, api_key, ca_file, checked_timeout_s(wait_s)), timeout_s=timeout_s
        )

    @classmethod
    def of(cls, target: Target, *, timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S) -> Self:
        """Return a client of a target that was made before."""
        client = cls.__new__(cls)
        client._start(target, timeout_s)
        return client

    def _start(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = checked_timeout_s(timeout_s)
        self._rng = random.Random()
        self._gateways = Gateways(len(target.endpoints))
        self._cache = MetadataCache()
        self._closed = False
        self._streams: WeakSet[AsyncStream[Any]] = WeakSet()
        self._pool: AsyncPool | None = None

    def __repr__(self) -> str:
        where = ", ".join(str(endpoint) for endpoint in self._target.endpoints)
        return f"<{type(self).__name__} of {where}{', closed' if self._closed else ''}>"

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Close all connections, those of streams too; no new call begins."""
        self._closed = True
        for stream in list(self._streams):
            await stream.close()
        if self._pool is not None:
            await self._pool.close()

    # What has no method of its own

    async def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """GET a path of the HTTP API and return its JSON document as it came."""
        return await self._ask(get_document(path), timeout_s)

    async def post(
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
        return await self._ask(post_document(path, document, idempotency_key), timeout_s)

    async def put(self, path: str, document: object, *, timeout_s: float | None = None) -> Any:
        """PUT a JSON document and return the answer's; it may be carried out twice."""
        return await self._ask(put_document(path, document), timeout_s)

    async def delete(self, path: str, *, timeout_s: float | None = None) -> Any:
        """DELETE a path and return the answer's document, if it has one; never carried out twice."""
        return await self._ask(delete_document(path), timeout_s)

    async def run(self, flow: Flow[T], *, timeout_s: float | None = None) -> T:
        """Carry out a flow of calls, as `MeshClient.run` does."""
        deadline = None
        if timeout_s is not None:
            deadline = time.monotonic() + checked_timeout_s(timeout_s)
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._carry_out(step, deadline)
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

    async def _ask(self, flow: Flow[T], timeout_s: float | None) -> T:
        return await self.run(flow, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def _seconds(self, timeout_s: float | None) -> float:
        """Return the time of one call: its own, else the client's."""
        return self._timeout_s if timeout_s is None else checked_timeout_s(timeout_s)

    async def _carry_out(self, step: Call | Pause | Blocking, deadline: float | None) -> object:
        match step:
            case Call():
                return await self._call(step, deadline)
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Blocking(function):
                return await asyncio.to_thread(function)

    async def _call(self, call: Call, deadline: float | None) -> Reply:
        sent = keyed(call)
        return await self._tried(sent, deadline, lambda pool, step: pool.attempt(sent, step))

    async def _open(self, call: Call, deadline: float | None) -> AsyncLiveAnswer:
        answer = await self._tried(call, deadline, lambda pool, step: pool.open(call, step))
        if isinstance(answer, Reply):
            raise no_stream(answer)
        return answer

    async def _tried(
        self, call: Call, deadline: float | None, attempt: Callable[[AsyncPool, Try], Awaitable[A]]
    ) -> A:
        """Ask gateways by a plan until one answers."""
        if self._closed:
            raise UsageError("this client was closed; make a new one")
        if self._pool is not None and self._pool.is_elsewhere:
            raise UsageError(
                "this AsyncMeshClient belongs to the event loop in which it was first used; make one "
                "in each loop, that is, within each asyncio.run"
            )
        now = time.monotonic()
        timeout_s = call_timeout_s(call, deadline, self._timeout_s, now)
        plan = call_plan(call, self._gateways, self._target, now, now + timeout_s, self._rng)
        while True:
            match step := plan.next(time.monotonic()):
                case Try(gateway):
                    outcome = await self._try(attempt, step)
                    answer = settle(plan, gateway, outcome, time.monotonic())
                    if answer is not None:
                        return accepted(answer)
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case GiveUp():
                    endpoints = self._target.endpoints
                    raise error_of_end(step, endpoints, timeout_s, f"{call.method} {call.path}")

    async def _try(
        self, attempt: Callable[[AsyncPool, Try], Awaitable[A]], step: Try
    ) -> A | Failure:
        if self._pool is None:
            from meshnode.client.async_pool import AsyncPool

            self._pool = AsyncPool(self._target)
        try:
            answer = await attempt(self._pool, step)
        except TryFailed as failed:
            return failed.failure(step.gateway)
        if isinstance(answer, Reply):
            return failure_of(answer) or answer
        return answer

    def _stream_broke(self, failed: TryFailed, gateway: int) -> None:
        self._gateways.failed(failed.failure(gateway), time.monotonic(), self._rng)


class AsyncStream(AsyncIterator[T]):
    """What comes of a stream, one after the other, for `async for`.

    It holds a connection until its end. Close one that is not read to its end, or use it with `async with`: the
    mesh stops the work. Waiting for a value that is cancelled closes it.
    """

    def __init__(
        self, client: AsyncCalls, flow: StreamFlow[T], timeout_s: float | None = None
    ) -> None:
        """Use the methods of `AsyncMeshClient`; arguments are those of `Stream`."""
        self._client = client
        self._flow = flow
        self._timeout_s = None if timeout_s is None else checked_timeout_s(timeout_s)
        self._deadline: float | None = None
        self._live: AsyncLiveAnswer | None = None
        self._begun = False
        self._closed = False
        self._is_in_use = False

    def __repr__(self) -> str:
        return f"<AsyncStream of {self._client!r}{', open' if self._live else ''}>"

    async def __aenter__(self) -> Self:
        """Return the stream."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def __anext__(self) -> T:
        """Return the next value, as soon as it is there.

        Raises:
            UsageError: if another task reads it at the same time, or closes it meanwhile.
            MeshError: as the method that made the stream says.
        """
        if self._is_in_use:
            await self.close()
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
                    result = await self._carry_out(step)
                except Exception as error:  # noqa: BLE001 - the flow decides what it means
                    step = self._flow.throw(error)
                else:
                    step = self._flow.send(result)
        except BaseException as error:
            was_cut = self._closed and not was_closed and isinstance(error, Exception)
            await self.close()
            if was_cut:
                raise interrupted() from None
            if isinstance(error, StopIteration):
                raise StopAsyncIteration from None
            raise
        finally:
            self._is_in_use = False
        return step.value

    async def close(self) -> None:
        """End it; nothing more comes."""
        self._closed = True
        live, self._live = self._live, None
        if live is not None:
            await live.close()
        with suppress(ValueError):  # another task is in it, and meets the closed connection
            self._flow.close()

    async def _carry_out(self, step: Call | Pause | Blocking | Open | Read) -> object:
        client = self._client
        match step:
            case Open(call):
                live, self._live = self._live, None
                if live is not None:
                    await live.close()
                if self._closed:
                    raise UsageError("this stream was closed; ask for a new one")
                self._live = await client._open(call, self._deadline)
                client._streams.add(self)
                return self._live.head
            case Read():
                assert self._live is not None
                timeout_s = read_timeout_s(step, self._deadline, time.monotonic())
                try:
                    return await self._live.read(timeout_s)
                except TryFailed as failed:
                    # It is the stream's own time that is over, or the gateway that is gone.
                    read_timeout_s(step, self._deadline, time.monotonic())
                    client._stream_broke(failed, self._live.head.gateway)
                    raise
            case _:
                return await client._carry_out(step, self._deadline)
