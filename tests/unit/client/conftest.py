"""Gateways for the client to meet: a real one in this process, and stand-ins that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from meshnode.client.async_mesh import AsyncMeshClient
from meshnode.client.mesh import MeshClient
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.pipeline import Pipeline
from meshnode.gateway.server import HttpServer
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.net.clock import RealClock
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.types import Address, DataType, ReplicaState
from tests.unit.gateway.conftest import ME, FakeControl, FakeLocal, FakePeers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from meshnode.client.endpoints import Target

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Waiting:
    """An `AsyncMeshClient` whose methods wait, so that one suite runs against both clients."""

    def __init__(self, client: AsyncMeshClient, loop: Loop) -> None:
        self.client, self._loop = client, loop

    def __repr__(self) -> str:
        return repr(self.client)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **more: Any) -> Any:
            async def awaited() -> Any:
                return await method(*args, **more)

            return self._loop.run(awaited())

        return call


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture(params=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Callable[..., Any]]:
    """Make a client of URLs, of either kind; it is closed at the end."""
    made: list[Any] = []

    def make(*urls: str, **more: Any) -> Any:
        client: Any
        if request.param == "threads":
            client = MeshClient(urls, **more)
        else:
            client = Waiting(AsyncMeshClient(urls, **more), loop)
        made.append(client)
        return client

    def of(target: Target, **more: Any) -> Any:
        client: Any
        if request.param == "threads":
            client = MeshClient.of(target, **more)
        else:
            client = Waiting(AsyncMeshClient.of(target, **more), loop)
        made.append(client)
        return client

    make.of = of  # type: ignore[attr-defined]
    yield make
    for client in made:
        client.close()


SPECS = (TensorSpec("x", DataType.FP32, (-1, 2)),)


class Gateway:
    """A real gateway before a model `echo` that answers its inputs."""

    def __init__(self, loop: Loop, name: str = "alpha") -> None:
        self._loop = loop
        self.manifest = Manifest(
            "echo", 1, "onnx", "onnxruntime_onnx", SPECS, SPECS, 0, (), "m.onnx"
        )
        self.control = FakeControl({("echo", 1): self.manifest})
        self.local = FakeLocal()
        self.address: Address = loop.run(self._start(name))

    async def _start(self, name: str) -> Address:
        clock = RealClock()
        router = self.router = Router(ME, "eu-west", random.Random(7))
        replica = Replica(
            ME, name, "eu-west", "", "echo", 1, ReplicaState.READY, manifest=self.manifest
        )
        router.replica_changed(replica, clock.now())
        metrics = GatewayMetrics()
        pipeline = Pipeline(ME, router, self.local, FakePeers(), clock, metrics)
        self._server = HttpServer(
            Dispatcher(pipeline, self.control, metrics), metrics, None, grace_s=0.1
        )
        return await self._server.listen_tcp(Address("127.0.0.1", 0))

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def stop(self) -> None:
        self._loop.run(self._server.stop())


@pytest.fixture
def gateway(loop: Loop) -> Iterator[Gateway]:
    running = Gateway(loop)
    yield running
    running.stop()


def http_answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class StandIn:
    """A server of which each connection is handled by the test's own function.

    Attributes:
        behave: Called with each connection and the first request on it; it is closed afterwards.
        requests: Head and body of each request.
    """

    behave: Callable[[socket.socket, bytes], object]
    listener: socket.socket = field(
        default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=64)
    )
    requests: list[bytes] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    lines: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            self.lines.append(line)
            thread = threading.Thread(target=self._serve, args=(line,))
            self.threads.append(thread)
            thread.start()

    def _serve(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            while (request := read_request(line)) and not self.done.is_set():
                self.requests.append(request)
                if self.behave(line, request) is not True:
                    return

    def asked(self, path: str) -> int:
        """How many requests named this path."""
        return sum(f" {path} " in request.split(b"\r\n")[0].decode() for request in self.requests)

    def close(self) -> None:
        self.done.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._acceptor.join(5)
        for line in self.lines:
            with contextlib.suppress(OSError):  # most have ended by themselves
                line.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)


def read_request(line: socket.socket) -> bytes:
    """Read one request; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = line.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    lengths = [
        int(field.split(b":")[1])
        for field in head.lower().split(b"\r\n")
        if field.startswith(b"content-length:")
    ]
    while lengths and len(rest) < lengths[0]:
        rest += line.recv(65536)
    return head + b"\r\n\r\n" + rest


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    """Start servers that behave as a test says, and stop them."""
    started: list[StandIn] = []

    def start(behave: Callable[[socket.socket, bytes], object]) -> StandIn:
        server = StandIn(behave)
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


def answering(*answers: bytes) -> Callable[[socket.socket, bytes], bool]:
    """Answer each request with the next of these, the last one for ever; keep the connection."""
    left = list(answers)

    def behave(line: socket.socket, _request: bytes) -> bool:
        line.sendall(left.pop(0) if len(left) > 1 else left[0])
        return True

    return behave


def reset(line: socket.socket) -> None:
    """End a connection with a reset."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


@pytest.fixture
def refused() -> str:
    """URL of a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def frozen() -> Iterator[str]:
    """URL of a server that accepts connections, as a stopped process does, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path, for a control socket."""
    return tmp_path_factory.mktemp("d")


def took(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
