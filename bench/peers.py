"""The servers that ours is measured against, each the least that can answer at all.

    python -m bench.peers MODE PORT [BACKEND_PORT]

Modes: `aiohttp` (an aiohttp handler that runs the ONNX session), `aiohttp-proxy` (an aiohttp
handler that forwards with aiohttp's client), `raw` and `raw-proxy` (the same on asyncio.Protocol
with httptools: no router, no checks, no errors; nothing written in Python is faster).
Body: `{"inputs": [64 numbers]}`; answer: `{"outputs": [[10 numbers]]}`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from importlib.resources import files
from typing import Any

import httptools
import msgspec
import numpy as np
import onnxruntime as ort
import uvloop
from aiohttp import ClientSession, TCPConnector, web


def _session() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    model = files("meshnode.examples.digits").joinpath("digits.onnx").read_bytes()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _answer(session: Any, body: bytes) -> bytes:
    numbers = msgspec.json.decode(body)["inputs"]
    image = np.array(numbers, dtype=np.float32).reshape(-1, 8, 8)
    (probabilities,) = session.run(["probabilities"], {"image": image})
    return msgspec.json.encode({"outputs": probabilities.tolist()})


async def _serve_aiohttp(port: int, backend: int | None) -> None:
    app = web.Application()
    if backend is None:
        session = _session()

        async def handle(request: web.Request) -> web.Response:
            body = _answer(session, await request.read())
            return web.Response(body=body, content_type="application/json")
    else:
        client = ClientSession(connector=TCPConnector(limit=0))
        url = f"http://127.0.0.1:{backend}/"

        async def handle(request: web.Request) -> web.Response:
            async with client.post(url, data=await request.read()) as answer:
                return web.Response(
                    body=await answer.read(), content_type="application/json", status=answer.status
                )

    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class _RawServer(asyncio.Protocol):
    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._body = b""
        self.transport: Any = None
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self._handle(self, body)

    def answer(self, body: bytes) -> None:
        self.transport.write(_HEAD % (len(body), body))


class _RawClient(asyncio.Protocol):
    def __init__(self, pool: deque[_RawClient]) -> None:
        self._pool = pool
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)
        self._server: _RawServer | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, server: _RawServer, body: bytes) -> None:
        self._server = server
        head = b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        self._transport.write(head)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self._parser = httptools.HttpResponseParser(self)
        assert self._server is not None
        self._server.answer(body)
        self._pool.append(self)


async def _serve_raw(port: int, backend: int | None) -> None:
    loop = asyncio.get_running_loop()
    pool: deque[_RawClient] = deque()
    tasks: set[asyncio.Task[None]] = set()
    if backend is None:
        session = _session()

        def handle(server: _RawServer, body: bytes) -> None:
            server.answer(_answer(session, body))
    else:

        async def connect(server: _RawServer, body: bytes) -> None:
            _, client = await loop.create_connection(lambda: _RawClient(pool), "127.0.0.1", backend)
            client.send(server, body)

        def handle(server: _RawServer, body: bytes) -> None:
            if pool:
                pool.pop().send(server, body)
            else:
                task = loop.create_task(connect(server, body))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    server = await loop.create_server(lambda: _RawServer(handle), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    mode, port = sys.argv[1], int(sys.argv[2])
    backend = int(sys.argv[3]) if len(sys.argv) > 3 else None
    serve = _serve_aiohttp if mode.startswith("aiohttp") else _serve_raw
    uvloop.run(serve(port, backend))
