"""Parts of `bench.models` about files between nodes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import model_files
from bench.models import Figure
from bench.nodes import SETTLE_S, end_on_sigterm, node
from meshnode.client.deploying import Wish, ignore
from meshnode.net.tls import client_tls, server_tls
from tests.unit.models.swarm import PIECE_BYTES, Swarm

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from bench.nodes import MeshNode

SIZE_BYTES = 256 * 2**20
_BLOCK_BYTES = 1 << 20
_NODES = 8
_PIECES = 64
_LIMIT_S = 120.0
_LOOK_S = 0.01  # between looks into a folder: more often costs the nodes their processor


def transfer(seconds: float, rounds: int) -> list[Figure]:
    """Models of 256 MB from one daemon to another, in turn with raw copies through TLS on loopback."""
    del seconds
    end_on_sigterm()
    raw, mesh = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with node(folder, "alpha", "--new", quiet=True) as alpha:
            invite = str(alpha.control.post("/mesh/v1/invites", {"ttl_s": 600})["invite"])
            with node(folder, "beta", invite, quiet=True) as _:
                time.sleep(SETTLE_S)
                for number in range(rounds):
                    raw.append(_raw_copy(folder, f"copy{number}"))
                    mesh.append(_mesh_copy(folder, alpha, f"heavy{number}"))
    ratios = [moved / base for moved, base in zip(mesh, raw, strict=True)]
    return [
        Figure("raw TLS copy on loopback, to a file, MB/s", median(raw) / 1e6),
        Figure("artifact from node to node, MB/s", median(mesh) / 1e6),
        Figure("artifact / raw copy, each pair", median(ratios), least=0.6),
    ]


def swarm(seconds: float, rounds: int) -> list[Figure]:
    """Eight nodes at once over links of 20 MB/s, in virtual time: the real planner decides."""
    del seconds, rounds
    alone = Swarm(["n0"], _PIECES)
    alone.run()
    names = [f"n{number}" for number in range(_NODES)]
    many = Swarm(names, _PIECES)
    many.run()
    if set(many.done_at) != set(names):
        raise RuntimeError("not all nodes have all pieces")
    return [
        Figure(
            f"one node, {_PIECES * PIECE_BYTES / 1e6:.0f} MB at 20 MB/s, virtual s",
            alone.done_at["n0"],
        ),
        Figure(
            "eight nodes at once / one", max(many.done_at.values()) / alone.done_at["n0"], most=2.0
        ),
        Figure("copies that the publisher sent", many.sent["publisher"] / _PIECES, most=2.0),
    ]


def _raw_copy(folder: Path, name: str) -> float:
    """Return bytes per second of a copy through TLS into a new file, synced at its end.

    An artifact becomes a new file, too. In memory that a file of the same name has just given back, a
    virtual machine writes up to ten times as fast as in memory that its host has to provide first.
    """
    content = os.urandom(_BLOCK_BYTES)
    server = server_tls(folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            with (
                listener.accept()[0] as plain,
                server.context.wrap_socket(plain, server_side=True) as connection,
            ):
                for _ in range(SIZE_BYTES // _BLOCK_BYTES):
                    connection.sendall(content)

        sender = threading.Thread(target=send)
        sender.start()
        context: ssl.SSLContext = client_tls()
        with (
            socket.create_connection(listener.getsockname()) as plain,
            context.wrap_socket(plain) as connection,
            (folder / name).open("wb") as file,
        ):
            buffer = memoryview(bytearray(_BLOCK_BYTES))
            started = time.perf_counter()
            received = 0
            while received < SIZE_BYTES:
                count = connection.recv_into(buffer)
                if count == 0:
                    raise RuntimeError("the raw copy broke off")
                file.write(buffer[:count])
                received += count
            file.flush()
            os.fsync(file.fileno())
            elapsed = time.perf_counter() - started
        sender.join()
    return SIZE_BYTES / elapsed


def _mesh_copy(folder: Path, source: MeshNode, name: str) -> float:
    """Return bytes per second of a deployment's files, from the first that arrives to the last."""
    version = folder / name / "1"
    version.mkdir(parents=True)
    model_files.heavy(version, SIZE_BYTES)
    source.control.publish(folder / name)
    shutil.rmtree(version)
    blobs = folder / "beta" / "blobs"
    held, before = _held_bytes(blobs), _whole(blobs)
    wish = Wish(name, on=["beta"], artifact=True)
    source.control.run(source.control.deployment(wish, None, ignore))
    _until(lambda: _held_bytes(blobs) > held)
    started, first = time.perf_counter(), _held_bytes(blobs) - held
    _until(lambda: _whole(blobs) > before)
    moved = (SIZE_BYTES - first) / (time.perf_counter() - started)
    source.control.wait_ready(name)
    source.control.undeploy(name)
    return moved


def _whole(blobs: Path) -> int:
    """Return how many large files there are, under their final names."""
    return sum(_is_whole(each) for each in blobs.rglob("*"))


def _is_whole(path: Path) -> bool:
    """Whether this is the large file, under its final name."""
    return not path.suffix and path.is_file() and path.stat().st_size >= SIZE_BYTES // 2


def _held_bytes(folder: Path) -> int:
    held = 0
    for each in folder.rglob("*"):
        try:
            held += each.stat().st_blocks * 512
        except (OSError, AttributeError):
            continue
    return held


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the artifact did not arrive")
        time.sleep(_LOOK_S)
