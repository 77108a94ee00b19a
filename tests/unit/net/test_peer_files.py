"""Parts of files, lists of chunks and who has what, asked over a real link of a real store."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import file_serving
from meshnode.daemon.serving import PeerServer
from meshnode.errors import InvalidRequest, LinkLost, ProtocolError, TransferFailed
from meshnode.limits import MAX_FILES_ASKED
from meshnode.models.artifacts.chunks import CHUNK_BYTES, ChunkHasher, root_of
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry
from meshnode.net import peers
from meshnode.net.peers import PeerClient
from meshnode.types import NodeId
from meshnode.wire.messages import STREAMS, BlobChunk, Failure, FileStates, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.net.connection import Connection
    from tests.unit.net.conftest import MeshMaker, Node

DATA = random.Random(5).randbytes(2 * CHUNK_BYTES + 9)


class Asked:
    """One node that asks another one, which has a store."""

    def __init__(self, one: Node, two: Node, store: BlobStore) -> None:
        self.two = two
        self.store = store
        self.client = PeerClient(one.hub, lambda *_: None)
        self.server: Any = PeerServer(None, store)  # type: ignore[arg-type]
        two.user.serve = self.server

    def script(self, answer: Callable[[Connection, int], None]) -> None:
        """Let the other node answer like this instead."""

        class Scripted:
            def opened(
                self, connection: Connection, stream: int, meta: bytes, data: memoryview
            ) -> None:
                answer(connection, stream)

            def cancelled(self, connection: Connection, stream: int) -> None: ...

            def closed(self, connection: Connection) -> None: ...

        self.two.user.serve = Scripted()

    async def part(self, sha256: bytes, offset: int, length: int) -> bytes:
        return bytes(await self.client.fetch_part(self.two.id, sha256, offset, length))

    async def states(
        self, *names: bytes, known: int = -1, wait_s: float = 0.0
    ) -> tuple[int, tuple[bytes | None, ...]]:
        return await self.client.ask_files(self.two.id, names, known, wait_s)


@pytest.fixture
async def asked(mesh: MeshMaker, tmp_path: Path) -> Asked:
    one, two, _ = await mesh.pair()
    return Asked(one, two, BlobStore(tmp_path))


@pytest.fixture
def entry(asked: Asked, tmp_path: Path) -> FileEntry:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    return asked.store.add_file(source, "f")


async def test_a_part_of_a_file_is_sent_and_no_more(asked: Asked, entry: FileEntry) -> None:
    assert await asked.part(entry.sha256, CHUNK_BYTES, CHUNK_BYTES) == DATA[CHUNK_BYTES:-9]
    assert await asked.part(entry.sha256, 2 * CHUNK_BYTES, 9) == DATA[-9:]
    assert await asked.part(entry.sha256, 3, CHUNK_BYTES + 4) == DATA[3 : CHUNK_BYTES + 7]


async def test_of_a_node_that_knows_no_parts_the_rest_is_not_taken(asked: Asked) -> None:
    def whole(connection: Connection, stream: int) -> None:
        meta = STREAMS.encode(BlobChunk(5, 3000))
        connection.reply(stream, meta, [bytes(1000)], end=False)

    asked.script(whole)
    assert await asked.part(bytes(32), 5, 400) == bytes(400)


@pytest.mark.parametrize(("offset", "length"), [(2 * CHUNK_BYTES, 10), (10**9, 5), (0, 2**41)])
async def test_a_part_that_is_not_there_is_an_error(
    asked: Asked, entry: FileEntry, offset: int, length: int
) -> None:
    with pytest.raises((TransferFailed, InvalidRequest)):
        await asked.part(entry.sha256, offset, length)
    with pytest.raises(TransferFailed):
        await asked.part(bytes(32), 0, 5)


async def test_the_list_of_chunks_is_sent(asked: Asked, entry: FileEntry) -> None:
    hashes = await asked.client.fetch_chunk_list(asked.two.id, entry.sha256, 3 * 32)
    hasher = ChunkHasher()
    hasher.update(DATA)
    _, chunks = hasher.finish()
    assert hashes == chunks.hashes
    with pytest.raises(TransferFailed):
        await asked.client.fetch_chunk_list(asked.two.id, bytes(32), 32)


async def test_a_node_says_what_it_has_and_what_it_is_getting(
    asked: Asked, entry: FileEntry, tmp_path: Path
) -> None:
    hasher = ChunkHasher()
    hasher.update(DATA[::-1])
    sha256, chunks = hasher.finish()
    coming = FileEntry("g", len(DATA), sha256, root_of(chunks))
    total, states = await asked.states(entry.sha256, bytes(32), coming.sha256)
    assert states == (None, b"", b"")
    with asked.store.open_partial(coming, chunks) as blob:
        before, states = await asked.states(entry.sha256, coming.sha256)
        assert states == (None, b"\0")
        assert before > total
        blob.write(2, DATA[::-1][2 * CHUNK_BYTES :])
        after, states = await asked.states(entry.sha256, coming.sha256)
        assert states == (None, b"\x04")
        assert after > before
        assert await asked.part(coming.sha256, 2 * CHUNK_BYTES, 9) == DATA[:9][::-1]


async def test_an_answer_waits_for_news_while_there_may_be_some(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_serving, "_NEWS_INTERVAL_S", 0.005)
    hasher = ChunkHasher()
    hasher.update(DATA)
    sha256, chunks = hasher.finish()
    entry = FileEntry("f", len(DATA), sha256, root_of(chunks))
    with asked.store.open_partial(entry, chunks) as blob:
        known, _ = await asked.states(sha256)
        waiting = asyncio.ensure_future(asked.states(sha256, known=known, wait_s=5.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        blob.write(0, DATA[:CHUNK_BYTES])
        _, states = await waiting
        assert states == (b"\x01",)
        known, _ = await asked.states(sha256)
        assert (await asked.states(sha256, known=known, wait_s=0.05))[0] == known
    absent = await asked.states(sha256)
    assert await asked.states(sha256, known=absent[0], wait_s=5.0) == absent, "nothing is coming"


async def test_too_many_files_are_not_asked_for(asked: Asked) -> None:
    names = [bytes(32)] * (MAX_FILES_ASKED + 1)
    with pytest.raises(InvalidRequest, match="at most 1024 files"):
        await asked.states(*names)


@pytest.mark.parametrize(
    "data", [b"", b"\1\1", b"\2\xff\xff\xff\xff", b"\2\1\0\0\0", b"\2\1\0", b"\1"]
)
async def test_states_of_other_files_are_a_protocol_error(asked: Asked, data: bytes) -> None:
    def answer(connection: Connection, stream: int) -> None:
        connection.reply(stream, STREAMS.encode(FileStates(1)), [data], end=True)

    asked.script(answer)
    names = [bytes(32)] * (3 if data == b"\1\1" else 2)
    with pytest.raises(ProtocolError, match="states of other files"):
        await asked.states(*names)


def _reply(meta: bytes, connection: Connection, stream: int) -> None:
    connection.reply(stream, meta, end=True)


async def test_other_answers_are_errors_too(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    metas = [
        (STREAMS.encode(Failure("invalid_request", "what?")), InvalidRequest),
        (STREAMS.encode(Result(())), ProtocolError),
        (b"\xc1", ProtocolError),
    ]
    for meta, error in metas:
        asked.script(partial(_reply, meta))
        with pytest.raises(error):
            await asked.states(bytes(32))
    asked.script(lambda connection, stream: None)
    monkeypatch.setattr(peers, "BLOB_IDLE_TIMEOUT_S", 0.02)
    with pytest.raises(TransferFailed, match="does not say"):
        await asked.states(bytes(32))
    with pytest.raises(LinkLost):
        await asked.client.ask_files(NodeId("nobody"), [bytes(32)], -1, 0.0)
