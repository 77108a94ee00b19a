"""Two event loops in one process, each a node: what crosses between them takes its time."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.net.clock import RealClock
from meshnode.net.sockets import bind
from meshnode.net.tls import client_tls, server_tls
from meshnode.sim.impairments import Impairment
from meshnode.sim.network import Network, NetworkConfig
from meshnode.sim.node_clock import NodeClock
from meshnode.sim.processes.loop import WiredLoop
from meshnode.sim.processes.ports import choose_ports
from meshnode.sim.processes.whereabouts import LOOPBACK, Whereabouts
from meshnode.sim.processes.wires import Wires
from meshnode.types import Address

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

RTT_S = 0.08


class Side:
    """A node's loop in a thread of its own."""

    def __init__(self, name: str, ports: dict[int, str], file: Path) -> None:
        self.clock = NodeClock(RealClock())
        self.network = Network(NetworkConfig(far_rtt_s=RTT_S, jitter=0.0), random.Random(1))
        for each in ports.values():
            self.network.place(each, f"region of {each}")
        self.loop = WiredLoop(self.clock)
        self.loop.wires = Wires(
            name, self.network, Whereabouts(file, ports, name), lambda: self.clock.rate
        )
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def change(self, call: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(call()))
        return done.result(10)

    def close(self) -> None:
        async def end() -> None:
            assert self.loop.wires is not None
            for wire in tuple(self.loop.wires._streams):
                wire.transport.abort()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)  # transports say a turn later that they are closed

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        assert self.loop.wires is not None
        self.loop.wires.whereabouts.close()


class Pair:
    """Node a dials, node b answers."""

    def __init__(self, folder: Path) -> None:
        first, self._guard = choose_ports(2, 0)
        self.a_address = Address(LOOPBACK, first + 1)
        self.address = Address(LOOPBACK, first + 2)
        ports = {first + 1: "a", first + 2: "b"}
        Whereabouts.make_file(folder / "ports")
        self.a = Side("a", ports, folder / "ports")
        self.b = Side("b", ports, folder / "ports")

    def cut(self) -> Callable[[], None]:
        """Cut both ends off; what is returned mends it."""
        sides = (self.a, self.b)
        cut = Impairment(cut=True)
        laid = [side.change(partial(side.network.impair, cut, "a", "b")) for side in sides]

        def mend() -> None:
            for side, rule in zip(sides, laid, strict=True):
                side.change(partial(side.network.mend, rule))

        return mend

    def close(self) -> None:
        self.a.close()
        self.b.close()
        self._guard.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Reader(asyncio.Protocol):
    """Notes what comes, and when."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[float, object]] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard.put_nowait((time.monotonic(), data))

    def eof_received(self) -> None:
        self.heard.put_nowait((time.monotonic(), "end"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.put_nowait((time.monotonic(), exc or "closed"))

    async def next(self) -> tuple[float, object]:
        async with asyncio.timeout(5):
            return await self.heard.get()


async def serve(address: Address, tls: ssl.SSLContext | None) -> asyncio.Future[Echo]:
    """Answer one dial as the mesh's listener does."""
    loop = asyncio.get_running_loop()
    listener = await bind(address, socket.SOCK_STREAM)
    served: asyncio.Future[Echo] = loop.create_future()

    async def accept() -> None:
        accepted, _ = await loop.sock_accept(listener)
        listener.close()
        accepted.setblocking(False)
        _, protocol = await loop.connect_accepted_socket(Echo, accepted, ssl=tls)
        served.set_result(protocol)

    task = loop.create_task(accept())
    served.add_done_callback(lambda _: task.done())
    return served


async def dial(address: Address, tls: ssl.SSLContext | None) -> Reader:
    loop = asyncio.get_running_loop()
    dialling = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    dialling.setblocking(False)
    try:
        await loop.sock_connect(dialling, (address.host, address.port))
    except BaseException:
        dialling.close()
        raise
    options: dict[str, Any] = {} if tls is None else {"ssl": tls, "server_hostname": ""}
    reader: Reader
    _, reader = await loop.create_connection(Reader, sock=dialling, **options)
    return reader


async def round_trip_s(reader: Reader) -> float:
    begin = time.monotonic()
    reader.transport.write(b"there and back")
    at, data = await reader.next()
    assert data == b"there and back"
    return at - begin


def about(seconds: float) -> Any:
    return pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize("secured", [False, True])
def test_a_round_trip_over_a_link_takes_what_the_regions_are_apart(
    pair: Pair, tmp_path: Path, secured: bool
) -> None:
    pair.b.run(serve(pair.address, server_tls(tmp_path).context if secured else None))
    begin = time.monotonic()
    reader: Reader = pair.a.run(dial(pair.address, client_tls() if secured else None))
    # TCP's handshake is one round trip; TLS 1.3 takes one more before the dialler may send.
    assert time.monotonic() - begin == about(RTT_S * (2 if secured else 1))
    assert min(pair.a.run(round_trip_s(reader)) for _ in range(3)) == about(RTT_S)
    pair.a.change(reader.transport.close)


def test_a_stranger_is_not_delayed(pair: Pair) -> None:
    pair.b.run(serve(pair.address, None))
    with socket.create_connection(pair.address, timeout=5) as stranger:
        begin = time.monotonic()
        stranger.sendall(b"curl")
        assert stranger.recv(10) == b"curl"
        assert time.monotonic() - begin < RTT_S / 2


def test_what_is_sent_into_a_cut_arrives_after_it_and_so_does_the_end(pair: Pair) -> None:
    served: asyncio.Future[Echo] = pair.b.run(serve(pair.address, None))
    reader: Reader = pair.a.run(dial(pair.address, None))
    pair.a.run(round_trip_s(reader))
    mend = pair.cut()
    pair.b.change(lambda: served.result().transport.write(b"late"))
    pair.b.change(served.result().transport.close)
    time.sleep(3 * RTT_S)
    assert reader.heard.empty()
    mended_at = time.monotonic()
    mend()
    at, data = pair.a.run(reader.next())
    assert data == b"late"
    assert at - mended_at == pytest.approx(RTT_S / 2, abs=RTT_S / 4)
    assert [pair.a.run(reader.next())[1] for _ in range(2)] == ["end", "closed"]


def test_a_dial_into_a_cut_waits_until_it_is_over(pair: Pair) -> None:
    mend = pair.cut()
    pair.b.run(serve(pair.address, None))
    dialling = asyncio.run_coroutine_threadsafe(dial(pair.address, None), pair.a.loop)
    time.sleep(3 * RTT_S)
    assert not dialling.done()
    mend()
    pair.a.change(dialling.result(5).transport.close)


def test_a_router_lets_nobody_dial_who_is_behind_it(pair: Pair) -> None:
    pair.a.change(lambda: pair.a.network.put_behind_router("b"))
    dialling = asyncio.run_coroutine_threadsafe(dial(pair.address, None), pair.a.loop)
    time.sleep(3 * RTT_S)
    assert not dialling.done()
    dialling.cancel()


def test_a_reader_that_pauses_is_fed_later_and_nothing_is_lost(pair: Pair) -> None:
    pair.b.run(serve(pair.address, None))
    reader: Reader = pair.a.run(dial(pair.address, None))
    size = 9 * 2**20  # more than a wire holds
    pair.a.change(reader.transport.pause_reading)
    pair.a.change(lambda: reader.transport.write(bytes(size)))
    time.sleep(2 * RTT_S)
    assert reader.heard.empty()
    pair.a.change(reader.transport.resume_reading)

    async def all_of_it() -> int:
        got = 0
        while got < size:
            piece = (await reader.next())[1]
            assert isinstance(piece, bytes)
            got += len(piece)
        return got

    assert pair.a.run(all_of_it()) == size
    pair.a.change(reader.transport.close)


class Datagrams(asyncio.DatagramProtocol):
    """Notes datagrams, and sends them back if told to."""

    def __init__(self, *, echo: bool) -> None:
        self.heard: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._echo = echo

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard.put_nowait((time.monotonic(), data))
        if self._echo:
            self.transport.sendto(data, addr)


async def open_datagrams(address: Address, *, echo: bool) -> Datagrams:
    loop = asyncio.get_running_loop()
    bound = await bind(address, socket.SOCK_DGRAM)
    _, protocol = await loop.create_datagram_endpoint(lambda: Datagrams(echo=echo), sock=bound)
    return protocol


def test_datagrams_take_a_round_trip_are_lost_in_a_cut_and_wait_in_a_hold(pair: Pair) -> None:
    here: Datagrams = pair.a.run(open_datagrams(pair.a_address, echo=False))
    there: Datagrams = pair.b.run(open_datagrams(pair.address, echo=True))
    to = (pair.address.host, pair.address.port)

    async def round_trip() -> float:
        begin = time.monotonic()
        here.transport.sendto(b"ping", to)
        async with asyncio.timeout(5):
            return (await here.heard.get())[0] - begin

    assert min(pair.a.run(round_trip()) for _ in range(3)) == about(RTT_S)
    mend = pair.cut()
    pair.a.change(lambda: here.transport.sendto(b"lost", to))
    time.sleep(RTT_S)
    mend()
    rule = pair.b.change(lambda: pair.b.network.impair(Impairment(held=True), "a", "b"))
    pair.a.change(lambda: here.transport.sendto(b"held", to))
    time.sleep(2 * RTT_S)
    assert here.heard.empty()
    pair.b.change(lambda: pair.b.network.mend(rule))

    async def next_one() -> bytes:
        async with asyncio.timeout(5):
            return (await here.heard.get())[1]

    assert pair.a.run(next_one()) == b"held"
    for side, opened in ((pair.a, here), (pair.b, there)):
        side.change(opened.transport.close)


def test_a_clock_that_runs_fast_makes_timers_early_and_leaves_wires_as_they_are(pair: Pair) -> None:
    pair.a.change(lambda: pair.a.clock.run_at(2.0))
    pair.b.run(serve(pair.address, None))
    begin = time.monotonic()
    pair.a.run(asyncio.sleep(0.2))
    assert time.monotonic() - begin == about(0.1)
    reader: Reader = pair.a.run(dial(pair.address, None))
    assert min(pair.a.run(round_trip_s(reader)) for _ in range(3)) == about(RTT_S)
    pair.a.change(reader.transport.close)


@pytest.mark.parametrize(
    "changes", [{"bytes_per_s": 1e-3}, {"add_s": 60.0}], ids=["narrow", "long"]
)
def test_what_a_rule_slows_down_comes_when_the_rule_is_lifted(
    pair: Pair, changes: dict[str, Any]
) -> None:
    pair.b.run(serve(pair.address, None))
    reader: Reader = pair.a.run(dial(pair.address, None))
    impairment = Impairment(**changes)
    network = pair.a.network
    rule = pair.a.change(partial(network.impair, impairment, "b", "a", both_ways=False))
    pair.a.change(partial(reader.transport.write, b"there and back"))
    time.sleep(2 * RTT_S)
    assert reader.heard.empty()
    pair.a.change(partial(network.mend, rule))
    assert pair.a.run(reader.next())[1] == b"there and back"
