"""The local network of one daemon: which meshes are there, and dialling members that are heard."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from meshnode.daemon.terminal import say
from meshnode.errors import ConfigError
from meshnode.hardware.addresses import reachable_hosts
from meshnode.limits import MAX_MDNS_DIALS
from meshnode.net.mdns import Announcement, Discovery
from meshnode.options import is_loopback

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterable

    from meshnode.daemon.driver import Driver

log = logging.getLogger("meshnode")

SEARCH_S = 2.0
"""How long a device without an invite listens for meshes on the local network."""

MDNS_RETRY_S = 10.0
"""How often members that were heard on the local network and have no link are dialled."""

_ANY_IPV4 = "0.0.0.0"  # noqa: S104 - stands for every interface; nothing is bound to it

_NAMES_SHOWN = 8  # nodes of one mesh that a search prints


class LocalNetwork:
    """What one daemon hears and says by mDNS.

    Attributes:
        discovery: The open sockets; None where mDNS does not work.
    """

    def __init__(self, driver: Driver, interfaces: tuple[str, ...]) -> None:
        """Dial through this driver; `interfaces` limits it to those addresses of this machine."""
        self._driver = driver
        self._interfaces = interfaces
        self.discovery: Discovery | None = None

    def __repr__(self) -> str:
        return f"<LocalNetwork {self.discovery!r}>"

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to listen, until the stack is left.

        Without a default route the system knows no interface for multicast by itself, so then every
        one that is up is named: a local network that leads nowhere else is one all the same.

        Raises:
            ConfigError: if mDNS does not work on the interfaces that were asked for.
        """
        try:
            try:
                await self._listen(stack, self._interfaces)
            except OSError:
                up = tuple(host for host in reachable_hosts(_ANY_IPV4) if not is_loopback(host))
                if self._interfaces or not up:
                    raise
                await self._listen(stack, up)
        except OSError as error:
            if self._interfaces:
                raise ConfigError(
                    f"--mdns-interface {', '.join(self._interfaces)}: mDNS does not work there "
                    f"({error}); give IP addresses of this machine"
                ) from error
            log.warning(
                "mDNS does not work here, for no network of this device takes multicast (%s): nodes "
                "on the local network are not found by themselves; join them with the line that "
                "`meshnode invite` prints, or connect a network and start this node again",
                error,
            )

    async def _listen(self, stack: contextlib.AsyncExitStack, interfaces: tuple[str, ...]) -> None:
        self.discovery = await stack.enter_async_context(Discovery(self._announced, interfaces))

    async def found_others(self) -> bool:
        """Search for a while; say what is there. True if there is a mesh to be admitted to."""
        if self.discovery is None:
            return False
        log.info("looking for meshes on the local network for %.0f s ...", SEARCH_S)
        await asyncio.sleep(SEARCH_S)
        meshes: dict[str, list[Announcement]] = {}
        for announcement in self.discovery.heard:
            meshes.setdefault(announcement.mesh_id, []).append(announcement)
        for mesh_id, nodes in sorted(meshes.items()):
            names = sorted(f"{each.name} ({each.addresses[0]})" for each in nodes)
            if len(names) > _NAMES_SHOWN:
                names[_NAMES_SHOWN:] = [f"{len(names) - _NAMES_SHOWN} more"]
            say(f"Found mesh {mesh_id} with {', '.join(names)}.")
        if meshes:
            say(
                "\nTo be admitted, run `meshnode invite` on one of these nodes and type the line that "
                "it prints here.\nTo found a separate mesh instead: meshnode join --new"
            )
        return bool(meshes)

    async def meet(self, mine: Announcement) -> None:
        """Announce this node, and dial members that were heard and are not linked; never returns."""
        assert self.discovery is not None
        try:
            await self.discovery.announce(mine)
        except OSError as error:
            log.warning("this node could not be announced by mDNS: %s", error)
        while True:
            self.dial(self.discovery.heard)
            await asyncio.sleep(MDNS_RETRY_S)

    def dial(self, announcements: Iterable[Announcement]) -> None:
        """Dial those that say they are of our mesh and have no link, a few at a time."""
        driver = self._driver
        if driver.node is None:
            return
        linked = set(driver.hub.peers()) | {driver.node.me}
        wanted = [
            each
            for each in announcements
            if each.mesh_id == driver.mesh_id and each.node_id not in linked
        ]
        if len(wanted) > MAX_MDNS_DIALS:
            wanted = random.sample(wanted, MAX_MDNS_DIALS)
        for each in wanted:
            driver.dial_heard(each.addresses, each.node_id)

    def _announced(self, announcement: Announcement) -> None:
        """Dial a member that was heard; those that this finds no room for come with the rounds."""
        self.dial([announcement])
