"""Asks an ASGI application (FastAPI, a Starlette response) in this process, without a server."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from meshnode.errors import InferenceFailed
from meshnode.models.http_calls import HttpHead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    from meshnode.models.http_calls import HttpCall

    Message = MutableMapping[str, Any]
    Application = Callable[
        [
            MutableMapping[str, Any],
            Callable[[], Awaitable[Message]],
            Callable[[Message], Awaitable[None]],
        ],
        Awaitable[None],
    ]

_WAITING_MESSAGES = 4  # of an answer that is read more slowly than it is made
_after: set[asyncio.Future[None]] = set()  # what applications do when their answer is complete


def scope_of(call: HttpCall) -> dict[str, Any]:
    """Return what ASGI calls a connection's scope."""
    headers = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in call.headers
    ]
    headers.append((b"content-length", str(memoryview(call.body).nbytes).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": quote(call.path).encode(),
        "query_string": call.query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": ("meshnode", 80),
        "state": {},
    }


class _Exchange:
    """One request and the answer to it, as ASGI's two functions see them."""

    def __init__(self, call: HttpCall) -> None:
        self.answer: asyncio.Queue[HttpHead | bytes | None] = asyncio.Queue(_WAITING_MESSAGES)
        self.gone = asyncio.Event()
        self.is_complete = False
        self._body: bytes | None = bytes(call.body)

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            pairs = tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in message.get("headers", ())
            )
            await self.answer.put(HttpHead(int(message["status"]), pairs))
        elif message["type"] == "http.response.body":
            if message.get("body"):
                await self.answer.put(bytes(message["body"]))
            if not message.get("more_body"):
                self.is_complete = True
                await self.answer.put(None)

    async def run(self, application: Application, call: HttpCall) -> None:
        try:
            await application(scope_of(call), self.receive, self.send)
        finally:
            if not self.is_complete and not self.gone.is_set():
                await self.answer.put(None)


async def ask(application: Application, call: HttpCall) -> AsyncIterator[HttpHead | bytes]:
    """Yield an application's answer: its head once, then pieces of its body.

    Closing the iterator tells the application that the client is gone, and cancels it. What it does after
    its answer (background tasks) is not waited for.

    Raises:
        InferenceFailed: if it ends before its answer does.
        Exception: what it raises before its answer is complete.
    """
    exchange = _Exchange(call)
    task = asyncio.ensure_future(exchange.run(application, call))
    try:
        while (item := await exchange.answer.get()) is not None:
            yield item
        if not exchange.is_complete:
            await task
            raise InferenceFailed("the endpoint ended before its answer did")
    finally:
        exchange.gone.set()
        if exchange.is_complete:
            _after.add(task)
            task.add_done_callback(_ended)
        else:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _ended(task: asyncio.Future[None]) -> None:
    _after.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)  # into the model's log
