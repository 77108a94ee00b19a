"""Multicast DNS: finding nodes on the local network. A hint for where to dial, never a reason to trust.

Each node announces `<node id>._meshnode._tcp.local.` with its mesh's id and its name. Anyone on the
network may announce anything, any number of times, so what is heard is checked field by field, only
some of it is looked up at once, and little of it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from meshnode.limits import (
    MAX_MDNS_ADDRESSES,
    MAX_MDNS_ANNOUNCEMENTS,
    MAX_MDNS_LOOKUPS,
    MAX_NAME_LENGTH,
    MDNS_GOODBYE_TIMEOUT_S,
    MDNS_RESOLVE_TIMEOUT_MS,
)
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from zeroconf import ServiceListener, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

SERVICE_TYPE = "_meshnode._tcp.local."


_GATEWAY = re.compile(r"https?://(?:\[([0-9a-fA-F:]{2,39})\]|([0-9.]{7,15})):([0-9]{1,5})")
_NODE_NAME = re.compile(rf"([a-z2-7]{{32}})\.{re.escape(SERVICE_TYPE)}", re.IGNORECASE)
_MESH_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A node that was heard on the local network, as it describes itself.

    Attributes:
        node_id: Its id.
        mesh_id: The mesh that it belongs to.
        name: Its name.
        addresses: Where other nodes reach it.
        gateway: URL of its gateway as it reaches it itself; empty if it has none, or does not say.
    """

    node_id: NodeId
    mesh_id: str
    name: str
    addresses: tuple[Address, ...]
    gateway: str = ""


class Discovery:
    """Announces this node and listens for others, while it is open.

    Use as an async context manager. `interfaces` limits it to these IP addresses of this machine; by
    default all suitable ones are used.
    """

    def __init__(
        self,
        on_found: Callable[[Announcement], None],
        interfaces: Iterable[str] = (),
    ) -> None:
        """`on_found` is called in the event loop, once per announcement and change."""
        self._on_found = on_found
        self._interfaces = list(interfaces)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._heard: dict[str, Announcement] = {}

    def __repr__(self) -> str:
        return f"<Discovery {len(self._heard)} heard, {len(self._lookups)} looked up>"

    @property
    def heard(self) -> tuple[Announcement, ...]:
        """Who is there, as far as is known."""
        return tuple(self._heard.values())

    async def __aenter__(self) -> Self:
        """Open the multicast sockets and begin to listen.

        Raises:
            OSError: if the machine has no such interface, or none that can do multicast.
        """
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        try:
            self._zeroconf = AsyncZeroconf(interfaces=self._interfaces or InterfaceChoice.Default)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE_TYPE, listener=self._listener()
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say goodbye and close the sockets."""
        zeroconf, self._zeroconf = self._zeroconf, None
        assert zeroconf is not None
        assert self._browser is not None
        lookups = list(self._lookups.values())
        for task in lookups:
            task.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)
        await self._browser.async_cancel()
        if self._info is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MDNS_GOODBYE_TIMEOUT_S):
                    await (await zeroconf.async_unregister_service(self._info))
        await zeroconf.async_close()

    async def announce(self, announcement: Announcement) -> None:
        """Tell the local network about this node, until this is closed.

        Only addresses that are IP literals are told. Takes about a second: mDNS first asks whether
        the name is free.

        Raises:
            OSError: if it cannot be told.
        """
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo

        assert self._zeroconf is not None
        literals = [each for each in announcement.addresses if _is_literal(each.host)]
        addresses = [each for each in literals if each.port == literals[0].port]  # mDNS has one
        if not addresses:
            raise OSError("it has no address that could be told")
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{announcement.node_id}.{SERVICE_TYPE}",
            port=addresses[0].port,
            parsed_addresses=[address.host for address in addresses],
            properties={
                "mesh": announcement.mesh_id,
                "name": announcement.name,
                **({"gateway": announcement.gateway} if announcement.gateway else {}),
            },
            server=f"{announcement.node_id}.local.",
        )
        try:
            registered = await self._zeroconf.async_register_service(info)
            self._info = info
            await registered
        except Error as error:
            raise OSError(f"mDNS refused it: {str(error) or type(error).__name__}") from error

    def _listener(self) -> ServiceListener:
        from zeroconf import ServiceListener as Base

        discovery = self

        class Listener(Base):
            def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                del zc, type_
                discovery._look_up(name)

            def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                del zc, type_
                discovery._look_up(name)

            def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                del zc, type_
                discovery._heard.pop(name, None)

        return Listener()

    def _look_up(self, name: str) -> None:
        if (
            self._zeroconf is None
            or name in self._lookups
            or len(self._lookups) >= MAX_MDNS_LOOKUPS
            or not _NODE_NAME.fullmatch(name)
        ):
            return
        task = asyncio.ensure_future(self._resolve(name))
        self._lookups[name] = task
        task.add_done_callback(lambda _: self._lookups.pop(name, None))

    async def _resolve(self, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        assert self._zeroconf is not None
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if not await info.async_request(self._zeroconf.zeroconf, MDNS_RESOLVE_TIMEOUT_MS):
            return
        found = announcement_of(
            name, info.port, dict(info.decoded_properties), info.parsed_addresses()
        )
        if found is None or self._heard.get(name) == found:
            return
        self._heard.pop(name, None)
        self._heard[name] = found
        if len(self._heard) > MAX_MDNS_ANNOUNCEMENTS:
            del self._heard[next(iter(self._heard))]
        self._on_found(found)


def announcement_of(
    name: str, port: int | None, properties: Mapping[str, str | None], hosts: list[str]
) -> Announcement | None:
    """Return what a service's records say, or None unless all of it has the right form.

    The result holds nothing that a terminal would take for a command.
    """
    node = _NODE_NAME.fullmatch(name)
    mesh_id, node_name = properties.get("mesh") or "", properties.get("name") or ""
    if not node or not _MESH_ID.fullmatch(mesh_id) or not _NAME.fullmatch(node_name):
        return None
    usable = [host for host in hosts if _is_literal(host)][:MAX_MDNS_ADDRESSES]
    if not port or not usable:
        return None
    addresses = tuple(Address(host, port) for host in usable)
    gateway = _gateway(properties.get("gateway") or "")
    return Announcement(NodeId(node[1].lower()), mesh_id, node_name, addresses, gateway)


def _gateway(text: str) -> str:
    """Return the URL of a gateway at an IP address; empty for anything else."""
    found = _GATEWAY.fullmatch(text)
    if found is None:
        return ""
    host, port = (found[1] or found[2]), int(found[3])
    return text if _is_literal(host) and 0 < port < 2**16 else ""


def _is_literal(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast)
