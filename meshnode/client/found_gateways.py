"""Which gateways a client uses of those that mDNS told it of. Pure.

Anybody on the local network may announce anything, so what is heard decides only where to ask, never where a key goes:
a key is sent to a gateway that was found this way only if a certificate proves who it is (`https`). Without a key
only gateways on this machine answer, so only those are of use.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from meshnode.client.endpoints import parse_url
from meshnode.errors import ConfigError
from meshnode.limits import MAX_CLIENT_GATEWAYS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Protocol

    class Heard(Protocol):
        """A node that was heard, as `meshnode.net.mdns.Announcement` has it."""

        @property
        def mesh_id(self) -> str:
            """Its mesh."""
            ...

        @property
        def name(self) -> str:
            """Its name."""
            ...

        @property
        def addresses(self) -> tuple[tuple[str, int], ...]:
            """Where other nodes reach it."""
            ...

        @property
        def gateway(self) -> str:
            """URL of its gateway, as it reaches it itself; empty for none."""
            ...


_SHOWN: Final = 8  # meshes and gateways that a message names


def choose(
    heard: Iterable[Heard], own_hosts: Collection[str], mesh: str | None, *, has_key: bool
) -> list[str]:
    """Return the URLs to use, those of this machine first.

    Args:
        heard: Who was heard.
        own_hosts: This machine's IP addresses.
        mesh: The id of the mesh that is meant, or its beginning; None for the only one.
        has_key: Whether an API key goes with the calls.

    Raises:
        ConfigError: if there is none, or it is not clear which mesh is meant.
    """
    nodes = _of_one_mesh(list(heard), mesh)
    here = sorted({each.gateway for each in nodes if _is_here(each, own_hosts)})
    elsewhere = sorted(
        {each.gateway for each in nodes if each.gateway and not _is_loopback(each.gateway)}
    )
    if not has_key:
        usable = here
        why = "without an API key only a gateway on this machine answers"
    else:
        usable = [url for url in (*here, *elsewhere) if parse_url(url).tls]
        why = (
            "an API key is not sent to a gateway that was only heard of, unless a certificate proves who it is "
            "(https)"
        )
    if usable:
        return list(dict.fromkeys(usable))[:MAX_CLIENT_GATEWAYS]
    found = ", ".join([*here, *elsewhere][:_SHOWN])
    if found:
        raise ConfigError(
            f"the gateways that were found ({found}) cannot be used: {why}; name the one that you mean, as gateways "
            "or in MESHNODE_URL"
        )
    raise ConfigError(
        "no gateway was found on the local network that can be reached from here; name one, as gateways or in "
        "MESHNODE_URL"
    )


def _of_one_mesh(heard: list[Heard], mesh: str | None) -> list[Heard]:
    meant = [each for each in heard if each.mesh_id.startswith(mesh or "")]
    if not meant:
        which = f"of the mesh {mesh} " if mesh else ""
        raise ConfigError(
            f"no node {which}was heard on the local network; name a gateway, as gateways or in MESHNODE_URL"
        )
    names: dict[str, list[str]] = {}
    for each in meant:
        names.setdefault(each.mesh_id, []).append(each.name)
    if len(names) > 1:
        told = "; ".join(
            f"{mesh_id[:8]} ({', '.join(sorted(nodes)[:_SHOWN])})"
            for mesh_id, nodes in sorted(names.items())[:_SHOWN]
        )
        raise ConfigError(f"several meshes were heard: {told}; say which one with mesh=...")
    return meant


def _is_here(each: Heard, own_hosts: Collection[str]) -> bool:
    """Whether a node runs on this machine and its gateway answers only here."""
    return (
        bool(each.gateway)
        and _is_loopback(each.gateway)
        and any(host in own_hosts for host, _ in each.addresses)
    )


def _is_loopback(url: str) -> bool:
    return ipaddress.ip_address(parse_url(url).address.host).is_loopback
