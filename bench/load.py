"""A closed loop of HTTP clients: wrk where it is installed, else one in Python.

Both keep `connections` keep-alive connections busy for some seconds and return requests/s and
latencies. The Python one takes more of the machine's time from the servers; the report names
which was used.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httptools

_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %f %f %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class LoadResult:
    """Requests per second, latencies in milliseconds, and how many requests failed."""

    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def generator() -> str:
    """Name the load generator that `load` uses here."""
    return "wrk" if shutil.which("wrk") else "python"


def load(port: int, path: str, body: bytes, connections: int, seconds: float) -> LoadResult:
    """POST `body` over `connections` connections to 127.0.0.1 for so long."""
    if generator() == "wrk":
        return _wrk(port, path, body, connections, seconds)
    return asyncio.run(_python(port, path, body, connections, seconds))


def _wrk(port: int, path: str, body: bytes, connections: int, seconds: float) -> LoadResult:
    with tempfile.TemporaryDirectory() as folder:
        payload, script = Path(folder, "body"), Path(folder, "post.lua")
        payload.write_bytes(body)
        script.write_text(_LUA.format(body=payload))
        output = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script),
             f"http://127.0.0.1:{port}{path}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    found = re.search(r"RESULT (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+)", output)
    if found is None:
        raise RuntimeError(f"wrk printed no result:\n{output}")
    requests, duration_us, p50_us, p99_us, errors = (float(text) for text in found.groups())
    return LoadResult(requests / duration_us * 1e6, p50_us / 1e3, p99_us / 1e3, int(errors))


class _Client(asyncio.Protocol):
    def __init__(self, message: bytes, until: float, latencies: list[float]) -> None:
        self._message = message
        self._until = until
        self._latencies = latencies
        self._sent = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.errors = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self._latencies.append(now - self._sent)
        self.errors += self._parser.get_status_code() != 200
        self._parser = httptools.HttpResponseParser(self)
        if now < self._until:
            self._send()
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.errors += exc is not None
        if not self.done.done():
            self.done.set_result(None)


async def _python(
    port: int, path: str, body: bytes, connections: int, seconds: float
) -> LoadResult:
    message = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    latencies: list[float] = []
    begin = time.perf_counter()
    clients = []
    for _ in range(connections):
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: _Client(message, begin + seconds, latencies), "127.0.0.1", port
        )
        clients.append(client)
    for client in clients:
        await client.done
    took = time.perf_counter() - begin
    latencies.sort()
    count = len(latencies)
    return LoadResult(
        count / took,
        latencies[count // 2] * 1e3,
        latencies[min(count - 1, count * 99 // 100)] * 1e3,
        sum(client.errors for client in clients),
    )
