"""Streams and datagrams over the network model: how late, in which order, what is lost, what stalls."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.sim.impairments import Impairment
from meshnode.sim.network import Network, NetworkConfig
from meshnode.sim.virtual.loop import VirtualLoop
from meshnode.sim.virtual.streams import GIVE_UP_S, next_retry_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.sim.virtual.host import VirtualHost

PORT = 7946
RTT_S = 0.08


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """A world without jitter, so that delays can be told exactly."""
    network = Network(NetworkConfig(far_rtt_s=RTT_S, jitter=0.0), random.Random(1))
    made = VirtualLoop(seed=1, network=network)
    yield made
    made.close()


def near_to(expected: float, abs: float = 1e-6) -> Any:  # noqa: A002 - as pytest's
    """Return what equals a time that is about so late."""
    return pytest.approx(expected, abs=abs)


class Log(asyncio.Protocol, asyncio.DatagramProtocol):
    """Writes down when it is told what."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Any]] = []
        self.transport: Any = None

    def note(self, what: Any) -> None:
        self.told.append((round(asyncio.get_running_loop().time(), 4), what))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        self.note(data if len(data) < 20 else len(data))

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.note((data, addr[0]))

    def eof_received(self) -> None:
        self.note("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note(type(exc).__name__ if exc else "closed")


def _connect(loop: VirtualLoop, server: VirtualHost, client: VirtualHost) -> tuple[Log, Log]:
    """Return the protocols of both ends of a connection: the server's, the client's."""
    taken: list[Log] = []

    def take() -> Log:
        taken.append(Log())
        return taken[-1]

    async def listen() -> None:
        await asyncio.get_running_loop().create_server(take, "0.0.0.0", PORT)

    async def connect() -> Any:
        return await asyncio.get_running_loop().create_connection(Log, server.name, PORT)

    loop.run_until_complete(server.run(listen()))
    _, mine = loop.run_until_complete(client.run(connect()))
    loop.run_for(RTT_S)
    return taken[0], mine


def test_connecting_takes_a_round_trip_and_bytes_half_of_one(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    theirs, mine = _connect(loop, near, far)
    begun_at = 0.0005  # looking up the name
    assert mine.told == [(begun_at + RTT_S, "made")]
    assert theirs.told == [(begun_at + RTT_S * 1.5, "made")]
    began = round(loop.now(), 4)
    far.call(mine.transport.write, b"one")
    far.call(mine.transport.write, b"two")
    loop.run_for(1)
    assert theirs.told[1:] == [(near_to(began + RTT_S / 2), b"onetwo")]


def test_bytes_keep_their_order_however_much_the_path_jitters(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    theirs, mine = _connect(loop, near, far)
    loop.network.impair(Impairment(jitter=0.9, loss=0.3), ["near"], ["far"])
    for number in range(50):
        loop.after(number * 0.003, far.call, mine.transport.write, bytes([number]))
    loop.run_for(120)
    came = b"".join(what for _, what in theirs.told if isinstance(what, bytes))
    assert came == bytes(range(50))
    assert theirs.told[-1][0] > RTT_S + 0.2  # something was sent again


def test_a_cut_stalls_a_stream_until_tcps_next_attempt_after_it_is_mended(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    theirs, mine = _connect(loop, near, far)
    rule = loop.network.cut(["far"], ["near"])
    stalled_at = loop.now()
    far.call(mine.transport.write, b"hello")
    loop.run_for(1.0)
    loop.network.mend(rule)
    loop.run_for(5)
    # Attempts after 0.2, 0.6, 1.4 s ...: the first after the second that the cut lasted.
    assert theirs.told[1:] == [(near_to(stalled_at + 1.4 + RTT_S / 2, abs=1e-3), b"hello")]


def test_what_is_held_comes_when_it_is_released(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    theirs, mine = _connect(loop, near, far)
    rule = loop.network.hold(["far"], ["near"])
    far.call(mine.transport.write, b"hello")
    far.call(mine.transport.close)
    loop.run_for(3.0)
    assert len(theirs.told) == 1
    loop.network.mend(rule)
    released_at = loop.now()
    loop.run_for(5)
    arrived = near_to(released_at + RTT_S / 2, abs=1e-3)
    assert theirs.told[1:] == [(arrived, b"hello"), (arrived, "eof"), (arrived, "closed")]


def test_who_cannot_send_for_a_quarter_of_an_hour_gives_up(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    _, mine = _connect(loop, near, far)
    loop.network.cut(["far"], ["near"])
    began = loop.now()
    far.call(mine.transport.write, b"hello")
    loop.run_for(2000)
    assert mine.told[1:] == [(near_to(began + GIVE_UP_S, abs=1e-3), "TimeoutError")]


def test_retransmissions_back_off_as_tcps_do() -> None:
    assert next_retry_s(0.0) == near_to(0.2)
    assert next_retry_s(0.5) == near_to(0.1)
    assert next_retry_s(600.0) <= 120


def test_a_slow_path_takes_as_long_as_its_bandwidth_says(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    theirs, mine = _connect(loop, near, far)
    loop.network.impair(Impairment(bytes_per_s=1_000_000), ["near"], ["far"])
    began = loop.now()
    far.call(mine.transport.write, b"x" * 2_000_000)
    loop.run_for(10)
    assert theirs.told[-1][0] - began == near_to(2.0 + RTT_S / 2, abs=0.01)


def test_who_is_dialled_through_a_cut_answers_the_first_syn_after_it(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    rule = loop.network.cut(["far"], ["near"])
    loop.at(2.0, loop.network.mend, rule)
    _, mine = _connect(loop, near, far)
    assert mine.told[0] == (near_to(3.0005 + RTT_S, abs=1e-3), "made")


def test_nobody_dials_a_host_behind_a_router_and_it_dials_out(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    loop.network.put_behind_router("far")
    _connect(loop, near, far)
    with pytest.raises(TimeoutError):
        _connect(loop, far, near)


def test_a_full_backlog_lets_dialler_wait(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def listen() -> Any:
        sock = loop.open_socket()
        sock.bind(("0.0.0.0", PORT))
        sock.listen(2)
        return sock

    async def dial() -> None:
        await loop.sock_connect(loop.open_socket(), ("10.0.0.1", PORT))

    listener = loop.run_until_complete(near.run(listen()))
    dials = [far.run(dial()) for _ in range(3)]
    loop.run_for(0.9)
    assert sum(task.done() for task in dials) == 3  # SYNs that came before the queue was full

    late = far.run(dial())
    loop.run_for(5)
    assert not late.done()
    assert near.call(listener.take_connection) is not None
    assert near.call(listener.take_connection) is not None
    loop.run_for(5)
    assert late.done()


def _bind(loop: VirtualLoop, host: VirtualHost, address: str = "0.0.0.0") -> Log:
    async def bind() -> Any:
        return await asyncio.get_running_loop().create_datagram_endpoint(Log, (address, PORT))

    _, protocol = loop.run_until_complete(host.run(bind()))
    made: Log = protocol
    return made


def test_datagrams_arrive_late_and_say_where_from(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    one, other = _bind(loop, near), _bind(loop, far, "::")
    near.call(one.transport.sendto, b"ping", (far.address, PORT))
    loop.run_for(1)
    assert other.told[1:] == [(RTT_S / 2, (b"ping", "::ffff:10.0.0.1"))]
    far.call(other.transport.sendto, b"pong", ("::ffff:10.0.0.1", PORT))
    loop.run_for(1)
    assert one.told[1:] == [(1 + RTT_S / 2, (b"pong", "10.0.0.2"))]


def test_datagrams_are_lost_duplicated_and_held_as_rules_say(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    one, other = _bind(loop, near), _bind(loop, far)

    def send() -> int:
        before = len(other.told)
        near.call(one.transport.sendto, b"ping", (far.address, PORT))
        loop.run_for(1)
        return len(other.told) - before

    blocked = loop.network.block(["near"], ["far"])
    assert send() == 0
    loop.network.mend(blocked)
    twice = loop.network.impair(Impairment(duplication=1.0), ["near"], ["far"])
    assert send() == 2
    loop.network.mend(twice)
    held = loop.network.hold(["near"], ["far"])
    assert send() == 0
    loop.network.mend(held)
    loop.run_for(1)
    assert send() == 1
    assert len(other.told) == 1 + 2 + 1 + 1


def test_a_frozen_receiver_keeps_what_fits_into_its_buffer(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    one, other = _bind(loop, near), _bind(loop, far)
    far.freeze()
    for _ in range(500):
        near.call(one.transport.sendto, bytes(1000), (far.address, PORT))
    loop.run_for(1)
    far.thaw()
    loop.run_for(1)
    assert len(other.told) - 1 == 212_992 // 1512


def test_an_oversized_datagram_is_an_error_and_a_closed_socket_sends_nothing(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    one, other = _bind(loop, near), _bind(loop, far)
    errors: list[Any] = []
    one.error_received = errors.append  # type: ignore[method-assign, assignment]
    near.call(one.transport.sendto, bytes(70_000), (far.address, PORT))
    near.call(one.transport.sendto, b"x", ("10.9.9.9", PORT))
    near.call(one.transport.close)
    near.call(one.transport.sendto, b"x", (far.address, PORT))
    loop.run_for(1)
    assert [error.errno for error in errors] == [errno.EMSGSIZE]
    assert (len(other.told), one.told[-1][1]) == (1, "closed")
    _bind(loop, near)  # the port is free again


def test_a_host_sends_datagrams_to_itself(loop: VirtualLoop, near: VirtualHost) -> None:
    one = _bind(loop, near)
    near.call(one.transport.sendto, b"mine", ("127.0.0.1", PORT))
    near.call(one.transport.sendto, b"lost", ("127.0.0.1", PORT + 1))
    loop.run_for(1)
    assert [what for _, what in one.told[1:]] == [(b"mine", "127.0.0.1")]


def test_a_listener_that_is_gone_when_the_dialler_hears_of_it_resets(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def listen() -> Any:
        return await asyncio.get_running_loop().create_server(Log, "0.0.0.0", PORT)

    async def connect() -> Any:
        return await asyncio.get_running_loop().create_connection(Log, near.name, PORT)

    server = loop.run_until_complete(near.run(listen()))
    dialling = far.run(connect())
    loop.run_for(RTT_S)  # its SYN has arrived, the answer has not
    near.call(server.close)
    loop.run_for(1)
    _, mine = dialling.result()
    assert [what for _, what in mine.told] == ["made", "ConnectionResetError"]
    assert near.kernel.ends == {}


def test_a_dial_that_is_given_up_leaves_no_connection(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def listen() -> Any:
        return await asyncio.get_running_loop().create_server(Log, "0.0.0.0", PORT)

    async def connect() -> None:
        async with asyncio.timeout(RTT_S / 2):
            await asyncio.get_running_loop().create_connection(Log, "10.0.0.1", PORT)

    server = loop.run_until_complete(near.run(listen()))
    with pytest.raises(TimeoutError):
        loop.run_until_complete(far.run(connect()))
    loop.run_for(5)
    assert near.kernel.ends == far.kernel.ends == {}
    near.call(server.abort_clients)
    near.call(server.close_clients)


def test_names_and_addresses_find_each_other(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    loop.names["mesh.example"] = ("10.0.0.1", "10.0.0.2")

    async def look() -> tuple[list[str], tuple[str, str]]:
        found = await loop.getaddrinfo("mesh.example.", 80, type=1)
        return [each[4][0] for each in found], await loop.getnameinfo(("10.0.0.2", 80))

    found, name = loop.run_until_complete(near.run(look()))
    assert (found, name) == (["10.0.0.1", "10.0.0.2"], ("far", "80"))
    assert far.name == "far"


@pytest.mark.parametrize(
    "changes",
    [{"bytes_per_s": 1e-3}, {"add_s": 60.0}, {"loss": 1.0}],
    ids=["narrow", "long", "lossy"],
)
def test_what_a_rule_slows_down_comes_when_the_rule_is_lifted(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost, changes: dict[str, Any]
) -> None:
    theirs, mine = _connect(loop, near, far)
    rule = loop.network.impair(Impairment(**changes), ["far"], ["near"])
    far.call(mine.transport.write, bytes(300_000))
    loop.run_for(1)
    far.call(mine.transport.write, b"last")
    far.call(mine.transport.close)
    loop.run_for(1)
    assert len(theirs.told) == 1
    lifted_at = loop.now()
    loop.network.mend(rule)
    loop.run_for(1)
    sizes = [len(what) if isinstance(what, bytes) else what for _, what in theirs.told[1:]]
    assert sizes[-2:] == ["eof", "closed"]
    assert sum(size for size in sizes if isinstance(size, int)) == 300_000 + len(b"last")
    assert all(at == near_to(lifted_at + RTT_S / 2, abs=1e-3) for at, _ in theirs.told[1:])


def test_all_that_is_written_at_one_instant_takes_its_time_on_a_narrow_path(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    theirs, mine = _connect(loop, near, far)
    loop.network.impair(Impairment(bytes_per_s=100_000.0), ["far"], ["near"])
    written_at = loop.now()
    far.call(mine.transport.write, b"head")
    far.call(mine.transport.write, bytes(200_000))
    loop.run_for(5)
    assert theirs.told[-1] == (near_to(written_at + 2.0 + RTT_S / 2, abs=1e-2), 200_000)
