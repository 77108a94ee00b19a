"""Whether and where this node serves gRPC: what its owner chose, or what can be had without being asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshnode.daemon import ports
from meshnode.errors import ConfigError
from meshnode.gateway.grpc_server import is_installed
from meshnode.options import DEFAULT_GRPC
from meshnode.types import Address

if TYPE_CHECKING:
    from meshnode.daemon.assembly import Assembly
    from meshnode.gateway.tls import GatewayTls
    from meshnode.options import JoinOptions

log = logging.getLogger(__name__)


async def check(options: JoinOptions) -> None:
    """Fail now, rather than after a mesh was founded or joined, if gRPC was chosen and cannot be had.

    Raises:
        ConfigError: if it is not installed, or nothing can listen at its address.
    """
    if options.grpc is None or _is_default(options):
        return
    if not is_installed():
        raise ConfigError(
            "--grpc needs grpcio, which is not installed: pip install 'meshnode[grpc]', or leave it out"
        )
    await ports.require_free("--grpc", options.grpc)


async def open_entrance(mesh: Assembly, options: JoinOptions, tls: GatewayTls | None) -> None:
    """Serve gRPC as these options say; by default only where nothing stands in the way.

    Nothing was chosen, so nothing is missed: a second node on a machine, or one that takes any free port for its
    gateway, has none.

    Raises:
        ConfigError: if it was chosen and cannot be had.
    """
    if options.grpc is None or options.http is None:
        return
    address, may_fail = options.grpc, _is_default(options)
    if may_fail:
        if not is_installed() or options.http.port == 0:
            return
        address = Address(options.http.host, address.port)
        try:
            await ports.require_free("--grpc", address)
        except ConfigError:
            log.info(
                "port %d is taken, so there is no gRPC; choose another with --grpc", address.port
            )
            return
    await mesh.open_grpc(address, tls, require_key=options.is_key_required_here)


def _is_default(options: JoinOptions) -> bool:
    return options.grpc is not None and options.grpc.host == DEFAULT_GRPC.host
