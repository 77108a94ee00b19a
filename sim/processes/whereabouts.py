"""Which node speaks from which address of this machine, as all processes of a simulated mesh know it.

All nodes live on one loopback address, so a port tells who it is. The ports at which nodes listen are
chosen before they start. A connection comes from a port that the kernel chose for it, so the one that
dials writes its number beside that port into a file that all processes map into their memory, before
it dials; the one that is dialled looks there. Ports that nobody wrote are of strangers, such as curl.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

LOOPBACK: Final = "127.0.0.1"

_PORTS: Final = 65_536


class Whereabouts:
    """What one process knows of the addresses of all."""

    def __init__(self, file: Path, listening: Mapping[int, str], me: str) -> None:
        """Map the file that all processes share.

        Args:
            file: What `make_file` made.
            listening: Who listens at which port for other nodes, all nodes in one order everywhere.
            me: This process's node.

        Raises:
            OSError: if the file is not there.
        """
        self._listening = dict(listening)
        self._names = tuple(self._listening.values())
        self._mine = self._names.index(me) + 1
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), _PORTS)

    def __repr__(self) -> str:
        return f"<Whereabouts of {len(self._names)} nodes, seen by {self._names[self._mine - 1]}>"

    @staticmethod
    def make_file(file: Path) -> None:
        """Make the file that all processes of a mesh share.

        Raises:
            OSError: if it cannot be written.
        """
        file.write_bytes(bytes(_PORTS))

    def listener_at(self, address: Any) -> str | None:
        """Return who listens at a socket address, or None for a stranger."""
        return self._listening.get(_port_of(address), None)

    def dialler_at(self, address: Any) -> str | None:
        """Return who dialled from a socket address, or None for a stranger."""
        number = self._map[_port_of(address)]
        return self._names[number - 1] if 0 < number <= len(self._names) else None

    def dial_from(self, dialling: socket.socket) -> None:
        """Bind a socket to a port of its own, and tell the others whose that is.

        Raises:
            OSError: if no port is left.
        """
        dialling.bind((LOOPBACK, 0))
        self._map[_port_of(dialling.getsockname())] = self._mine

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()


def _port_of(address: Any) -> int:
    """Return the port of an IPv4 address on loopback; 0 for anything else."""
    return int(address[1]) if isinstance(address, tuple) and address[0] == LOOPBACK else 0
