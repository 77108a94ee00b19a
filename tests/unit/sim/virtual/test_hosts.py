"""What can happen to a host, and what others see of it."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import UsageError
from meshnode.sim.virtual.loop import VirtualLoop
from meshnode.sim.virtual.streams import GIVE_UP_S

if TYPE_CHECKING:
    from meshnode.sim.virtual.host import VirtualHost

PORT = 7946


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
    except OSError:
        pass
    writer.close()


async def _listen(handler: Any = _echo) -> None:
    await asyncio.start_server(handler, "0.0.0.0", PORT)


async def _ask(host: VirtualHost, timeout_s: float = 60) -> bytes:
    """Open a connection, send five bytes, and read what comes back."""
    reader, writer = await asyncio.open_connection(host.name, PORT)
    try:
        writer.write(b"hello")
        async with asyncio.timeout(timeout_s):
            return await reader.read(5)
    finally:
        writer.close()


def test_a_crashed_process_runs_nothing_any_more_not_even_its_finally(
    loop: VirtualLoop, near: VirtualHost
) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.to_thread(near.spend, 2.0)
            done.append("ran on")
        finally:
            done.append("finally")

    near.run(work())
    near.call(loop.call_later, 1.5, done.append, "timer")
    loop.run_for(1)
    near.crash()
    loop.run_for(10)
    assert done == []
    assert not near.running
    with pytest.raises(UsageError, match="call boot"):
        near.call(print)


def test_a_crash_ends_connections_and_a_reboot_is_a_new_process(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    near.run(_listen())
    loop.run_for(0.1)

    async def hold() -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("near", PORT)
        writer.write(b"hello")
        first = await reader.read(5)
        rest = await reader.read()
        writer.close()
        return first, rest

    held = far.run(hold())
    loop.run_for(1)
    near.crash()
    loop.run_for(1)
    assert held.result() == (b"hello", b"")
    assert near.kernel.ends == {}
    with pytest.raises(ConnectionRefusedError):
        loop.run_until_complete(far.run(_ask(near)))
    assert near.boot().number == 2
    near.run(_listen())
    loop.run_for(0.1)
    assert loop.run_until_complete(far.run(_ask(near))) == b"hello"


def test_unread_bytes_make_a_crash_a_reset(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    near.run(_listen(ignore))
    loop.run_for(0.1)
    asked = far.run(_ask(near))
    loop.run_for(1)
    near.crash()
    loop.run_for(1)
    assert isinstance(asked.exception(), ConnectionResetError)


def test_a_frozen_process_answers_late_and_its_kernel_at_once(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    near.run(_listen())
    loop.run_for(0.1)
    near.freeze()
    asked = far.run(_ask(near))
    loop.run_for(5)
    assert len(near.kernel.ends) == 1  # connected; nobody accepts
    assert not asked.done()
    near.thaw()
    loop.run_for(0.2)
    assert asked.result() == b"hello"


def test_timers_of_a_frozen_process_are_due_when_it_thaws(
    loop: VirtualLoop, near: VirtualHost
) -> None:
    called: list[tuple[int, float]] = []
    for number in (1, 2):
        near.call(loop.call_later, number, lambda n=number: called.append((n, loop.time())))
    near.freeze()
    near.freeze()
    loop.run_for(5)
    near.thaw()
    loop.run_for(1)
    assert called == [(1, 5.0), (2, 5.0)]


def test_a_machine_without_power_says_nothing(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    near.run(_listen())
    loop.run_for(0.1)

    async def talk() -> tuple[float, OSError]:
        reader, writer = await asyncio.open_connection("near", PORT)
        await asyncio.sleep(1)
        began = loop.time()
        writer.write(b"hello")
        try:
            await reader.read(5)
        except OSError as error:
            return loop.time() - began, error
        finally:
            writer.close()
        raise AssertionError

    talking = far.run(talk())
    loop.run_for(0.5)
    near.power_off()
    took_s, error = loop.run_until_complete(talking)
    assert isinstance(error, TimeoutError)
    assert took_s == pytest.approx(GIVE_UP_S, abs=1)
    began = loop.time()
    with pytest.raises(TimeoutError):
        loop.run_until_complete(far.run(_ask(near)))
    assert loop.time() - began == pytest.approx(127, abs=0.1)  # all SYNs


def test_a_machine_that_boots_again_resets_what_it_does_not_know(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    near.run(_listen())
    loop.run_for(0.1)

    async def talk(at_s: float) -> OSError | None:
        reader, writer = await asyncio.open_connection("near", PORT)
        await asyncio.sleep(at_s)
        writer.write(b"hello")
        try:
            await reader.read(5)
        except OSError as error:
            return error
        finally:
            writer.close()
        return None

    before, after = far.run(talk(1)), far.run(talk(10))
    loop.run_for(0.5)
    near.power_off()
    loop.run_for(5)
    near.boot()
    loop.run_for(1)
    assert isinstance(before.result(), ConnectionResetError)
    assert not after.done()
    loop.run_for(6)
    assert isinstance(after.result(), ConnectionResetError)


def test_signals_reach_their_handlers_and_others_kill(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    told: list[str] = []
    near.call(loop.add_signal_handler, signal.SIGTERM, told.append, "near")
    far.call(loop.add_signal_handler, signal.SIGTERM, told.append, "far")
    near.signal(signal.SIGTERM)
    loop.run_for(1)
    assert told == ["near"]
    assert far.call(loop.remove_signal_handler, signal.SIGTERM)
    far.signal(signal.SIGTERM)
    assert (near.running, far.running) == (True, False)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the platform has no such signals")
def test_stop_and_continue_freeze_and_thaw(near: VirtualHost) -> None:
    near.signal(signal.SIGSTOP)
    assert near.frozen
    near.signal(signal.SIGCONT)
    assert not near.process.frozen
    near.signal(signal.SIGKILL)
    assert not near.running


def test_what_a_process_holds_can_be_counted(loop: VirtualLoop, near: VirtualHost) -> None:
    near.run(asyncio.sleep(10))
    near.call(loop.call_later, 5, print)
    for _ in range(200):
        near.run(asyncio.sleep(0))
    loop.run_for(1)
    assert len(near.process.live_tasks()) == 1
    assert len(near.process.live_timers()) == 2
    near.crash()
    assert near.process.live_tasks() == []


def test_hosts_are_told_apart(loop: VirtualLoop, near: VirtualHost, far: VirtualHost) -> None:
    assert (near.address, far.address) == ("10.0.0.1", "10.0.0.2")
    with pytest.raises(UsageError, match="already"):
        loop.add_host("near", "eu-west")
    with pytest.raises(UsageError, match="already"):
        loop.add_host("other", "eu-west", near.address)
    with pytest.raises(UsageError, match="crash or stop"):
        near.boot()
    with pytest.raises(UsageError, match="only hosts have sockets"):
        loop.open_socket()


def test_the_same_port_of_two_hosts_and_loopback_of_each_are_different_places(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def say(name: str) -> None:
        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(name.encode())
            writer.close()

        await asyncio.start_server(tell, "127.0.0.1", PORT)

    async def hear(host: str) -> bytes:
        reader, writer = await asyncio.open_connection(host, PORT)
        heard = await reader.read()
        writer.close()
        return heard

    for host in (near, far):
        loop.run_until_complete(host.run(say(host.name)))
    assert loop.run_until_complete(near.run(hear("localhost"))) == b"near"
    assert loop.run_until_complete(far.run(hear("127.0.0.1"))) == b"far"
    with pytest.raises(ConnectionRefusedError):
        loop.run_until_complete(near.run(hear("far")))


def test_unix_paths_belong_to_a_host(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def ask() -> bytes:
        reader, writer = await asyncio.open_unix_connection("/run/control")
        writer.write(b"hello")
        answer = await reader.read(5)
        writer.close()
        return answer

    async def listen() -> None:
        server = await asyncio.start_unix_server(_echo, "/run/control")
        with pytest.raises(OSError, match="in use"):
            await asyncio.start_unix_server(_echo, "/run/control")
        assert await ask() == b"hello"
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await ask()
        await asyncio.start_unix_server(_echo, "/run/control")

    loop.run_until_complete(near.run(listen()))
    with pytest.raises(ConnectionRefusedError):
        loop.run_until_complete(far.run(ask()))


# What the trace covers.


@pytest.mark.parametrize("way", ["datagram", "stream"])
@pytest.mark.parametrize("covers", [True, False])
def test_the_trace_covers_each_byte_of_a_host_whose_contents_the_seed_decides(
    way: str, covers: bool
) -> None:
    def digest(content: bytes) -> str:
        loop = VirtualLoop(seed=1)
        near, far = loop.add_host("near", "eu-west"), loop.add_host("far", "us-east")
        near.covers_content = covers

        async def send() -> None:
            if way == "stream":
                _, writer = await asyncio.open_connection("far", PORT)
                writer.write(content)
                writer.close()
                return
            udp, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=(far.address, PORT)
            )
            udp.sendto(content)

        far.run(_listen())
        near.run(send())
        loop.run_for(1)
        loop.close()
        return loop.trace.digest()

    assert digest(b"one") == digest(b"one")
    assert (digest(b"one") == digest(b"two")) is not covers
