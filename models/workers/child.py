"""What a worker process runs: `python -I -c "…; main()" WORK SIDE MEMORY`.

It reads how it is to start, shuts itself in, and only then imports what can run somebody else's code.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.models.variables import variables_in
from meshnode.models.workers import isolation, keeper
from meshnode.models.workers.protocol import Reader, Start
from meshnode.models.workers.readable import readable_by_code

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNEL_VARIABLE = "MESHNODE_WORKER_CHANNEL"
"""`port:token` where sockets cannot be inherited (Windows): the process connects to its node."""


def main(arguments: Sequence[str]) -> None:
    """Run until the node closes the work socket or says stop.

    Args:
        arguments: Descriptors of the work socket, the side socket and the shared memory; -1 for none.
    """
    keeper.stand_guard()
    work, side, memory_descriptor = _channels(arguments)
    start = _read_start(work)
    if start is None:
        return
    work_folder = Path(start.work_folder)
    cache = start.opening.cache_folder
    isolation.limit_memory(start.memory_bytes)
    isolation.limit_files(start.file_bytes)
    enforced = isolation.shut_in(
        [work_folder, *([Path(cache)] if cache else [])],
        _readable(start) if sys.platform == "linux" else (),
        shared_bytes=start.memory_bytes,
    )
    # Not before: a variable may make libraries load code.
    os.environ.update(variables_in(start.opening.execution.parameters))
    # From here on NumPy and the like may start threads, which inherit the restrictions.
    from meshnode.models.workers.session import Session

    Session(work, side, memory_descriptor, start, tuple(enforced)).run()


def _readable(start: Start) -> list[Path]:
    protected = Path(start.protected) if start.protected else None
    opening = start.opening
    return [*readable_by_code(Path(opening.folder), opening.version, protected, os.environ)]


def _channels(arguments: Sequence[str]) -> tuple[socket.socket, socket.socket, int]:
    channel = os.environ.pop(CHANNEL_VARIABLE, "")
    if channel:
        port, _, token = channel.partition(":")
        pair = []
        for number in (b"w", b"s"):
            connected = socket.create_connection(("127.0.0.1", int(port)))
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.sendall(number + token.encode())
            pair.append(connected)
        return pair[0], pair[1], int(arguments[2])
    work, side, memory = (int(each) for each in arguments)
    return socket.socket(fileno=work), socket.socket(fileno=side), memory


def _read_start(work: socket.socket) -> Start | None:
    reader = Reader(from_process=False)
    while True:
        data = work.recv(65536)
        if not data:
            return None
        for message in reader.feed(data):
            return message if isinstance(message, Start) else None
