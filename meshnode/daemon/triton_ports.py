"""`--triton-ports`: this node's gateway also listens where users of Triton look for a server.

They are further entrances of the same gateway, at its host, with its certificate and its keys.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meshnode.daemon import ports
from meshnode.errors import ConfigError
from meshnode.gateway.grpc_server import is_installed
from meshnode.types import Address

if TYPE_CHECKING:
    from meshnode.daemon.assembly import Assembly
    from meshnode.gateway.tls import GatewayTls
    from meshnode.options import JoinOptions

log = logging.getLogger(__name__)

HTTP_PORT: Final = 8000
"""Triton's port for HTTP: everything that the gateway answers."""

GRPC_PORT: Final = 8001
"""Triton's port for gRPC."""

METRICS_PORT: Final = 8002
"""Triton's port for Prometheus: `/metrics` only."""

_OPTION: Final = "--triton-ports"


async def check(options: JoinOptions) -> None:
    """Fail now, rather than after a mesh was founded or joined, if one of the ports cannot be had.

    Raises:
        ConfigError: naming the port, if nothing can listen there, or the node's other entrances do.
    """
    for address in _addresses(options):
        if address in (options.http, options.grpc):
            raise ConfigError(
                f"{_OPTION} listens at {address}, and so does another option; give --http and --grpc other ports"
            )
        try:
            await ports.require_free(_OPTION, address)
        except ConfigError as error:
            raise ConfigError(
                f"{_OPTION} needs port {address.port} of {address.host}, at which nothing can listen now "
                f"({error.__cause__}); stop what does, or leave {_OPTION} out: --http and --grpc choose other ports"
            ) from error


async def open_entrances(mesh: Assembly, options: JoinOptions, tls: GatewayTls | None) -> None:
    """Listen at the ports, if these options say so.

    Raises:
        ConfigError: if one of them cannot be had.
    """
    for address in _addresses(options):
        if address.port == GRPC_PORT:
            await mesh.open_grpc(address, tls, require_key=options.is_key_required_here)
        else:
            await mesh.open_further_gateway(
                address, options, tls, only_metrics=address.port == METRICS_PORT
            )


def _addresses(options: JoinOptions) -> list[Address]:
    if not options.triton_ports or options.http is None:
        return []
    wanted = [HTTP_PORT, GRPC_PORT, METRICS_PORT]
    if not is_installed():
        log.warning(
            "%s: there is no gRPC at %d, since grpcio is not installed: pip install 'meshnode[grpc]'",
            *(_OPTION, GRPC_PORT),
        )
        wanted.remove(GRPC_PORT)
    return [Address(options.http.host, port) for port in wanted]
