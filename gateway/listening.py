"""Where an HTTP server takes its connections: TCP with or without TLS, and Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from meshnode.errors import ConfigError
from meshnode.limits import LISTEN_BACKLOG, TLS_HANDSHAKE_TIMEOUT_S
from meshnode.net import sockets

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from meshnode.types import Address


class TcpSite(web.BaseSite):
    """Accepts connections at an address; `::` takes IPv4 as well, on every platform.

    aiohttp's own would give a client a minute for its TLS handshake.
    """

    __slots__ = ("_address",)

    def __init__(
        self, runner: web.ServerRunner, address: Address, tls: ssl.SSLContext | None
    ) -> None:
        """Prepare; `start` binds."""
        super().__init__(runner, ssl_context=tls, backlog=LISTEN_BACKLOG)
        self._address = address

    @property
    def name(self) -> str:
        """Where it listens, for aiohttp's own messages."""
        return f"{'https' if self._ssl_context else 'http'}://{self._address}"

    async def start(self) -> None:
        """Bind and accept.

        Raises:
            OSError: if the address is in use or not ours.
        """
        await super().start()
        server = self._runner.server
        assert server is not None  # the runner was set up
        listen = partial(
            asyncio.get_running_loop().create_server,
            server,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S if self._ssl_context else None,
        )
        both = await _bind_both(self._address)
        self._server = await (listen(*self._address) if both is None else listen(sock=both))


async def _bind_both(address: Address) -> socket.socket | None:
    """Return a socket for both IP versions where the address asks for it, else None."""
    try:
        literal = ipaddress.ip_address(address.host)
    except ValueError:
        return None
    if literal.version == 4 or not literal.is_unspecified:
        return None
    return await sockets.bind(address, socket.SOCK_STREAM)


def is_from_owner(sock: socket.socket) -> bool:
    """Whether a connection at a Unix socket comes from this process's user, or from root.

    The socket's mode says the same; this holds also when somebody has changed that. Where the system does not
    tell who connects (all but Linux), the mode alone decides.
    """
    if sys.platform != "linux" or sock.family != socket.AF_UNIX:
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user in (0, os.geteuid())


def bind_unix(path: Path) -> socket.socket:
    """Return a socket bound to a path that nobody but this user can open.

    A socket file that nobody listens at, left by a crash, is replaced.

    Raises:
        ConfigError: if somebody listens there.
        OSError: if the path cannot be bound.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            os.fchmod(sock.fileno(), 0o600)  # Linux makes the file with the socket's own mode
        sock.bind(str(path))
        path.chmod(0o600)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens at; one that answers belongs to another daemon."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"another daemon is running: it answers at {path}")
