"""Finding gateways on the local network by mDNS."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from meshnode.client.endpoints import (
    API_KEY_FILE_VARIABLE,
    API_KEY_VARIABLE,
    gateway_target,
    named_gateways,
)
from meshnode.client.found_gateways import choose
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshnode.client.endpoints import Target


async def find(
    mesh: str | None,
    api_key: str | None,
    ca_file: str | None,
    wait_s: float,
    interfaces: Collection[str] = (),
) -> Target:
    """Listen for so many seconds; return the gateways to use.

    Where the environment names gateways (`MESHNODE_URL`), those are returned at once.

    Args:
        mesh: The mesh that is meant, or None for the only one.
        api_key: As for `MeshClient`.
        ca_file: As for `MeshClient`.
        wait_s: How long to listen.
        interfaces: This machine's addresses to listen on; empty for all suitable ones.

    Raises:
        ConfigError: as `choose`, or if the machine cannot do mDNS.
    """
    if named_gateways(os.environ):
        return gateway_target(None, api_key, os.environ, ca_file=ca_file)
    from meshnode.net.mdns import Discovery

    try:
        async with Discovery(lambda _: None, interfaces) as discovery:
            await asyncio.sleep(wait_s)
            heard = discovery.heard
    except OSError as error:
        raise ConfigError(
            f"the local network cannot be searched by mDNS ({error}); name a gateway, as gateways or in MESHNODE_URL"
        ) from None
    has_key = bool(
        api_key or os.environ.get(API_KEY_VARIABLE) or os.environ.get(API_KEY_FILE_VARIABLE)
    )
    urls = choose(heard, own_hosts(), mesh, has_key=has_key)
    return gateway_target(urls, api_key, os.environ, ca_file=ca_file)


def find_blocking(
    mesh: str | None,
    api_key: str | None,
    ca_file: str | None,
    wait_s: float,
    interfaces: Collection[str] = (),
) -> Target:
    """As `find`, for a caller without an event loop, or within one that must not wait: in a thread of its own."""
    found: list[Target | BaseException] = []

    def search() -> None:
        try:
            found.append(asyncio.run(find(mesh, api_key, ca_file, wait_s, interfaces)))
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            found.append(error)

    thread = threading.Thread(target=search, name="meshnode-discovery")
    thread.start()
    thread.join()
    (outcome,) = found
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def own_hosts() -> frozenset[str]:
    """Return this machine's IP addresses."""
    import psutil

    return frozenset(
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
    )
