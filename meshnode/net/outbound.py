"""Asking URLs that callers name: webhooks, and models' sources.

Who may name a URL must not reach by it what only this machine reaches: its own services, the network of its
owner, a cloud's metadata service. So a request goes to public addresses only, and to what the node's owner
allowed besides (`allow_outbound`):

- The *address* decides, not the name. A name's addresses are looked up once and those that are refused dropped; the
  connection goes to one that was left, so that a name that means something else a moment later (DNS rebinding)
  changes nothing. Each socket is checked again when it is made.
- IPv4 addresses written as IPv6 (mapped, NAT64, 6to4, Teredo) are judged by the IPv4 address within.
- Each redirect is a URL like the first, checked alike; how many are followed says the caller of this module.
- No proxy of the environment is used, no cookie and no key of this machine is sent along.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from meshnode.errors import Forbidden, InvalidRequest, MeshError, TooLarge, TransferFailed
from meshnode.limits import (
    CONNECT_TIMEOUT_S,
    MAX_HEADER_LINE_BYTES,
    MAX_OUTBOUND_URL_LENGTH,
    MAX_RESOLVED_ADDRESSES,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")  # all that IPv6 has given out
_V4_COMPATIBLE: Final = ipaddress.ip_network("::/96")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HOW_TO_ALLOW: Final = (
    "an operator allows it with `meshnode join --allow-outbound NETWORK` on the node that asks"
)


class Answered(NamedTuple):
    """What a URL answered.

    Attributes:
        status: Of HTTP.
        headers: With lower-case names.
        body: At most as long as was asked for.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class OutboundRule:
    """Which addresses URLs of callers may lead to."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        """Allow public addresses, and these networks besides."""
        self._allowed = tuple(allowed)

    def __repr__(self) -> str:
        return f"<OutboundRule: public, {', '.join(map(str, self._allowed)) or 'nothing else'}>"

    def allows(self, address: str) -> bool:
        """Whether a request may go to an address (an IP literal; a scope is ignored)."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        meant = _within(found)
        if any(each in network for network in self._allowed for each in (found, meant)):
            return True
        if isinstance(meant, ipaddress.IPv6Address) and meant not in _GLOBAL_UNICAST:
            return False
        return meant.is_global and not meant.is_multicast and not meant.is_reserved

    def check(self, url: str) -> str:
        """Return a URL that may be asked, as far as its text says so: names are judged when they are looked up.

        Raises:
            InvalidRequest: if it is no http or https URL with a host, or names a user.
            Forbidden: if its host is an address that is refused, or a name that means this machine.
        """
        parts = _split(url)
        host = parts.hostname or ""
        is_name = not _is_address(host)
        is_here = f".{host.rstrip('.')}".endswith(".localhost")
        if not is_name and not self.allows(host):
            raise Forbidden(f"the URL leads to {host}, which is no public address; {_HOW_TO_ALLOW}")
        if is_name and is_here and not self._allowed:
            raise Forbidden(f"the URL leads to {host}, which is this machine; {_HOW_TO_ALLOW}")
        return url

    def pick(self, host: str, addresses: Sequence[str]) -> list[str]:
        """Return the addresses of a name that may be asked.

        Raises:
            Forbidden: if there are some, and none may.
        """
        left = [address for address in addresses if self.allows(address)]
        if addresses and not left:
            raise Forbidden(
                f"{host} is at {addresses[0]}, which is no public address; {_HOW_TO_ALLOW}"
            )
        return left


PUBLIC: Final = OutboundRule()
"""The rule where the owner allowed nothing besides."""


def read_network(text: str) -> Network:
    """Return a network such as `10.0.0.0/8` or `::1`.

    Raises:
        ValueError: if it is none, or has bits outside of its length.
    """
    return ipaddress.ip_network(text)


async def look_up(rule: OutboundRule, url: str) -> None:
    """Refuse at once what would be refused later: a URL of a name all of whose addresses are refused.

    A name that cannot be looked up now passes.

    Raises:
        InvalidRequest: if it is no URL that may be asked.
        Forbidden: if it leads to where it may not.
    """
    parts = _split(rule.check(url))
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await _Resolver(rule).resolve(parts.hostname or "", parts.port or 0)


async def ask(
    rule: OutboundRule,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout_s: float,
    max_answer_bytes: int,
    max_redirects: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Answered:
    """Ask a URL and return its whole answer, whatever its status.

    Args:
        rule: Where it may lead.
        method: Of HTTP.
        url: Named by a caller.
        headers: Of the request.
        body: Of the request.
        timeout_s: For everything together.
        max_answer_bytes: What of the answer's body is read at most.
        max_redirects: How many are followed (with GET only); more are the answer themselves.
        tls: For https, in tests; the system's authorities otherwise.

    Raises:
        InvalidRequest: if it, or what it redirects to, is no http or https URL.
        Forbidden: if it leads to where it may not.
        TooLarge: if the answer is longer.
        TransferFailed: if it cannot be reached, or does not answer in time.
    """
    async with opened(
        rule, method, url, headers=headers, body=body, timeout_s=timeout_s, max_redirects=max_redirects, tls=tls
    ) as response:  # fmt: skip
        answer = bytearray()
        async for piece in pieces(response, max_answer_bytes):
            answer += piece
        found = {name.lower(): value for name, value in response.headers.items()}
        return Answered(response.status, found, bytes(answer))


@asynccontextmanager
async def opened(
    rule: OutboundRule,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout_s: float,
    max_redirects: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask a URL; yield its answer, whose body is read with `pieces`. Arguments and errors as `ask`."""
    left = max_redirects if method == "GET" else 0
    with _translated(url):
        async with asyncio.timeout(timeout_s), _session(rule, tls) as session:
            while True:
                rule.check(url)
                async with session.request(
                    method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=body or None,
                    allow_redirects=False,
                ) as response:
                    target = response.headers.get("Location", "")
                    if left <= 0 or response.status not in _REDIRECTS or not target:
                        yield response
                        return
                left -= 1
                further = urljoin(url, target)
                if _origin(further) != _origin(url):
                    headers = None  # what was meant for one host is not told to another
                url = further


async def pieces(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body of an answer as it arrives.

    Raises:
        TooLarge: if it is longer than `max_bytes`; at once where its length is announced.
    """
    if (response.content_length or 0) > max_bytes:
        raise TooLarge(f"the answer has {response.content_length} bytes, at most {max_bytes}")
    arrived = 0
    async for piece in response.content.iter_any():
        arrived += len(piece)
        if arrived > max_bytes:
            raise TooLarge(f"the answer has more than {max_bytes} bytes")
        yield piece


class _Resolver(AbstractResolver):
    """Looks names up, and returns only addresses that may be asked."""

    def __init__(self, rule: OutboundRule) -> None:
        self._rule = rule

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        families = {str(each[4][0]): each[0] for each in found}
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=families[address],
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._rule.pick(host, tuple(families))[:MAX_RESOLVED_ADDRESSES]
        ]

    async def close(self) -> None:
        """Nothing is kept."""


def _session(rule: OutboundRule, tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    def make_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not rule.allows(str(address[0])):  # nothing gets here that was not checked before
            raise PermissionError(errno.EACCES, f"{address[0]} may not be asked")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        resolver=_Resolver(rule),
        use_dns_cache=False,
        force_close=True,
        ssl=tls if tls is not None else True,
        socket_factory=make_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        max_line_size=MAX_HEADER_LINE_BYTES,
        max_field_size=MAX_HEADER_LINE_BYTES,
        headers={"User-Agent": "meshnode"},
    )


@contextlib.contextmanager
def _translated(url: str) -> Any:
    shown = _shown(url)
    try:
        yield
    except MeshError:
        raise
    except TimeoutError as error:
        raise TransferFailed(f"{shown} did not answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise TransferFailed(f"{shown} could not be asked: {reason[:200]}") from error


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no number
    except ValueError as error:
        raise InvalidRequest(f"{_shown(url)!r} is no URL: {error}") from error
    plain = url.isascii() and not any(ord(each) <= 32 or each in '\\"<>^`{|}\x7f' for each in url)
    if len(url) > MAX_OUTBOUND_URL_LENGTH or not plain:
        raise InvalidRequest(
            f"a URL has at most {MAX_OUTBOUND_URL_LENGTH} characters, all ASCII; encode others with %"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{_shown(url)!r} is no http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("a URL here names no user and no password; use a token in its query")
    return parts


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # What inet_aton takes for an address (`127.1`, `0x7f000001`, `2130706433`) is looked up like a name,
        # and judged by what that gives.
        return False
    return True


def _within(address: _Address) -> _Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    is_wrapped = any(address in network for network in _NAT64)
    if is_wrapped or (address in _V4_COMPATIBLE and int(address) > 1):
        return low
    return address


def _shown(url: str) -> str:
    """Return a URL for a message: without a user, a query, or what is not printable."""
    head = url.partition("?")[0][:200]
    scheme, found, rest = head.partition("://")
    head = f"{scheme}://{rest.rpartition('@')[2]}" if found else head
    return "".join(each if each.isprintable() else "?" for each in head)
