"""Asking an ASGI application in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshnode.errors import InferenceFailed
from meshnode.models.http_calls import HttpCall, HttpHead
from meshnode.models.workers.asgi import ask

CALL = HttpCall("POST", "/a b", "q=1", (("x-a", "1"),), b"body")


async def items(application: Any, call: HttpCall = CALL) -> list[HttpHead | bytes]:
    return [item async for item in ask(application, call)]


async def test_an_application_sees_the_request_and_its_answer_comes_in_pieces() -> None:
    seen: list[Any] = []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["method"], scope["path"], scope["query_string"], dict(scope["headers"])))
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 201, "headers": [(b"X-B", b"2")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    assert await items(echo) == [HttpHead(201, (("x-b", "2"),)), b"one", b"two"]
    headers = {b"x-a": b"1", b"content-length": b"4"}
    assert seen == [("POST", "/a b", b"q=1", headers), b"body"]


async def test_what_an_application_raises_is_raised() -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await items(broken)


async def test_an_answer_without_an_end_has_failed() -> None:
    async def half(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with pytest.raises(InferenceFailed, match="before its answer did"):
        await items(half)


async def test_closing_an_answer_tells_the_application_and_waits_until_it_has_ended() -> None:
    said: list[str] = []

    async def endless(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            said.append((await receive())["type"])

    answer = ask(endless, CALL)
    assert await anext(answer) == HttpHead(200)
    assert await anext(answer) == b"x"
    await answer.aclose()  # type: ignore[attr-defined]
    assert said == ["http.disconnect"]


async def test_what_follows_a_complete_answer_is_not_waited_for() -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def with_background(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
        await go.wait()
        done.set()

    assert await items(with_background) == [HttpHead(200), b"x"]
    assert not done.is_set()
    go.set()
    async with asyncio.timeout(5):
        await done.wait()
