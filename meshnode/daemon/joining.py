"""Which mesh a start belongs to: the one it has, that of an invite, one that admits it, or a new one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshnode.daemon.asking import Newcomer, doors_named, is_only_an_address
from meshnode.daemon.choosing import NothingChosen, choose
from meshnode.daemon.terminal import say
from meshnode.errors import ConfigError, InviteError, LinkLost
from meshnode.options import DEFAULT_LISTEN, no_mesh_to_rejoin
from meshnode.trust.invite import Invite

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from meshnode.daemon.asking import Door, FoundMesh
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.local_network import LocalNetwork
    from meshnode.membership.addresses import Kind
    from meshnode.net.links import LinkHub
    from meshnode.options import JoinOptions

log = logging.getLogger("meshnode")


def check_mesh(options: JoinOptions, credentials: Credentials, now_wall_s: float) -> Invite | None:
    """Decide between rejoining (None), joining by invite, and founding (None, no mesh yet).

    An invite of its own mesh tells a member where the mesh is now.

    Raises:
        ConfigError: if what was asked for does not fit the mesh that the device has, or has not.
        InviteError: if the invite is damaged, expired or of another mesh.
    """
    mine = credentials.mesh_id
    if options.invite is None:
        if options.new and mine is not None:
            raise ConfigError(
                f"{options.data_dir} belongs to mesh {mine} already; start it without --new, or "
                "found another mesh with another --data-dir"
            )
        if options.ask is not None and mine is not None:
            log.info("this device is a member of mesh %s already; it asks nobody", mine)
        if options.rejoin and mine is None:
            raise ConfigError(no_mesh_to_rejoin(options.data_dir))
        return None
    invite = Invite.parse(options.invite)
    if mine is None:
        invite.require_current(now_wall_s)
        return invite
    if mine != invite.mesh_id:
        raise InviteError(
            f"{options.data_dir} belongs to mesh {mine}, and the invite to mesh "
            f"{invite.mesh_id}; name another folder with --data-dir, or remove this one to "
            "leave its mesh for good"
        )
    # Every address it knows may be an old one; those of the invite are of today.
    credentials.remember_seeds(invite.seeds)
    log.info("this device is a member already; the invite's addresses are tried to find the mesh")
    return None


async def be_admitted(credentials: Credentials, hub: LinkHub, invite: Invite) -> bool:
    """Join by an invite; return True when this device is a member.

    Raises:
        HandshakeError: if the mesh refused it.
        LinkLost: if no address of the invite could be reached.
    """
    where = ", ".join(str(seed) for seed in invite.seeds)
    log.info("joining mesh %s through %s", invite.mesh_id, where)
    credentials.invite = invite
    try:
        await hub.connect(invite.seeds, None)
    except LinkLost as error:
        port = invite.seeds[0].port if invite.seeds else DEFAULT_LISTEN.port
        raise LinkLost(
            f"no address of the invite could be reached: {error}. On the inviting device, check "
            "with `meshnode status` that its node runs, and that its port is open for TCP and UDP, "
            f"such as with `sudo ufw allow {port}`; behind a router or in a cloud it must be started "
            "with --advertise and an address that this device can reach. To find out which of these it is, "
            "run `meshnode doctor --invite INVITE` here"
        ) from error
    return True


async def come_in(
    options: JoinOptions,
    credentials: Credentials,
    hub: LinkHub,
    network: LocalNetwork,
    kinds: Collection[Kind],
) -> bool:
    """Ask to be admitted where that is meant, else found a mesh; False if nobody says which.

    Args:
        options: What was asked for.
        credentials: Where the admission is kept.
        hub: Through which to ask.
        network: Where meshes are heard.
        kinds: Where addresses may lead that others say.

    Raises:
        ConfigError: if `--ask` means nothing here.
        HandshakeError: if those that were asked refused, or nobody approved in time.
        LinkLost: if none of them could be reached.
    """
    doors: tuple[Door, ...] = ()
    if options.ask is not None:
        meshes = () if is_only_an_address(options.ask) else await network.search()
        doors = doors_named(options.ask, meshes)
    elif not options.new and (meshes := await network.search()):
        if not options.on_terminal:
            _say_found(meshes)
            return False
        try:
            doors = await choose(meshes)
        except NothingChosen:
            say("\nNothing was chosen.")
            return False
    if doors:
        newcomer = Newcomer(credentials, hub, options.name, kinds, on_terminal=options.on_terminal)
        await newcomer.ask(doors)
    else:
        credentials.found()
        log.info("founded a new mesh")
    return True


def _say_found(meshes: Sequence[FoundMesh]) -> None:
    """Tell what was heard, and what can be done, where nobody can be asked."""
    for mesh in meshes:
        say(f"Found mesh {mesh.mesh_id} with {mesh.names}.")
    say(
        "\nTo be admitted, ask one of these meshes: meshnode join --ask "
        f"{meshes[0].mesh_id[:8]}\nthen type the code that it shows on the node that it names; or run "
        "`meshnode invite` on one of these nodes and type the line that it prints here.\nTo found a "
        "separate mesh instead: meshnode join --new"
    )
