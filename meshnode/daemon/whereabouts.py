"""Where others reach this node, followed while it runs.

A laptop changes networks, a router hands out another address, a cable is plugged in after the start.
The operating systems tell that in three different ways, and asking costs a third of a millisecond, so
this asks every few seconds. What follows a change: the member record with its addresses and its
gateway, where datagrams and dials may lead, and links that end at an address this machine has no more,
which would be silent until they are given up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meshnode.daemon.own_node import told_addresses
from meshnode.hardware.addresses import reachable_hosts
from meshnode.limits import ADDRESS_POLL_S
from meshnode.options import is_loopback

if TYPE_CHECKING:
    from meshnode.daemon.assembly import Assembly
    from meshnode.options import JoinOptions
    from meshnode.types import Address

log = logging.getLogger("meshnode")


class Whereabouts:
    """Follows the addresses of one node."""

    def __init__(self, mesh: Assembly, options: JoinOptions, mesh_address: Address) -> None:
        """Follow for this member.

        Args:
            mesh: Told what has changed.
            options: What its owner said about addresses.
            mesh_address: Where it listens.
        """
        self._mesh = mesh
        self._options = options
        self._address = mesh_address
        self._hosts = reachable_hosts(mesh_address.host)

    def __repr__(self) -> str:
        return f"<Whereabouts {', '.join(self._hosts)}>"

    async def follow(self) -> None:
        """Look every few seconds; never returns."""
        while True:
            await asyncio.sleep(ADDRESS_POLL_S)
            self.look()

    def look(self) -> bool:
        """Look once; say whether the addresses are other ones than before.

        A machine that has lost its last network keeps what it told: nobody hears of another one, and
        most often the same one comes back.
        """
        hosts = reachable_hosts(self._address.host)
        if hosts == self._hosts or all(map(is_loopback, hosts)):
            return False
        gone = frozenset(self._hosts) - frozenset(hosts)
        self._hosts = hosts
        log.info("this device's addresses are %s now", ", ".join(hosts))
        self._mesh.driver.reached_at(hosts)
        self._mesh.hub.leave_addresses(gone)
        self._mesh.moved(told_addresses(self._options, self._address))
        return True
