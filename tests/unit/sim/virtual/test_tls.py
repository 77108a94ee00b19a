"""The stand-in for TLS: its round trip, its certificate, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.sim.virtual.tls import Handshake, StandInContext, register_certificate

if TYPE_CHECKING:
    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.sim.virtual.loop import VirtualLoop

PORT = 7946
CERTIFICATE = b"certificate" * 100


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()


def _listen(loop: VirtualLoop, host: VirtualHost, tls: Any) -> None:
    async def listen() -> None:
        await asyncio.start_server(_greet, "::", PORT, ssl=tls)

    loop.run_until_complete(host.run(listen()))


async def _connect(tls: Any, timeout_s: float | None = None) -> tuple[bytes, Any, float]:
    began = asyncio.get_running_loop().time()
    options: dict[str, Any] = {"ssl_handshake_timeout": timeout_s} if tls else {}
    reader, writer = await asyncio.open_connection("10.0.0.1", PORT, ssl=tls, **options)
    took_s = asyncio.get_running_loop().time() - began
    try:
        heard = await reader.readexactly(5)
    finally:
        writer.close()
    return heard, writer.get_extra_info("ssl_object"), took_s


def test_a_handshake_takes_its_round_trip_and_shows_the_servers_certificate(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    _listen(loop, near, StandInContext(CERTIFICATE, server_side=True))
    heard, tls, took_s = loop.run_until_complete(far.run(_connect(StandInContext())))
    assert heard == b"hello"
    assert tls.getpeercert(binary_form=True) == CERTIFICATE
    assert tls.getpeercert() == {}
    assert (tls.version(), tls.cipher()[0], tls.compression()) == (
        "TLSv1.3", "TLS_AES_256_GCM_SHA384", None
    )  # fmt: skip
    assert took_s == pytest.approx(0.16, rel=0.1)  # two round trips of 80 ms


def test_a_real_context_shows_what_is_registered_for_it(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    register_certificate(context, CERTIFICATE)
    _listen(loop, near, context)
    _, tls, _ = loop.run_until_complete(far.run(_connect(True)))
    assert tls.getpeercert(binary_form=True) == CERTIFICATE


def test_a_client_without_tls_is_hung_up_on(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def connect() -> bytes:
        reader, writer = await asyncio.open_connection("10.0.0.1", PORT)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        try:
            return await reader.read()
        finally:
            writer.close()

    _listen(loop, near, StandInContext(CERTIFICATE, server_side=True))
    assert loop.run_until_complete(far.run(connect())) == b""


def test_a_server_without_tls_is_a_tls_error_to_the_client(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    _listen(loop, near, None)
    with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        loop.run_until_complete(far.run(_connect(StandInContext())))


def test_a_handshake_that_nobody_answers_is_given_up(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    _listen(loop, near, StandInContext(CERTIFICATE, server_side=True))
    near.freeze()
    with pytest.raises(ConnectionAbortedError, match="longer than 5 seconds"):
        loop.run_until_complete(far.run(_connect(StandInContext(), 5)))
    assert loop.time() == pytest.approx(5.08, abs=0.01)
    assert far.kernel.ends == {}


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_handshake_is_read_in_any_pieces_and_what_follows_it_is_kept(size: int) -> None:
    server = Handshake(StandInContext(CERTIFICATE, server_side=True), server_side=True)
    client = Handshake(StandInContext(), server_side=False)

    def feed(to: Handshake, data: bytes) -> bytes:
        return b"".join(to.receive(data[at : at + size]) for at in range(0, len(data), size))

    flight = feed(server, client.start())
    end = feed(client, flight)
    assert (client.done, client.peer_certificate) == (True, CERTIFICATE)
    assert server.receive(end + b"first") == b""
    assert (server.done, server.leftover) == (True, b"first")


def test_a_record_out_of_turn_is_refused() -> None:
    server = Handshake(StandInContext(CERTIFICATE, server_side=True), server_side=True)
    other = Handshake(StandInContext(CERTIFICATE, server_side=True), server_side=True)
    flight = other.receive(Handshake(StandInContext(), server_side=False).start())
    with pytest.raises(ssl.SSLError, match="UNEXPECTED_MESSAGE"):
        server.receive(flight)
