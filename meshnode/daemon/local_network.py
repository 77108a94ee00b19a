"""The local network of one daemon: which meshes are there, and dialling members that are heard."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from meshnode.daemon.asking import FoundMesh, meshes_of
from meshnode.errors import ConfigError
from meshnode.hardware.addresses import multicast_hosts
from meshnode.limits import MAX_MDNS_DIALS
from meshnode.net.mdns import Announcement, Discovery
from meshnode.throttle import Throttle
from meshnode.types import NodeState

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterable

    from meshnode.daemon.driver import Driver

log = logging.getLogger("meshnode")

SEARCH_S = 2.0
"""How long a device without an invite listens for meshes on the local network."""

MDNS_RETRY_S = 10.0
"""How often members that were heard on the local network and have no link are dialled, and it is looked
whether there are other networks than before."""


class LocalNetwork:
    """What one daemon hears and says by mDNS.

    Attributes:
        discovery: The open sockets; None where mDNS does not work at present.
    """

    def __init__(self, driver: Driver, interfaces: tuple[str, ...]) -> None:
        """Dial through this driver; `interfaces` limits it to those addresses of this machine."""
        self._driver = driver
        self._interfaces = interfaces
        self._hosts: tuple[str, ...] = ()
        self._told: Announcement | None = None
        self._throttle = Throttle(
            burst=MAX_MDNS_DIALS, refill_s=MDNS_RETRY_S / MAX_MDNS_DIALS, max_sources=1
        )
        self.discovery: Discovery | None = None

    def __repr__(self) -> str:
        return f"<LocalNetwork {self.discovery!r}>"

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to listen on every suitable interface, until the stack is left.

        Raises:
            ConfigError: if mDNS does not work on the interfaces that were asked for.
        """
        stack.push_async_callback(self._close)
        try:
            await self._listen(self._suitable())
        except OSError as error:
            if self._interfaces:
                raise ConfigError(
                    f"--mdns-interface {', '.join(self._interfaces)}: mDNS does not work there "
                    f"({error}); give IP addresses of this machine"
                ) from error
            log.warning(
                "mDNS does not work here, for no network of this device takes multicast (%s): nodes "
                "on the local network are not found by themselves; join them with the line that "
                "`meshnode invite` prints, or connect a network, which this node will notice",
                error,
            )

    def _suitable(self) -> tuple[str, ...]:
        """Return an address of each interface to be found on; none lets the system choose."""
        return self._interfaces or multicast_hosts()

    async def _listen(self, hosts: tuple[str, ...]) -> None:
        """Open the sockets anew on these interfaces.

        Raises:
            OSError: if that does not work; none are open then.
        """
        await self._close()
        self._hosts = hosts
        discovery = Discovery(self._announced, hosts)
        await discovery.__aenter__()
        self.discovery = discovery

    async def _close(self) -> None:
        discovery, self.discovery, self._told = self.discovery, None, None
        if discovery is not None:
            await discovery.__aexit__(None, None, None)

    async def search(self) -> tuple[FoundMesh, ...]:
        """Listen for a while; return the meshes that were heard, none where mDNS does not work."""
        if self.discovery is None:
            return ()
        log.info("looking for meshes on the local network for %.0f s ...", SEARCH_S)
        await asyncio.sleep(SEARCH_S)
        return meshes_of(self.discovery.heard)

    async def meet(self, mine: Callable[[], Announcement]) -> None:
        """Announce this node, and dial members that were heard and are not linked; never returns.

        Follows the machine's networks: one that appears is listened on, and what is announced is
        what `mine` returns at the time.
        """
        while True:
            await self._follow(mine())
            if self.discovery is not None:
                self.dial(self.discovery.heard)
            await asyncio.sleep(MDNS_RETRY_S)

    async def _follow(self, mine: Announcement) -> None:
        """See that the sockets are open where they should be, and that they say what they should."""
        hosts = self._suitable()
        is_outdated = self._told is not None and mine != self._told
        if self.discovery is None or hosts != self._hosts or is_outdated:
            was_closed = self.discovery is None
            try:
                await self._listen(hosts)
            except OSError as error:
                log.debug("mDNS does not work yet: %s", error)
                return
            if was_closed:
                log.info("mDNS works now, on %s", ", ".join(hosts) or "the system's choice")
        if self._told is None:
            self._told = mine
            assert self.discovery is not None
            try:
                await self.discovery.announce(mine)
            except OSError as error:
                log.warning("this node could not be announced by mDNS: %s", error)

    def dial(self, announcements: Iterable[Announcement]) -> None:
        """Dial those that say they are of our mesh and have no link, a few at a time."""
        wanted = self._wanted(announcements)
        if len(wanted) > MAX_MDNS_DIALS:
            wanted = random.sample(wanted, MAX_MDNS_DIALS)
        for each in wanted:
            self._driver.dial_heard(each.addresses, each.node_id)

    def _wanted(self, announcements: Iterable[Announcement]) -> list[Announcement]:
        driver = self._driver
        if driver.node is None:
            return []
        members = driver.node.membership.members
        # Membership sees to the links between members that are alive: not all have one in a large mesh.
        settled = {node for node, it in members.items() if it.state is NodeState.ALIVE}
        settled.update((driver.node.me, *driver.hub.peers()))
        return [
            each
            for each in announcements
            if each.mesh_id == driver.mesh_id and each.node_id not in settled
        ]

    def _announced(self, announcement: Announcement) -> None:
        """Dial a member that was heard; those that this finds no room for come with the rounds.

        Anyone may announce any number of names at somebody else's address: this node must not be
        what knocks there for each of them.
        """
        now = asyncio.get_running_loop().time()
        if self._wanted([announcement]) and not self._throttle.take("", now):
            self.dial([announcement])
