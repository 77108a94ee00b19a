"""`meshnode doctor`: trying what a mesh needs, from inside a daemon or without one.

What is tried ends as observations (`meshnode.observations`); `meshnode.diagnosis` says what they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from meshnode import __version__
from meshnode.daemon.named import name_of, node_named
from meshnode.diagnosis.subjects import diagnose_address, diagnose_pair, diagnose_self
from meshnode.errors import InvalidRequest, MeshError
from meshnode.hardware.addresses import multicast_hosts
from meshnode.limits import (
    CHECKUP_PAUSE_S,
    DOCTOR_LISTEN_S,
    MAX_MDNS_ANNOUNCEMENTS,
    TWIN_REMEMBERED_S,
)
from meshnode.membership.addresses import Kind, kind_of
from meshnode.net.mdns import Announcement, Discovery
from meshnode.net.trial import is_near, own_networks, trial_hello, try_addresses
from meshnode.observations import (
    AddressSeen,
    CheckupSeen,
    Multicast,
    Outcome,
    PairSeen,
    SelfSeen,
    Trial,
)
from meshnode.options import DEFAULT_LISTEN, only_here, parse_address
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.checkup import Checkups
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.driver import Driver
    from meshnode.diagnosis.checks import Check
    from meshnode.membership.messages import MemberRecord
    from meshnode.node import Node
    from meshnode.options import JoinOptions


_LOOK_S = 0.05  # how often it is looked whether a node was heard


class Doctor:
    """Examines this node, or what lies between it and another."""

    def __init__(
        self,
        *,
        node: Node,
        driver: Driver,
        credentials: Credentials,
        checkups: Checkups,
        options: JoinOptions,
        clock: Clock,
    ) -> None:
        """Try through these."""
        self._node = node
        self._driver = driver
        self._credentials = credentials
        self._checkups = checkups
        self._clock = clock
        self._listening = Listening(options.mdns_interfaces) if options.mdns else None

    def __repr__(self) -> str:
        return f"<Doctor of {self._node.me[:8]}>"

    async def examine(self, peer: str) -> dict[str, Any]:
        """Examine what lies between this node and another, or this node alone.

        Args:
            peer: A node's name or id; an address such as `192.0.2.7:8471`; empty for this node.

        Returns:
            `{"subject", "id", "checks"}` as docs/cli.md has it.

        Raises:
            InvalidRequest: if there is no such node, and it is no address.
        """
        if not peer:
            return await self._examine_self()
        try:
            node = node_named(self._node.membership.members, peer)
        except InvalidRequest:
            evicted = self._examine_evicted(peer)
            if evicted is not None:
                return evicted
            address = address_in(peer)
            if address is None:
                raise
            return await self._examine_address(address)
        return await (self._examine_self() if node == self._node.me else self._examine_pair(node))

    # Subjects

    async def _examine_self(self) -> dict[str, Any]:
        me = self._node.me
        addresses = self._driver.addresses_of(me)
        trials, (mdns, error, heard) = await asyncio.gather(
            self._try(addresses, None, None), self._hear_self()
        )
        shown = tuple(map(str, addresses))
        seen = SelfSeen(
            shown,
            trials,
            is_only_here=only_here(shown),
            mdns=mdns,
            mdns_error=error,
            heard=heard,
            twins=self._runs_twice(me),
        )
        return view(self._node.membership.record.name, me, diagnose_self(seen))

    async def _examine_pair(self, peer: NodeId) -> dict[str, Any]:
        addresses = self._driver.addresses_of(peer)
        trials, mdns = await asyncio.gather(
            self._try(addresses, peer, self._driver.kinds), self._hear(peer, addresses)
        )
        can_link = any(trial.outcome is Outcome.ANSWERED for trial in trials)
        connection = self._driver.linked(peer)
        if connection is None and can_link:
            connection = await self._driver.link(peer)  # in a large mesh not all pairs have one
        checkup, no_checkup = None, ""
        if connection is not None:
            checkup, no_checkup = await self._ask(peer)
        name = self._node.membership.members[peer].record.name
        seen = PairSeen(
            name,
            __version__,
            is_linked=connection is not None,
            rtt_s=self._driver.rtt_s(peer),
            trials=trials,
            checkup=checkup,
            no_checkup=no_checkup,
            mdns=mdns,
            twins=self._runs_twice(peer),
            relay=self._relay_of(peer),
        )
        return view(name, peer, diagnose_pair(seen))

    def _relay_of(self, peer: NodeId) -> str:
        relay = self._driver.relay(peer)
        return "" if relay is None else name_of(self._node.membership.members, relay)

    def _examine_evicted(self, peer: str) -> dict[str, Any] | None:
        """Return what is known of a node that was evicted, by its name or id; None if none was."""
        for row in self._credentials.authority.revoked():
            if peer in (row.node, row.name):
                name = row.name or row.node
                seen = PairSeen(name, __version__, evicted=row.why or str(row.reason))
                return view(name, row.node, diagnose_pair(seen))
        return None

    async def _examine_address(self, address: Address) -> dict[str, Any]:
        (trial,) = await self._try((address,), None, None)
        # A trial asks the mesh's chain alone: one that was evicted still shows a good one.
        evicted = self._examine_evicted(trial.node) if trial.node else None
        if evicted is not None:
            return evicted
        members = self._node.membership.members
        others = [each for each in members.values() if each.node_id != self._node.me]
        member = members.get(NodeId(trial.node))
        seen = address_seen(trial, address, [each.record for each in others])
        seen = replace(seen, standing=None if member is None else member.state)
        return view(str(address), trial.node, diagnose_address(seen))

    # Trying

    async def _try(
        self,
        addresses: Sequence[Address],
        expect: NodeId | None,
        kinds: frozenset[Kind] | None,
    ) -> tuple[Trial, ...]:
        mine = self._credentials
        begin_hello = trial_hello(mine.identity, mine.member, mine.boot, expect)
        return await try_addresses(addresses, begin_hello, self._clock, kinds)

    def _runs_twice(self, node: NodeId) -> bool:
        seen_at = self._driver.twins.get(node)
        return seen_at is not None and self._clock.now() - seen_at < TWIN_REMEMBERED_S

    async def _ask(self, peer: NodeId) -> tuple[CheckupSeen | None, str]:
        """Return what a checkup brought, or why there was none; a busy peer is asked again once."""
        try:
            return await self._checkups.ask(peer), ""
        except MeshError as error:
            if not error.retryable:
                return None, str(error)
        await asyncio.sleep(CHECKUP_PAUSE_S)
        try:
            return await self._checkups.ask(peer), ""
        except MeshError as error:
            return None, str(error)

    async def _hear(self, peer: NodeId, addresses: Iterable[Address]) -> Multicast | None:
        """Return whether a node on one of our networks is heard by mDNS; None if it is on none."""
        if self._listening is None or not shares_network(addresses):
            return None
        heard, error = await self._listening.heard(peer)
        if error:
            return Multicast.BROKEN
        found = any(each.node_id == peer for each in heard)
        return Multicast.HEARD if found else Multicast.SILENT

    async def _hear_self(self) -> tuple[Multicast, str, int]:
        if self._listening is None:
            return Multicast.OFF, "", 0
        heard, error = await self._listening.heard()
        if error:
            return Multicast.BROKEN, error, 0
        others = {each.node_id for each in heard} - {self._node.me}
        is_heard = len(others) < len({each.node_id for each in heard})
        return (Multicast.HEARD if is_heard else Multicast.SILENT), "", len(others)


class Listening:
    """Listens for mDNS with sockets of its own, so that nothing is remembered from before."""

    def __init__(self, interfaces: tuple[str, ...] = ()) -> None:
        """Listen at these addresses of this machine, or wherever multicast is possible."""
        self._interfaces = interfaces
        self._listening: asyncio.Task[str] | None = None
        self._heard: tuple[Announcement, ...] = ()

    def __repr__(self) -> str:
        return f"<Listening on {', '.join(self._interfaces) or 'all interfaces'}>"

    async def heard(self, node: NodeId | None = None) -> tuple[tuple[Announcement, ...], str]:
        """Listen for a while; calls that come meanwhile share it.

        Args:
            node: Whom to listen for: once it is heard, the rest of the time is not waited for.

        Returns:
            Who announces itself, and why that cannot be known, which is empty if it can.
        """
        if self._listening is None or self._listening.done():
            self._heard = ()
            self._listening = asyncio.ensure_future(self._listen())
        listening = self._listening
        while not listening.done() and all(each.node_id != node for each in self._heard):
            await asyncio.wait((listening,), timeout=_LOOK_S)
        return self._heard, listening.result() if listening.done() else ""

    async def _listen(self) -> str:
        try:
            async with Discovery(self._found, self._interfaces or multicast_hosts()):
                await asyncio.sleep(DOCTOR_LISTEN_S)
        except OSError as error:
            return str(error) or "no network of this device takes multicast"
        return ""

    def _found(self, announcement: Announcement) -> None:
        if len(self._heard) < MAX_MDNS_ANNOUNCEMENTS:
            others = (each for each in self._heard if each.node_id != announcement.node_id)
            self._heard = (*others, announcement)


def view(subject: str, node: str, checks: Sequence[Check]) -> dict[str, Any]:
    """Return checks as a document."""
    return {"subject": subject, "id": node, "checks": [asdict(check) for check in checks]}


def address_in(text: str) -> Address | None:
    """Return the address that a text is, or None; a port may be left out, a single word is a name."""
    if ":" not in text and "." not in text:
        return None
    with contextlib.suppress(MeshError):
        return parse_address("PEER", text, DEFAULT_LISTEN.port)
    return None


def address_seen(trial: Trial, address: Address, records: Iterable[MemberRecord]) -> AddressSeen:
    """Return what was seen at an address, with the name of whose it is.

    Args:
        trial: How the address fared.
        address: The address.
        records: The other members that are known.
    """
    known = tuple(records)
    told = [each.name for each in known if address in {Address(*at) for at in each.addresses}]
    answered = [each.name for each in known if each.node_id == trial.node]
    names = answered if trial.node else told
    return AddressSeen(trial, names[0] if len(names) == 1 else "", is_told=bool(told))


def shares_network(addresses: Iterable[Address]) -> bool:
    """Whether one of these addresses is in a network of this machine that leads to other machines."""
    networks = own_networks()
    return any(
        kind_of(address.host) is Kind.ROUTED and is_near(address.host, networks)
        for address in addresses
    )
