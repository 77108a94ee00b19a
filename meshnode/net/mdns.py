"""Multicast DNS: finding nodes on the local network. A hint for where to dial, never a reason to trust.

Each node announces `<node id>._meshnode._tcp.local.` with its mesh's id and its name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from zeroconf import ServiceListener, Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

SERVICE_TYPE = "_meshnode._tcp.local."
_MAX_SEEN = 1024  # announcements kept; a flood on the local network must not fill the memory
_RESOLVE_TIMEOUT_MS = 1500  # asking a machine on the same network takes far less


@dataclass(frozen=True, slots=True)
class Announcement:
    """A node that was heard on the local network, as it describes itself."""

    node_id: NodeId
    mesh_id: str
    name: str
    addresses: tuple[Address, ...]


class Discovery:
    """Announces this node and listens for others, while it is open.

    Use as an async context manager. `interfaces` limits it to these IP addresses (the tests use
    loopback); by default all suitable ones are used.
    """

    def __init__(
        self,
        on_found: Callable[[Announcement], None],
        interfaces: Iterable[str] | None = None,
    ) -> None:
        """`on_found` is called in the event loop, once per announcement and change."""
        self._on_found = on_found
        self._interfaces = list(interfaces) if interfaces is not None else None
        self._zeroconf: AsyncZeroconf | None = None
        self._info: AsyncServiceInfo | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: dict[str, Announcement] = {}

    async def __aenter__(self) -> Self:
        """Open the multicast sockets and begin to listen.

        Raises:
            OSError: if the machine has no interface that can do multicast.
        """
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        self._zeroconf = AsyncZeroconf(interfaces=self._interfaces or InterfaceChoice.Default)
        AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, listener=self._listener())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say goodbye and close the sockets."""
        for task in self._tasks:
            task.cancel()
        if self._zeroconf is not None:
            if self._info is not None:
                goodbye = await self._zeroconf.async_unregister_service(self._info)
                await goodbye
            await self._zeroconf.async_close()
            self._zeroconf = None

    async def announce(self, announcement: Announcement) -> None:
        """Tell the local network about this node, until this is closed."""
        from zeroconf.asyncio import AsyncServiceInfo

        assert self._zeroconf is not None
        self._info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{announcement.node_id}.{SERVICE_TYPE}",
            port=announcement.addresses[0].port,
            parsed_addresses=[address.host for address in announcement.addresses],
            properties={"mesh": announcement.mesh_id, "name": announcement.name},
            server=f"{announcement.node_id}.local.",
        )
        registered = await self._zeroconf.async_register_service(self._info)
        await registered

    def _listener(self) -> ServiceListener:
        from zeroconf import ServiceListener as Base

        discovery = self

        class Listener(Base):
            def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                del zc
                discovery._heard(type_, name)

            def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                del zc
                discovery._heard(type_, name)

            def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                del zc, type_
                discovery._seen.pop(name, None)

        return Listener()

    def _heard(self, service_type: str, name: str) -> None:
        if self._zeroconf is None or len(self._tasks) >= _MAX_SEEN or len(self._seen) >= _MAX_SEEN:
            return
        task = asyncio.ensure_future(self._resolve(service_type, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, service_type: str, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        assert self._zeroconf is not None
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(self._zeroconf.zeroconf, _RESOLVE_TIMEOUT_MS):
            return
        found = _announcement_of(info, name)
        if found is not None and self._seen.get(name) != found:
            self._seen[name] = found
            self._on_found(found)


def _announcement_of(info: AsyncServiceInfo, name: str) -> Announcement | None:
    properties = info.decoded_properties
    mesh_id, node_name = properties.get("mesh"), properties.get("name")
    node_id = name.removesuffix(f".{SERVICE_TYPE}")
    if not mesh_id or not node_name or not info.port or len(node_name) > 63 or len(node_id) != 32:
        return None
    printable = "".join(char for char in node_name if char.isprintable())
    addresses = tuple(Address(host, info.port) for host in info.parsed_addresses()[:8])
    return Announcement(NodeId(node_id), mesh_id[:64], printable, addresses) if addresses else None
