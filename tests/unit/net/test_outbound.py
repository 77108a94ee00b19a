"""URLs that callers name: they lead to public addresses, and nowhere else unless the owner says so."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from aiohttp import web

from meshnode.errors import Forbidden, InvalidRequest, MeshError, TooLarge, TransferFailed
from meshnode.net import outbound
from meshnode.net.outbound import PUBLIC, OutboundRule, ask, look_up, opened, pieces, read_network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = OutboundRule([ipaddress.ip_network("127.0.0.1/32")])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2002:0a00:0001::1", "::7f00:1", "2001:db8::1", "fec0::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
        "", "example.org", "64:ff9b:1::a00:1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not PUBLIC.allows(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert PUBLIC.allows(address)


def test_an_owner_allows_networks_also_as_they_are_written_in_ipv6() -> None:
    rule = OutboundRule([read_network("10.0.0.0/8"), read_network("fd00::/8")])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "8.8.8.8"):
        assert rule.allows(address), address
    assert not rule.allows("192.168.1.1")
    assert repr(rule) == "<OutboundRule: public, 10.0.0.0/8, fd00::/8>"


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "file:///etc/passwd", "example.org", "http://", "http:///path", "gopher://x", "",
     "http://user:secret@example.org/", "http://user@example.org/", "http://exa mple.org/", "http://example.org/\r\nX: y",
     "http://exämple.org/", "http://example.org:99999/", "http://[::1", "http://example.org/" + "x" * 2048,
     "http://example.org\\@127.0.0.1/"],
)  # fmt: skip
def test_what_is_no_url_to_be_asked_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PUBLIC.check(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost:8470/", "http://LOCALHOST./", "http://a.localhost/", "https://[::1]/",
     "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/latest/meta-data"],
)  # fmt: skip
def test_a_url_that_says_by_itself_that_it_leads_here_is_forbidden(url: str) -> None:
    with pytest.raises(Forbidden, match="--allow-outbound"):
        PUBLIC.check(url)


def test_a_url_of_a_public_name_passes_until_it_is_looked_up() -> None:
    assert (
        PUBLIC.check("https://notlocalhost.example/hook?a=1")
        == "https://notlocalhost.example/hook?a=1"
    )


class Site:
    """A server on loopback."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[web.Request] = []
        self.bodies: list[bytes] = []


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    site = Site("")

    async def handle(request: web.Request) -> web.StreamResponse:
        site.seen.append(request)
        site.bodies.append(await request.read())
        match request.path:
            case "/away":
                return web.Response(
                    status=302, headers={"Location": "http://169.254.169.254/secret"}
                )
            case "/round":
                return web.Response(status=307, headers={"Location": "/round"})
            case "/there":
                return web.Response(status=301, headers={"Location": "/here?x=1"})
            case "/long":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"x" * 100)
                return response
            case "/never":
                await asyncio.sleep(30)
        return web.Response(body=b"hello", headers={"X-Kind": "plain", "Set-Cookie": "a=b"})

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


def asked(rule: OutboundRule, url: str, **more: Any) -> Any:
    return ask(
        rule, more.pop("method", "GET"), url, **{"timeout_s": 5, "max_answer_bytes": 50, **more}
    )


async def test_an_answer_comes_whole_with_its_status_and_headers(site: Site) -> None:
    found = await asked(
        HERE, f"{site.url}/path%2Fx?y=%20", method="POST", body=b"told", headers={"X-A": "b"}
    )
    assert (found.status, found.headers["x-kind"], found.body) == (200, "plain", b"hello")
    (request,) = site.seen
    assert (request.method, request.raw_path) == ("POST", "/path%2Fx?y=%20")
    assert (request.headers["X-A"], site.bodies) == ("b", [b"told"])


async def test_a_server_on_this_machine_is_not_asked_unless_it_is_allowed(site: Site) -> None:
    with pytest.raises(Forbidden):
        await asked(PUBLIC, site.url)
    assert not site.seen


async def test_redirects_are_followed_only_as_far_as_allowed_and_are_checked_too(
    site: Site,
) -> None:
    assert (await asked(HERE, f"{site.url}/there")).status == 301
    assert (await asked(HERE, f"{site.url}/there", max_redirects=1)).body == b"hello"
    assert (await asked(HERE, f"{site.url}/round", max_redirects=3)).status == 307
    assert (await asked(HERE, f"{site.url}/there", method="POST", max_redirects=3)).status == 301
    with pytest.raises(Forbidden, match=r"169\.254"):
        await asked(HERE, f"{site.url}/away", max_redirects=3)


async def test_what_was_meant_for_one_host_is_not_told_to_another(site: Site) -> None:
    by_name = site.url.replace("127.0.0.1", "localhost")
    site_rule = OutboundRule([ipaddress.ip_network("127.0.0.0/8")])
    await asked(site_rule, f"{by_name}/there", max_redirects=1, headers={"X-Key": "k"})
    assert [request.headers.get("X-Key") for request in site.seen] == ["k", "k"]
    assert outbound._origin("http://a/x") != outbound._origin("http://b/x")


async def test_an_answer_that_is_too_long_or_too_late_is_an_error(site: Site) -> None:
    with pytest.raises(TooLarge):
        await asked(HERE, f"{site.url}/long")
    with pytest.raises(TooLarge):
        await asked(HERE, site.url, max_answer_bytes=3)
    with pytest.raises(TransferFailed, match="in time"):
        await asked(HERE, f"{site.url}/never", timeout_s=0.05)
    with pytest.raises(TransferFailed, match="could not be asked"):
        await asked(HERE, "http://127.0.0.1:9/?token=secret")


async def test_a_body_is_read_in_pieces(site: Site) -> None:
    async with opened(HERE, "GET", site.url, timeout_s=5) as response:
        assert b"".join([piece async for piece in pieces(response, 5)]) == b"hello"


async def test_a_name_counts_for_the_addresses_that_it_has(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public in the text and private in the DNS: refused, also at once."""
    loop = asyncio.get_running_loop()
    answers = [("10.0.0.1", 80), ("192.168.0.1", 80)]

    async def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in answers]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    for ask_it in (
        look_up(PUBLIC, "http://rebound.example/"),
        asked(PUBLIC, "http://rebound.example/"),
    ):
        with pytest.raises(Forbidden, match=r"rebound\.example is at 10\.0\.0\.1"):
            await ask_it
    # Of several addresses, those that are allowed are asked.
    answers[:] = [("10.0.0.1", 80), ("127.0.0.1", int(site.url.rpartition(":")[2]))]
    port = site.url.rpartition(":")[2]
    assert (await asked(HERE, f"http://rebound.example:{port}/")).body == b"hello"


async def test_a_name_that_nobody_knows_is_told_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolve(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    await look_up(PUBLIC, "http://nobody.example/")
    with pytest.raises(TransferFailed):
        await asked(PUBLIC, "http://nobody.example/")


async def test_a_socket_to_a_refused_address_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bolt: even if a check before were missed."""
    monkeypatch.setattr(OutboundRule, "check", lambda _self, url: url)
    with pytest.raises(MeshError, match="may not be asked"):
        await asked(PUBLIC, "http://127.0.0.1:9/")
