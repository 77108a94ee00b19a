"""`meshnode doctor` where no daemon runs: from the data folder or an invite alone.

Nothing is written, and no link comes up: hellos are trials. With an invite the key is one that is made
for the trial and thrown away, so nobody is admitted.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshnode import __version__
from meshnode.daemon.credentials import Credentials
from meshnode.daemon.doctor import Listening, address_in, address_seen, view
from meshnode.daemon.own_node import known_members
from meshnode.datafolder import DataFolder, is_member, read_evicted, read_mesh
from meshnode.diagnosis.subjects import (
    diagnose_address,
    diagnose_evicted,
    diagnose_invite,
    diagnose_outsider,
    diagnose_pair,
    diagnose_stopped,
    diagnose_stranger,
)
from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_DOCTOR_PEERS
from meshnode.net.trial import trial_hello, try_addresses
from meshnode.observations import InviteSeen, PairSeen
from meshnode.trust.chain import found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from meshnode.clock import Clock
    from meshnode.trust.hello import DiallerHello

_HERE = "this device"


async def examine_invite(line: str, data_dir: Path, clock: Clock) -> dict[str, Any]:
    """Find out whether an invite would let this device in.

    Raises:
        InviteError: if the line is no invite.
        ConfigError: if the data folder cannot be read.
    """
    invite = Invite.parse(line)
    mine = read_mesh(data_dir)
    begin_hello = trial_hello(Identity(secrets.token_bytes(32)), invite, _boot(), None)
    seen = InviteSeen(
        invite.mesh_id,
        invite.expires_at,
        is_expired=clock.wall_s() > invite.grant.expires_at_s,
        own_mesh_id=mine.mesh_id if mine is not None else "",
        trials=await try_addresses(invite.seeds, begin_hello, clock),
    )
    return view(f"the invite to mesh {invite.mesh_id}", "", diagnose_invite(seen))


async def examine_stopped(data_dir: Path, peer: str, clock: Clock) -> AsyncIterator[dict[str, Any]]:
    """Examine a device whose node does not run; yields each subject as soon as it is examined.

    Args:
        data_dir: Its data folder; it may belong to no mesh, or not be there.
        peer: A member's name or id, or an address; empty for all members that it knows.
        clock: Compared with others' clocks.

    Raises:
        ConfigError: if the folder cannot be used, or a daemon has just started on it.
        InvalidRequest: if it knows no such member, and it is no address.
    """
    evicted = read_evicted(data_dir)
    if evicted is not None:
        yield view(_HERE, "", [diagnose_evicted(evicted.mesh_id, evicted.why, evicted.at)])
        return
    if not is_member(data_dir):
        async for found in _examine_outsider(peer, clock):
            yield found
        return
    folder = DataFolder(data_dir)
    try:
        credentials = Credentials(folder, clock)
        members = known_members(folder, credentials)
    finally:
        folder.close()
    yield view(_HERE, credentials.node_id, [diagnose_stopped()])
    wanted = [each for each in members if peer in ("", each.name, each.node_id)]
    address = address_in(peer)
    if not wanted and peer and address is None:
        known = ", ".join(sorted(each.name for each in members)) or "none"
        raise InvalidRequest(f"this device knows no node that is called {peer!r}; it knows {known}")
    for each in wanted[:MAX_DOCTOR_PEERS]:
        places = [Address(*place) for place in each.addresses]
        trials = await try_addresses(places, _member_hello(credentials, each.node_id), clock)
        seen = PairSeen(each.name, __version__, trials=trials)
        yield view(each.name, each.node_id, diagnose_pair(seen))
    if wanted:
        return
    # An address, or nobody was ever met: where the invite said that the mesh is.
    for seed in credentials.seeds if address is None else (address,):
        (trial,) = await try_addresses((seed,), _member_hello(credentials, None), clock)
        at_address = replace(address_seen(trial, seed, members), has_members=False)
        yield view(str(seed), trial.node, diagnose_address(at_address))


def _member_hello(
    credentials: Credentials, expect: NodeId | None
) -> Callable[[bytes], DiallerHello]:
    return trial_hello(credentials.identity, credentials.member, credentials.boot, expect)


async def _examine_outsider(peer: str, clock: Clock) -> AsyncIterator[dict[str, Any]]:
    """Examine a device that belongs to no mesh: a node that it finds says that it is of another."""
    if not peer:
        heard, _ = await Listening().heard()
        yield view(_HERE, "", diagnose_outsider([(each.name, each.mesh_id) for each in heard]))
        return
    address = address_in(peer)
    if address is None:
        raise InvalidRequest(
            "this device belongs to no mesh, so it knows no nodes by their names: give an address, such "
            "as 192.0.2.7:8471"
        )
    identity = Identity(secrets.token_bytes(32))
    member = found_mesh(identity, secrets.token_bytes(32), clock.wall_s())
    trials = await try_addresses((address,), trial_hello(identity, member, _boot(), None), clock)
    yield view(str(address), "", diagnose_stranger(trials[0]))


def _boot() -> int:
    return int.from_bytes(os.urandom(8), "big")
