"""How a device without a mesh and without an invite comes to one: it looks around, chooses, and asks.

What it hears by mDNS are claims. They tell where to ask and under which name to show a node, never whom
to trust: that is what the code is for (`meshnode.trust.pairing`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.daemon.terminal import progress, say
from meshnode.errors import ConfigError, LinkLost, MeshError
from meshnode.options import DEFAULT_LISTEN, parse_address
from meshnode.trust.pairing import ANY_MESH, Asking, shown_code
from meshnode.trust.reasons import TrustError
from meshnode.trust.records import MESH_ID_BYTES, MeshId

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from meshnode.daemon.credentials import Credentials
    from meshnode.membership.addresses import Kind
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.net.mdns import Announcement
    from meshnode.types import Address, NodeId

log = logging.getLogger("meshnode")

NAMES_SHOWN: Final = 8
"""Nodes of one mesh that a list shows."""

_MIN_PREFIX: Final = 4  # characters of a mesh's id that stand for it

_HEXADECIMAL: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class FoundMesh:
    """A mesh as it was heard on the local network.

    Attributes:
        mesh_id: As its nodes say.
        nodes: Those that were heard, by name.
    """

    mesh_id: str
    nodes: tuple[Announcement, ...]

    @property
    def names(self) -> str:
        """Its nodes for a person, with addresses."""
        names = [f"{each.name} ({each.addresses[0]})" for each in self.nodes]
        if len(names) > NAMES_SHOWN:
            names[NAMES_SHOWN:] = [f"{len(names) - NAMES_SHOWN} more"]
        return ", ".join(names)


@dataclass(frozen=True, slots=True)
class Door:
    """A node to ask.

    Attributes:
        mesh_id: Of its mesh, or `ANY_MESH`.
        node_id: Who must answer, or None for whoever does.
        name: For people.
        addresses: Where to try, in order.
        is_heard: Whether others say so (by mDNS), and not the person.
    """

    mesh_id: MeshId
    node_id: NodeId | None
    name: str
    addresses: tuple[Address, ...]
    is_heard: bool = True


def meshes_of(announcements: Iterable[Announcement]) -> tuple[FoundMesh, ...]:
    """Group what was heard by mesh, in the order of their ids; nodes in that of their names."""
    meshes: dict[str, list[Announcement]] = {}
    for each in announcements:
        meshes.setdefault(each.mesh_id, []).append(each)
    return tuple(
        FoundMesh(mesh_id, tuple(sorted(nodes, key=lambda each: (each.name, each.node_id))))
        for mesh_id, nodes in sorted(meshes.items())
    )


def doors_of(mesh: FoundMesh) -> tuple[Door, ...]:
    """Return a mesh's nodes as doors, in the order of the list that a person saw."""
    mesh_id = MeshId(mesh.mesh_id)
    return tuple(Door(mesh_id, each.node_id, each.name, each.addresses) for each in mesh.nodes)


def doors_named(target: str, meshes: Sequence[FoundMesh]) -> tuple[Door, ...]:
    """Return the nodes to ask that `--ask` means.

    Args:
        target: `HOST:PORT` or a host; or the name of a node, or (the beginning of) the id of a mesh,
            that was heard on the local network.
        meshes: What was heard.

    Raises:
        ConfigError: if it means nothing here, or several things.
    """
    if looks_like_mesh(target):
        found = [mesh for mesh in meshes if mesh.mesh_id.startswith(target.lower())]
        if len(found) == 1:
            return doors_of(found[0])
        if found:
            raise ConfigError(
                f"--ask: several meshes begin with {target}; write more of the id: "
                f"{', '.join(mesh.mesh_id for mesh in found)}"
            )
    named = [door for mesh in meshes for door in doors_of(mesh) if door.name == target]
    if len(named) == 1:
        return (named[0],)
    if named:
        places = ", ".join(str(door.addresses[0]) for door in named)
        raise ConfigError(
            f"--ask: several nodes are called {target}; name one by address: {places}"
        )
    if not looks_like_address(target):
        heard = "; ".join(f"mesh {mesh.mesh_id} with {mesh.names}" for mesh in meshes)
        raise ConfigError(
            f"--ask: no mesh and no node called {target} was heard on the local network "
            f"({heard or 'nothing was'}); name a node by its address, --ask HOST:PORT"
        )
    address = parse_address("--ask", target, DEFAULT_LISTEN.port)
    return (Door(ANY_MESH, None, str(address), (address,), is_heard=False),)


def looks_like_mesh(target: str) -> bool:
    """Whether a text may be the id of a mesh, or its beginning."""
    length = len(target)
    return _MIN_PREFIX <= length <= 2 * MESH_ID_BYTES and _HEXADECIMAL.issuperset(target.lower())


def is_only_an_address(target: str) -> bool:
    """Whether what `--ask` names cannot have been heard by mDNS: names and ids have no colon."""
    return ":" in target


def looks_like_address(target: str) -> bool:
    """Whether a text can only be an address: it has a port, or a dot as host names and IPv4 have."""
    return ":" in target or "." in target or target == "localhost"


class Newcomer:
    """A device that belongs to no mesh, and asks one to admit it."""

    def __init__(
        self,
        credentials: Credentials,
        hub: LinkHub,
        name: str,
        kinds: Collection[Kind],
        *,
        on_terminal: bool,
    ) -> None:
        """Ask under this name.

        Args:
            credentials: Where the admission is kept.
            hub: Through which it asks.
            name: As the member's person will read it.
            kinds: Where addresses may lead that others say.
            on_terminal: Whether a person looks at what it prints; else it logs.
        """
        self._credentials = credentials
        self._hub = hub
        self._name = name
        self._kinds = kinds
        self._on_terminal = on_terminal
        self._door: Door | None = None
        self._has_code = False

    def __repr__(self) -> str:
        return f"<Newcomer {self._name}>"

    async def ask(self, doors: Sequence[Door]) -> None:
        """Ask these nodes in turn, until one lets this device wait; return when it is a member.

        Once a code was shown nobody else is asked: a person is on the way to that node.

        Raises:
            TrustError: if the node refused, or nobody approved in time; the first one's reason if all
                refused at once.
            LinkLost: if none could be reached, or the one that was asked is gone.
        """
        refusal: TrustError | None = None
        silent: list[str] = []
        for door in doors:
            self._credentials.asking = Asking(door.mesh_id, self._name)
            for address in door.addresses:
                self._credentials.asked_at = (address,)
                try:
                    await self._ask(door, address)
                except TrustError as error:
                    if self._has_code:
                        raise
                    refusal = refusal or error
                    break
                except MeshError as error:
                    if self._has_code:
                        raise
                    silent.append(f"{door.name} {error}")
                else:
                    return
        if refusal is not None:
            raise refusal
        raise LinkLost(
            f"no node that could admit this device was reached: {'; '.join(silent)}. Check that a node "
            "runs there, and that its port is open for TCP and UDP"
        )

    async def _ask(self, door: Door, address: Address) -> None:
        log.info("asking %s at %s to be admitted", door.name, address)
        self._door = door
        kinds = self._kinds if door.is_heard else None
        try:
            connection = await self._hub.ask(address, door.node_id, self._waiting, kinds)
        finally:
            if self._on_terminal and self._has_code:
                say("")  # the line that tells the time
        assert connection.hello is not None
        self._tell_admitted(connection.hello.peer.node_id)

    def _waiting(self, connection: Connection) -> None:
        """Show the code, and where it belongs; and again only how long it is good for."""
        pairing, door = connection.pairing, self._door
        assert pairing is not None
        assert door is not None
        minutes = f"{max(1, round(connection.pairing_waits_s / 60))} min"
        if self._has_code:
            if self._on_terminal:
                progress(f"waiting for it, {connection.pairing_waits_s} s left ")
            return
        self._has_code = True
        where = _where(door, connection.remote)
        if not self._on_terminal:
            log.info(
                "to admit this device to mesh %s, type on %s, within %s: meshnode approve %s",
                pairing.mesh_id, where, minutes, pairing.code,
            )  # fmt: skip
            return
        say(
            f"\nThe code of this device is  {shown_code(pairing.code)}\n\n"
            f"On {where}, type within {minutes}:\n\n  meshnode approve {pairing.code}\n\n"
            "(Ctrl-C gives up.)"
        )

    def _tell_admitted(self, by: NodeId) -> None:
        assert self._door is not None
        name = self._door.name
        say(
            f"Joined mesh {self._credentials.mesh_id}, admitted by {name} ({by}). If nobody typed the code "
            "there, it is not the mesh you meant: `meshnode leave` undoes this."
        )


def _where(door: Door, remote: Address) -> str:
    return f"the node at {remote}" if door.node_id is None else f"{door.name} ({remote.host})"
