"""aiohttp on the virtual loop: its server as it is, its client through `VirtualConnector`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from meshnode.sim.virtual.connector import VirtualConnector
from meshnode.sim.virtual.tls import StandInContext
from tests.unit.sim.virtual.chatter import chatter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.sim.virtual.loop import VirtualLoop

Session = aiohttp.ClientSession


async def _serve(tls: Any = None) -> None:
    """Listen at port 8080: an echo, a stream, something slow, a websocket."""

    was_cancelled = asyncio.Event()

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for number in range(5):
            await answer.write(f"{number} ".encode())
            await asyncio.sleep(1)
        return answer

    async def slow(request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            was_cancelled.set()
            raise
        return web.Response()

    async def cancelled(request: web.Request) -> web.Response:
        return web.Response(text=str(was_cancelled.is_set()))

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse(heartbeat=2)
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(f"{message.data}!")
        return answer

    app = web.Application()
    app.router.add_post("/echo", echo)
    app.router.add_get("/stream", stream)
    app.router.add_get("/slow", slow)
    app.router.add_get("/cancelled", cancelled)
    app.router.add_get("/socket", socket)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 8080, ssl_context=tls).start()


@pytest.fixture
def ask(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> Callable[[Callable[[Session], Coroutine[Any, Any, Any]]], Any]:
    """Run something with a session of `far`, while `near` serves."""
    loop.run_until_complete(near.run(_serve()))

    async def with_session(work: Callable[[Session], Any]) -> Any:
        async with aiohttp.ClientSession("http://near:8080", connector=VirtualConnector()) as made:
            return await work(made)

    return lambda work: loop.run_until_complete(far.run(with_session(work)))


def test_requests_of_all_sizes_come_back_over_one_connection(ask: Any, far: VirtualHost) -> None:
    async def work(session: Session) -> list[int]:
        sizes = []
        for size in (0, 1, 1000, 3_000_000 // 4):
            async with session.post("/echo", data=b"x" * size) as answer:
                sizes.append(len(await answer.read()))
        assert len(far.kernel.ends) == 1
        return sizes

    assert ask(work) == [0, 1, 1000, 750_000]


def test_a_stream_comes_piece_by_piece(ask: Any, loop: VirtualLoop) -> None:
    async def work(session: Session) -> list[tuple[bytes, int]]:
        began = loop.time()
        async with session.get("/stream") as answer:
            return [(piece, int(loop.time() - began)) async for piece in answer.content.iter_any()]

    assert ask(work) == [(f"{number} ".encode(), number) for number in range(5)]


def test_a_websocket_talks_and_closes(ask: Any) -> None:
    async def work(session: Session) -> list[str]:
        async with session.ws_connect("/socket") as socket:
            await socket.send_str("one")
            first = await socket.receive_str()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await socket.receive()  # heartbeats keep it
            await socket.send_str("two")
            return [first, await socket.receive_str()]

    assert ask(work) == ["one!", "two!"]


def test_a_client_that_gives_up_cancels_the_handler(ask: Any, loop: VirtualLoop) -> None:
    async def work(session: Session) -> tuple[float, str]:
        began = loop.time()
        with pytest.raises(TimeoutError):
            await session.get("/slow", timeout=aiohttp.ClientTimeout(total=2.5))
        took_s = loop.time() - began
        await asyncio.sleep(1)
        async with session.get("/cancelled") as answer:
            return took_s, await answer.text()

    assert ask(work) == (pytest.approx(2.5, abs=0.01), "True")


def test_a_cancelled_request_leaves_no_connection(
    ask: Any, loop: VirtualLoop, far: VirtualHost
) -> None:
    async def work(session: Session) -> int:
        task = asyncio.create_task(session.get("/slow"))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(1)
        return len(far.kernel.ends)

    assert ask(work) == 0


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    ask: Any, loop: VirtualLoop, far: VirtualHost
) -> None:
    async def work(session: Session) -> list[float]:
        took = []
        for pause_s in (0, 1, 20):
            await asyncio.sleep(pause_s)
            began = loop.time()
            async with session.post("/echo", data=b"x") as answer:
                await answer.read()
            took.append(loop.time() - began)
        return took

    first, kept, again = ask(work)
    assert kept == pytest.approx(0.08, rel=0.2)
    assert first == pytest.approx(0.16, rel=0.2)
    assert again == pytest.approx(0.16, rel=0.2)


def test_a_crash_in_the_middle_is_an_error_of_the_client(
    ask: Any, loop: VirtualLoop, near: VirtualHost
) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.1)

    async def work(session: Session) -> None:
        loop.after(0.5, near.crash)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.post("/echo", data=dripping())
        with pytest.raises(aiohttp.ClientConnectorError, match="near:8080"):
            await session.get("/slow")
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await session.get("http://nobody/")

    ask(work)


def test_https_works_with_the_stand_in(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def work() -> bytes:
        async with (
            aiohttp.ClientSession(connector=VirtualConnector(ssl=StandInContext())) as session,
            session.post("https://near:8080/echo", data=b"hello") as answer,
        ):
            return await answer.read()

    loop.run_until_complete(near.run(_serve(StandInContext(b"der", server_side=True))))
    assert loop.run_until_complete(far.run(work())) == b"hello"


# One seed, one trace.


def test_a_seed_gives_one_trace_whatever_the_hash_seed_and_whoever_starts_it() -> None:
    here = chatter(7)
    code = "import sys; from tests.unit.sim.virtual.chatter import chatter; print(chatter(int(sys.argv[1])))"
    root = Path(__file__).parents[4]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, "7"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "12345")
    ]
    assert {process.communicate()[0].strip() for process in running} == {here}
    assert chatter(7) == here
    assert chatter(8) != here
