"""This node as its mesh first hears of it: its record, and its cores with what its data folder remembers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from meshnode.errors import ProtocolError
from meshnode.hardware.addresses import reachable_hosts
from meshnode.membership.messages import MemberRecord, read_members, sign_record
from meshnode.node import Node, NodeConfig, NodeTrust
from meshnode.settings.tuning import membership_config
from meshnode.types import Address

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.surroundings import Surroundings
    from meshnode.datafolder import DataFolder
    from meshnode.options import JoinOptions

log = logging.getLogger(__name__)


def own_node(
    options: JoinOptions,
    folder: DataFolder,
    credentials: Credentials,
    record: MemberRecord,
    surroundings: Surroundings,
) -> Node:
    """Compose this node's cores."""
    return Node(
        record=record,
        trust=NodeTrust(credentials.identity, credentials.authority),
        rng=surroundings.rng(),
        config=NodeConfig(membership=membership_config(options)),
        seeds=credentials.seeds,
        known=known_members(folder, credentials),
        stored_desired=folder.state("desired"),
    )


def own_record(
    options: JoinOptions,
    folder: DataFolder,
    credentials: Credentials,
    clock: Clock,
    mesh_address: Address,
    capabilities: dict[str, Any],
) -> MemberRecord:
    """Make and sign this node's record for a new boot epoch.

    Raises:
        ConfigError: if the epoch cannot be written.
    """
    addresses = told_addresses(options, mesh_address)
    record = MemberRecord(
        public_key=credentials.identity.public_key,
        name=options.name,
        region=options.region if options.region_chosen else credentials.region or options.region,
        zone=options.zone,
        labels=dict(options.labels),
        addresses=addresses,
        http="",
        epoch=folder.next_epoch(clock.wall_s()),
        counter=0,
        boot=credentials.boot,
        capabilities=capabilities,
        chain=credentials.member.chain,
    )
    return sign_record(record, credentials.identity.sign)


def told_addresses(options: JoinOptions, mesh_address: Address) -> tuple[Address, ...]:
    """Return where others are told to reach this node: where its owner says, or on its interfaces."""
    if options.advertise:
        return tuple(Address(host, port or mesh_address.port) for host, port in options.advertise)
    hosts = reachable_hosts(mesh_address.host)
    return tuple(Address(host, mesh_address.port) for host in hosts)


def known_members(folder: DataFolder, credentials: Credentials) -> tuple[MemberRecord, ...]:
    """Return the records of members that the data folder has, as far as they hold."""
    saved = folder.state("members")
    if saved is None:
        return ()
    try:
        records = read_members(saved)
    except ProtocolError as error:
        log.warning("the list of known members is damaged and was dropped: %s", error)
        return ()
    return tuple(each for each in records if credentials.authority.verify_record(each) is None)
