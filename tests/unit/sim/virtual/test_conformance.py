"""What asyncio's own loop and the virtual one do alike: one suite, run on both, over loopback."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.sim.virtual.loop import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


@pytest.fixture(params=["asyncio", "virtual"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine on one of the loops."""
    if request.param == "asyncio":
        yield asyncio.run
        return
    loop = VirtualLoop(seed=1)
    host = loop.add_host("host", "here")
    yield lambda work: loop.run_until_complete(host.run(work))
    loop.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def _serve(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any] = _echo,
) -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def test_what_is_written_comes_back(run: Any) -> None:
    async def work() -> bytes:
        server, port = await _serve()
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"one ")
            writer.writelines([b"two ", bytearray(b"three")])
            answer = await reader.readexactly(13)
            writer.close()
            await writer.wait_closed()
        return answer

    assert run(work()) == b"one two three"


def test_one_direction_can_end_while_the_other_goes_on(run: Any) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(str(len(data)).encode())
        writer.close()

    async def work() -> bytes:
        server, port = await _serve(count)
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x" * 300_000)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return answer

    assert run(work()) == b"300000"


def test_nobody_listens(run: Any) -> None:
    async def work() -> None:
        server, port = await _serve()
        server.close()
        await server.wait_closed()
        await asyncio.open_connection("127.0.0.1", port)

    with pytest.raises(ConnectionRefusedError):
        run(work())


def test_an_address_is_bound_once(run: Any) -> None:
    async def work() -> None:
        server, port = await _serve()
        async with server:
            await asyncio.start_server(_echo, "127.0.0.1", port)

    with pytest.raises(OSError, match="in use"):
        run(work())


def test_an_address_of_another_machine_cannot_be_bound(run: Any) -> None:
    with pytest.raises(OSError, match="assign requested address"):
        run(asyncio.start_server(_echo, "192.0.2.1", 0))


class _Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append(f"{len(data)} bytes")

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.lost.set_result(exc)


def test_an_abort_is_an_end_like_any_other_to_the_other_side(run: Any) -> None:
    async def work() -> tuple[bytes, list[str]]:
        server, port = await _serve(_tell)
        async with server:
            loop = asyncio.get_running_loop()
            transport, mine = await loop.create_connection(_Recorder, "127.0.0.1", port)
            transport.write(b"all that was sent")
            transport.abort()
            await mine.lost
            return await heard.get(), mine.told

    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.read())
        writer.close()

    assert run(work()) == (b"all that was sent", ["made", "lost"])


def test_an_abort_without_lingering_is_a_reset_to_the_other_side(run: Any) -> None:
    async def work() -> tuple[list[str], Exception | None]:
        taken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken.set_result(writer)

        server, port = await _serve(take)
        async with server:
            loop = asyncio.get_running_loop()
            transport, mine = await loop.create_connection(_Recorder, "127.0.0.1", port)
            writer = await taken
            writer.write(b"unread")
            await asyncio.sleep(0.05)
            linger = transport.get_extra_info("socket")
            linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            own = await mine.lost
            with pytest.raises(ConnectionResetError):
                await _until_lost(writer)
        return mine.told, own

    assert run(work()) == (["made", "6 bytes", "lost"], None)


async def _until_lost(writer: asyncio.StreamWriter) -> None:
    for _ in range(100):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)
    await writer.wait_closed()


def test_a_full_window_pauses_the_writer_and_reading_lets_it_go_on(run: Any) -> None:
    async def work() -> tuple[list[str], int]:
        taken: asyncio.Queue[Any] = asyncio.Queue()

        async def take(*both: Any) -> None:
            taken.put_nowait(both)

        server, port = await _serve(take)
        async with server:
            loop = asyncio.get_running_loop()
            transport, mine = await loop.create_connection(_Recorder, "127.0.0.1", port)
            reader, writer = await taken.get()
            transport.write(b"x" * 30_000_000)
            told = [*mine.told]
            assert transport.get_write_buffer_size() > 1_000_000
            transport.close()
            size = 0
            while data := await reader.read(1_000_000):
                size += len(data)
            writer.close()
            await mine.lost
        return told, size

    assert run(work()) == (["made", "pause"], 30_000_000)


def test_what_is_not_read_waits(run: Any) -> None:
    async def work() -> tuple[list[str], list[str]]:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            await writer.drain()
            writer.close()

        server, port = await _serve(greet)
        async with server:
            loop = asyncio.get_running_loop()

            def paused() -> _Recorder:
                made = _Recorder()
                told = made.connection_made

                def connection_made(transport: Any) -> None:
                    told(transport)
                    transport.pause_reading()

                made.connection_made = connection_made  # type: ignore[method-assign]
                return made

            transport, mine = await loop.create_connection(paused, "127.0.0.1", port)
            await asyncio.sleep(0.05)
            before = [*mine.told]
            assert not transport.is_reading()
            transport.resume_reading()
            await mine.lost
        return before, mine.told

    assert run(work()) == (["made"], ["made", "5 bytes", "eof", "lost"])


def test_datagrams_come_with_the_address_they_came_from(run: Any) -> None:
    class Receiver(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.came: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.came.put_nowait((data, addr))

    async def work() -> tuple[bytes, bool, bytes]:
        loop = asyncio.get_running_loop()
        one, there = await loop.create_datagram_endpoint(Receiver, ("127.0.0.1", 0))
        place = one.get_extra_info("sockname")
        two, here = await loop.create_datagram_endpoint(Receiver, remote_addr=place)
        two.sendto(b"ask")
        asked, where = await there.came.get()
        one.sendto(b"answer", where)
        answer, source = await here.came.get()
        one.close()
        two.close()
        return asked, tuple(source[:2]) == tuple(place[:2]), answer

    assert run(work()) == (b"ask", True, b"answer")


def test_sockets_are_accepted_and_connected_by_the_loop(run: Any) -> None:
    async def work() -> bytes:
        loop: Any = asyncio.get_running_loop()
        make = getattr(loop, "open_socket", socket.socket)
        listener = make(socket.AF_INET, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        dialler = make(socket.AF_INET, socket.SOCK_STREAM)
        dialler.setblocking(False)
        await loop.sock_connect(dialler, listener.getsockname())
        accepted, where = await loop.sock_accept(listener)
        assert where[0] == "127.0.0.1"
        assert accepted.getsockname() == listener.getsockname() == dialler.getpeername()
        ours, mine = await loop.connect_accepted_socket(_Recorder, accepted)
        theirs, _ = await loop.create_connection(_Recorder, sock=dialler)
        theirs.write(b"hello")
        theirs.close()
        await mine.lost
        listener.close()
        assert listener.fileno() == -1
        assert ours.is_closing()
        return " ".join(mine.told).encode()

    assert run(work()) == b"made 5 bytes eof lost"


def test_a_server_that_is_closed_takes_no_more(run: Any) -> None:
    async def work() -> bool:
        server, port = await _serve()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await reader.readexactly(1)
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"y")
        goes_on = await reader.readexactly(1) == b"y"
        writer.close()
        await writer.wait_closed()
        await server.wait_closed()
        return goes_on

    assert run(work())


def test_names_resolve_by_kind_and_family(run: Any) -> None:
    async def work() -> tuple[list[Any], list[Any]]:
        loop = asyncio.get_running_loop()
        stream = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        local = await loop.getaddrinfo(
            "localhost", 80, family=socket.AF_INET, type=socket.SOCK_DGRAM
        )
        return [stream[0][0], stream[0][1], stream[0][4]], [local[0][1], local[0][4]]

    stream, local = run(work())
    assert stream == [socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 80)]
    assert local == [socket.SOCK_DGRAM, ("127.0.0.1", 80)]


def test_a_cancelled_connection_attempt_leaves_nothing(run: Any) -> None:
    async def work() -> int:
        server, port = await _serve()
        attempt = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port))
        await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.wait([attempt])
        await asyncio.sleep(0.05)
        server.close()
        await server.wait_closed()
        return len(asyncio.all_tasks())

    assert run(work()) == 1


def test_a_writer_goes_on_once_enough_was_read(run: Any) -> None:
    async def work() -> tuple[list[str], int]:
        taken: asyncio.Queue[Any] = asyncio.Queue()

        async def take(*both: Any) -> None:
            taken.put_nowait(both)

        server, port = await _serve(take)
        async with server:
            loop = asyncio.get_running_loop()
            transport, mine = await loop.create_connection(_Recorder, "127.0.0.1", port)
            reader, writer = await taken.get()
            transport.set_write_buffer_limits(high=1000)
            assert transport.get_write_buffer_limits() == (250, 1000)
            transport.write(bytes(20_000_000))
            await reader.readexactly(20_000_000)
            await asyncio.sleep(0.05)
            left = transport.get_write_buffer_size()
            transport.close()
            writer.close()
            await mine.lost
        return mine.told[:3], left

    assert run(work()) == (["made", "pause", "resume"], 0)


def test_a_protocol_that_fails_loses_its_connection_and_nobody_elses(run: Any) -> None:
    class Failing(_Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError(data)

    async def work() -> tuple[Exception | None, list[str]]:
        loop = asyncio.get_running_loop()
        told: list[str] = []
        loop.set_exception_handler(lambda _, context: told.append(context["message"]))
        server, port = await _serve()
        async with server:
            transport, mine = await loop.create_connection(Failing, "127.0.0.1", port)
            transport.write(b"x")
            lost = await mine.lost
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"
            writer.close()
            await writer.wait_closed()
        return lost, told

    lost, told = run(work())
    assert isinstance(lost, ValueError)
    assert told == ["Fatal error: protocol.data_received() call failed."]


def test_what_cannot_be_written_is_refused(run: Any) -> None:
    async def work() -> None:
        server, port = await _serve()
        async with server:
            loop = asyncio.get_running_loop()
            transport, mine = await loop.create_connection(_Recorder, "127.0.0.1", port)
            with pytest.raises(TypeError, match="bytes"):
                transport.write("text")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="must be"):
                transport.set_write_buffer_limits(high=1, low=2)
            assert transport.can_write_eof()
            transport.write_eof()
            with pytest.raises(RuntimeError, match="write_eof"):
                transport.write(b"late")
            await mine.lost
            transport.close()
            transport.abort()

    run(work())


def test_a_server_serves_until_it_is_cancelled(run: Any) -> None:
    async def work() -> bool:
        server, port = await _serve()
        serving = asyncio.ensure_future(server.serve_forever())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await reader.readexactly(1)
        writer.close()
        await writer.wait_closed()
        serving.cancel()
        await asyncio.wait([serving])
        return server.is_serving()

    assert not run(work())


def test_a_socket_that_is_not_connected_or_not_open_says_so(run: Any) -> None:
    async def work() -> None:
        loop: Any = asyncio.get_running_loop()
        make = getattr(loop, "open_socket", socket.socket)
        with make(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            assert sock.gettimeout() == 0.0
            with pytest.raises(OSError, match="not connected"):
                sock.getpeername()
            sock.bind(("127.0.0.1", 0))
            sock.listen(1)
            with pytest.raises(BlockingIOError):
                sock.accept()
            with pytest.raises(OSError, match="Invalid argument"):
                sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.fileno() == -1
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.getsockname()

    run(work())


def test_who_listens_no_more_wakes_nobody(run: Any) -> None:
    async def work() -> None:
        server, port = await _serve()
        server.close()
        await server.wait_closed()
        again = await asyncio.start_server(_echo, "127.0.0.1", port)
        again.close()
        again.close()
        await again.wait_closed()

    run(work())
