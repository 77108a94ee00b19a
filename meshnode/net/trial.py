"""Trying an address: name, TCP, TLS and hello, of which nothing comes but the knowledge how it went.

The hello is a trial (`meshnode.trust.hello`): the other end judges it like any other and closes the
connection. So trying costs nobody a link, and with an invite it admits nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final

import psutil

from meshnode.errors import LinkLost
from meshnode.limits import HANDSHAKE_TIMEOUT_S, MAX_TRIALS_AT_ONCE
from meshnode.net import sockets
from meshnode.net.tls import client_tls, peer_certificate_hash
from meshnode.observations import Outcome, Trial
from meshnode.trust.hello import NONCE_BYTES, DiallerHello
from meshnode.trust.reasons import Reason, TrustError
from meshnode.wire.frames import WIRE_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from meshnode.clock import Clock
    from meshnode.membership.addresses import Kind
    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.identity import Identity
    from meshnode.trust.invite import Invite
    from meshnode.types import Address, NodeId

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NO_ROUTE: Final = (
    errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT,
)  # fmt: skip
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)
_READ_BYTES: Final = 65_536


def trial_hello(
    identity: Identity, credential: VerifiedMember | Invite, boot: int, expect: NodeId | None
) -> Callable[[bytes], DiallerHello]:
    """Return what begins trial hellos.

    Args:
        identity: Who says hello.
        credential: As a member, or with an invite, which is not used up by it.
        boot: The random number of this start.
        expect: Who must answer, or None for any member.
    """

    def begin(certificate_hash: bytes) -> DiallerHello:
        return DiallerHello(
            identity=identity,
            credential=credential,
            boot=boot,
            nonce=os.urandom(NONCE_BYTES),
            certificate_hash=certificate_hash,
            versions=WIRE_VERSIONS,
            expect=expect,
            is_trial=True,
        )

    return begin


async def try_addresses(
    addresses: Iterable[Address],
    begin_hello: Callable[[bytes], DiallerHello],
    clock: Clock,
    kinds: Collection[Kind] | None = None,
) -> tuple[Trial, ...]:
    """Try addresses, several at once; return how each fared, in their order.

    Args:
        addresses: Literals or names.
        begin_hello: Begins a hello that is a trial, from the SHA-256 of the server's certificate.
        clock: Its wall time is compared with the other end's.
        kinds: Where the addresses may lead; None for anywhere.
    """
    places = asyncio.Semaphore(MAX_TRIALS_AT_ONCE)
    networks = own_networks()

    async def one(address: Address) -> Trial:
        async with places:
            return await _try(address, begin_hello, clock, kinds, networks)

    return tuple(await asyncio.gather(*map(one, addresses)))


def own_networks() -> tuple[Network, ...]:
    """Return the networks that the interfaces of this machine are in."""
    found: list[Network] = []
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            with contextlib.suppress(ValueError):  # a MAC address, or no mask
                interface = ipaddress.ip_interface(
                    f"{entry.address.partition('%')[0]}/{_prefix_length(entry.netmask)}"
                )
                found.append(interface.network)
    return tuple(found)


def is_near(host: str, networks: Iterable[Network]) -> bool:
    """Whether an IP address is in one of these networks; a name is not."""
    literal = _literal(host)
    return literal is not None and any(literal in network for network in networks)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is, without its scope; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _prefix_length(mask: str | None) -> int:
    if not mask:
        raise ValueError("no mask")
    if ":" not in mask:
        return ipaddress.ip_network(f"0.0.0.0/{mask}").prefixlen
    return int(ipaddress.IPv6Address(mask)).bit_count()


async def _try(
    address: Address,
    begin_hello: Callable[[bytes], DiallerHello],
    clock: Clock,
    kinds: Collection[Kind] | None,
    networks: Iterable[Network],
) -> Trial:
    near = is_near(address.host, networks)

    def ended(outcome: Outcome) -> Trial:
        return Trial(str(address), outcome, is_near=near)

    try:
        connected = await sockets.connect(address, kinds)
    except LinkLost:
        return ended(Outcome.NOT_DIALLED)
    except OSError as error:  # TimeoutError and gaierror among them
        outcome = _outcome_of(error)
        is_stopped_here = outcome is Outcome.NO_ANSWER and _is_stopped_here(address)
        return ended(Outcome.BLOCKED_HERE if is_stopped_here else outcome)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            node, ahead_s = await _say_hello(connected, begin_hello, clock)
    except TrustError as error:
        if error.reason is Reason.PROTOCOL and not error.by_peer:
            return ended(Outcome.OTHER_PROTOCOL)  # it speaks TLS, and then no hello
        said_s = error.peer_wall_s
        difference_s = said_s - clock.wall_s() if said_s else None
        reason, sentence = str(error.reason), str(error)
        return Trial(str(address), Outcome.REFUSED, reason, sentence, near, difference_s)
    except TimeoutError:
        return ended(Outcome.MUTE)
    except ssl.SSLError:
        return ended(Outcome.OTHER_PROTOCOL)
    except (OSError, EOFError):
        return ended(Outcome.HUNG_UP)
    return Trial(str(address), Outcome.ANSWERED, is_near=near, ahead_s=ahead_s, node=node)


def _outcome_of(error: OSError) -> Outcome:
    if isinstance(error, socket.gaierror):
        is_temporary = error.errno == socket.EAI_AGAIN
        return Outcome.NO_NAME_SERVER if is_temporary else Outcome.UNKNOWN_NAME
    if isinstance(error, ConnectionRefusedError):
        return Outcome.CLOSED
    if error.errno in _NO_ROUTE:
        return Outcome.NO_ROUTE
    if error.errno in _FORBIDDEN:
        return Outcome.BLOCKED_HERE
    return Outcome.NO_ANSWER


def _is_stopped_here(address: Address) -> bool:
    """Whether this device's own firewall lets nothing out to an address that did not answer.

    Of a TCP connection the system does not say that it dropped it; of a datagram it does.
    """
    literal = _literal(address.host)
    if literal is None:
        return False  # looking the name up would take time
    family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.sendto(b"", (address.host, address.port))
        except OSError as error:
            return error.errno in _FORBIDDEN
    return False


async def _say_hello(
    connected: socket.socket, begin_hello: Callable[[bytes], DiallerHello], clock: Clock
) -> tuple[NodeId, float]:
    """Say hello over TLS; return who answered, and by how many seconds its clock is ahead.

    Raises:
        TrustError: if either end refused the other.
        EOFError: if the other end closed without a word.
        OSError: if it speaks no TLS, or broke off.
    """
    try:
        reader, writer = await asyncio.open_connection(
            sock=connected, ssl=client_tls(), server_hostname="meshnode"
        )
    except BaseException:
        connected.close()
        raise
    try:
        tls = writer.get_extra_info("ssl_object")
        assert isinstance(tls, ssl.SSLObject | ssl.SSLSocket)
        hello = begin_hello(peer_certificate_hash(tls))
        writer.write(hello.start())
        while hello.result is None:
            data = await reader.read(_READ_BYTES)
            if not data:
                raise EOFError
            writer.write(hello.receive(data))
            if hello.failed is not None:
                raise hello.failed
        return hello.result.peer.node_id, hello.result.peer_wall_s - clock.wall_s()
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # it is of no use any more
            await writer.wait_closed()
