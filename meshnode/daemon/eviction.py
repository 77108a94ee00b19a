"""What becomes of a device whose node was evicted.

The daemon ends, with one sentence that says who decided it and why, and the data folder remembers that
sentence. From then on it belongs to no mesh: a start without an invite says what happened and ends, so
that a service does not try for ever. With a new invite the device begins anew, under another identity:
the old key is out for good, and whatever was evicted with it must not come back through it.

A device that had left before it was evicted has heard nothing of it, and kept its key. It learns that
from the node that refuses it when it joins again, and begins anew in the same way, once.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from meshnode.datafolder import Evicted
from meshnode.errors import ConfigError
from meshnode.trust.invite import Invite
from meshnode.trust.reasons import Reason
from meshnode.trust.records import rfc3339
from meshnode.types import Address

if TYPE_CHECKING:
    from meshnode.daemon.credentials import Credentials
    from meshnode.datafolder import DataFolder
    from meshnode.options import JoinOptions
    from meshnode.trust.reasons import TrustError

log = logging.getLogger("meshnode")

EXIT_CODE = 2
"""What a daemon ends with whose node was evicted: starting it again does not help."""


def begin_anew(folder: DataFolder, options: JoinOptions, now_wall_s: float) -> None:
    """Give a device that was evicted another identity, if it is to join or found a mesh; else refuse.

    Raises:
        ConfigError: if it was evicted and nothing says which mesh it shall belong to now.
        InviteError: if the invite for that cannot be used; nothing has changed then.
    """
    evicted = folder.evicted()
    if evicted is None:
        return
    if options.invite is None and options.ask is None and not options.new:
        raise ConfigError(evicted.sentence)
    if options.invite is not None:
        Invite.parse(options.invite).require_current(now_wall_s)
    folder.start_anew()
    log.info("this device was evicted from mesh %s; it goes on as a new node", evicted.mesh_id)


def is_of_an_old_key(error: TrustError, credentials: Credentials) -> bool:
    """Whether a device that belongs to no mesh was refused because a key is revoked there.

    It may be its inviter's key, and who refuses has proven nothing: another key does no harm then, since
    nobody knows the device by the one that it has.
    """
    return credentials.mesh_id is None and error.by_peer and error.reason is Reason.REVOKED


def take_another_key(folder: DataFolder) -> None:
    """Forget the identity of a device that belongs to no mesh, so that the next start makes another.

    Raises:
        ConfigError: if it could not be removed.
    """
    folder.start_anew()
    log.info(
        "a key is revoked in that mesh, as if this device had been evicted after it had left: it tries "
        "again as a new node"
    )


def remember(folder: DataFolder, mesh_id: str, why: str, now_wall_s: float) -> None:
    """Say what happened, and write it down; where the disk refuses, say it again at the next start."""
    evicted = Evicted(mesh_id, why, rfc3339(now_wall_s))
    log.error("%s", evicted.sentence)
    try:
        folder.evict(evicted)
    except ConfigError as error:
        log.error("that could not be written down: %s", error)


def as_successor(
    options: JoinOptions, mesh_address: Address, http: str | None, grpc: str | None = None
) -> JoinOptions:
    """Return how a device goes on whose node has a new key: the same, at the ports that it has.

    Args:
        options: How it was started.
        mesh_address: Where its mesh listens.
        http: URL of its gateway, or None.
        grpc: Where it serves gRPC, `HOST:PORT`, or None.
    """
    gateway, grpc_address = options.http, options.grpc
    if grpc_address is not None and grpc_address.host and grpc is not None:
        grpc_address = Address(grpc_address.host, int(grpc.rpartition(":")[2]))
    if gateway is not None and http is not None:
        gateway = Address(gateway.host, int(http.rpartition(":")[2]))
    return dataclasses.replace(
        options,
        invite=None,
        ask=None,
        new=False,
        rejoin=True,
        http=gateway,
        grpc=grpc_address,
        listen=Address(options.listen.host, mesh_address.port),
    )
