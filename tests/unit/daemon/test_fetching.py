"""Fetching a version from several nodes at once, over peers that are stores of their own."""

from __future__ import annotations

import asyncio
import random
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from meshnode.daemon import fetching
from meshnode.daemon.fetching import Fetcher
from meshnode.errors import InvalidRequest, LinkLost, TransferFailed
from meshnode.models.artifacts import transfer
from meshnode.models.artifacts.chunks import CHUNK_BYTES
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshnode.net.peers import BlobSink, PeerClient

ME = NodeId("me")


class Network:
    """Peers that are stores, and what goes wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores: dict[str, BlobStore] = {}
        self.sent: list[tuple[str, int, int]] = []
        self.lost: set[str] = set()
        self.lying: set[str] = set()
        self.old: set[str] = set()
        self.stop_after: int | None = None

    def store(self, name: str) -> BlobStore:
        return self.stores.setdefault(name, BlobStore(self.folder / name))

    def fetcher(self, name: str = ME) -> Fetcher:
        peers = cast("PeerClient", self)
        linked = [NodeId(other) for other in self.stores if other != name]
        return Fetcher(
            self.store(name), peers, NodeId(name), lambda: linked, lambda node: f"<{node}>"
        )

    async def ask_files(
        self, node: NodeId, names: Sequence[bytes], known: int, wait_s: float
    ) -> tuple[int, tuple[bytes | None, ...]]:
        await asyncio.sleep(0)
        if node in self.lost:
            raise LinkLost("there is no usable link to the node")
        if node in self.old:
            raise InvalidRequest("this node does not know what is asked")
        states = [self.store(node).state_of(name) for name in names]
        return 0, tuple(None if whole else bits for whole, bits in states)

    async def fetch_chunk_list(self, node: NodeId, sha256: bytes, length: int) -> bytes:
        await asyncio.sleep(0)
        if node in self.lost or node in self.old:
            raise LinkLost("there is no usable link to the node")
        hashes = self.store(node).chunks_of(sha256).hashes
        return bytes(length) if node in self.lying else hashes

    async def fetch_part(self, node: NodeId, sha256: bytes, offset: int, length: int) -> bytes:
        await asyncio.sleep(0.001)
        if self.stop_after is not None and len(self.sent) >= self.stop_after:
            raise LinkLost("the link broke")
        self.sent.append((node, offset, length))
        data = self.store(node).read_chunk(sha256, offset, length)
        return bytes(len(data)) if node in self.lying else data

    async def fetch_blob(self, node: NodeId, sha256: bytes, sink: BlobSink) -> None:
        await asyncio.sleep(0)
        content = self.store(node).path(sha256).read_bytes()[sink.offset :]
        if self.stop_after is not None:
            sink.write(memoryview(content)[: self.stop_after])
            self.stop_after = None
            raise LinkLost("the link broke")
        self.sent.append((node, sink.offset, len(content)))
        sink.write(memoryview(content))

    def publish(self, name: str, *contents: bytes) -> Manifest:
        """Put files into a node's store."""
        entries = []
        for index, content in enumerate(contents):
            source = self.folder / f"source{index}"
            source.write_bytes(content)
            entries.append(self.store(name).add_file(source, f"f{index}"))
        return manifest_of(*entries)


def manifest_of(*entries: FileEntry) -> Manifest:
    return Manifest("m", 1, "onnx", "onnxruntime_onnx", (), (), 0, entries, entries[0].path)


def content(chunks: float, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(int(chunks * CHUNK_BYTES))


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setattr(fetching, "_TICK_S", 0.02)
    monkeypatch.setattr(fetching, "_PACE_S", 0.01)
    monkeypatch.setattr(transfer, "_PAUSE_S", 0.01)
    return Network(tmp_path)


def has_all(store: BlobStore, manifest: Manifest) -> bool:
    return all(store.has(entry.sha256) for entry in manifest.files)


async def test_files_come_from_all_holders_at_once(network: Network) -> None:
    data = content(6.5)
    manifest = network.publish("a", data, b"small", b"")
    network.publish("b", data, b"small", b"")
    await network.fetcher().fetch(manifest, [NodeId("a"), NodeId("b")], [])
    mine = network.store(ME)
    assert mine.path(manifest.files[0].sha256).read_bytes() == data
    assert has_all(mine, manifest)
    assert {node for node, _, _ in network.sent} == {"a", "b"}
    assert sum(length for _, _, length in network.sent) == manifest.size_bytes, "each chunk once"
    mine.sweep()
    names = sorted(path.suffix for path in (network.folder / ME / "blobs").rglob("*/*"))
    assert names == ["", "", "", ".chunks"], "nothing is left but the blobs and a list"


async def test_nodes_that_fetch_at_the_same_time_get_it_from_each_other(network: Network) -> None:
    manifest = network.publish("a", content(12))
    names = ["n1", "n2", "n3", "n4"]
    for name in names:
        network.store(name)
    others = {name: [NodeId(each) for each in names if each != name] for name in names}
    await asyncio.gather(
        *(network.fetcher(name).fetch(manifest, [NodeId("a")], others[name]) for name in names)
    )
    assert all(has_all(network.store(name), manifest) for name in names)
    from_publisher = sum(node == "a" for node, _, _ in network.sent)
    assert 12 <= from_publisher <= 24, "at most two copies"
    assert len(network.sent) >= 48


async def test_a_fetch_goes_on_where_it_broke_also_after_a_restart(network: Network) -> None:
    manifest = network.publish("a", content(6))
    network.stop_after = 3
    with pytest.raises(TransferFailed, match="<a>: the link broke"):
        await network.fetcher().fetch(manifest, [NodeId("a")], [])
    network.stop_after = None
    network.stores[ME] = BlobStore(network.folder / ME)
    await network.fetcher().fetch(manifest, [NodeId("a")], [])
    assert has_all(network.store(ME), manifest)
    assert len(network.sent) == 6, "no chunk came twice"


async def test_a_node_that_sends_something_else_is_asked_no_more(network: Network) -> None:
    manifest = network.publish("a", content(3))
    network.publish("liar", content(3))
    network.lying.add("liar")
    await network.fetcher().fetch(manifest, [NodeId("liar"), NodeId("a")], [])
    assert has_all(network.store(ME), manifest)
    assert sum(node == "liar" for node, _, _ in network.sent) <= 3, (
        "what was asked before it was known"
    )


async def test_chunks_that_lie_here_in_another_version_are_copied(network: Network) -> None:
    before = content(6)
    after = before[: 4 * CHUNK_BYTES] + content(2, seed=1)
    network.publish(ME, before)
    manifest = network.publish("a", after)
    await network.fetcher().fetch(manifest, [NodeId("a")], [])
    assert network.store(ME).path(manifest.files[0].sha256).read_bytes() == after
    assert sorted(offset // CHUNK_BYTES for _, offset, _ in network.sent) == [4, 5]


async def test_a_node_of_an_older_version_sends_parts_of_whole_files(network: Network) -> None:
    manifest = network.publish("a", content(2))
    network.publish("new", content(2))
    network.old.add("a")
    network.lost.add("new")
    kept = network.store("new").chunks_of(manifest.files[0].sha256)
    mine = network.store(ME)
    mine._blobs.mkdir(parents=True)
    mine.files.lists.keep(
        manifest.files[0].sha256, kept
    )  # from an earlier attempt, when `new` was there
    await network.fetcher().fetch(manifest, [NodeId("a"), NodeId("new")], [])
    assert {node for node, _, _ in network.sent} == {"a"}


async def test_a_long_file_without_a_list_comes_from_one_node_after_the_other(
    network: Network,
) -> None:
    """As a version published it that knew no chunks."""
    (entry,) = network.publish("a", content(3)).files
    network.publish("b", content(3))
    manifest = manifest_of(FileEntry(entry.path, entry.size_bytes, entry.sha256))
    network.stop_after = 1000
    await network.fetcher().fetch(manifest, [NodeId("a"), NodeId("b")], [])
    assert network.sent == [("b", 1000, entry.size_bytes - 1000)]
    assert has_all(network.store(ME), manifest)


async def test_a_list_that_belongs_to_another_file_makes_the_fetch_fail(network: Network) -> None:
    """The publisher told the mesh of other chunks than those of the file."""
    (entry,) = network.publish("a", content(2)).files
    (other,) = network.publish("a", content(2, seed=7)).files
    network.store("a").chunks_of(other.sha256)
    wrong = manifest_of(FileEntry("f0", entry.size_bytes, entry.sha256, other.chunks))
    lists = network.store("a").chunks_of(other.sha256).hashes

    async def other_list(node: NodeId, sha256: bytes, length: int) -> bytes:
        return lists

    async def other_part(node: NodeId, sha256: bytes, offset: int, length: int) -> bytes:
        return network.store("a").read_chunk(other.sha256, offset, length)

    network.fetch_chunk_list = other_list  # type: ignore[method-assign]
    network.fetch_part = other_part  # type: ignore[method-assign]
    with pytest.raises(TransferFailed, match="does not match its SHA-256, although"):
        await network.fetcher().fetch(wrong, [NodeId("a")], [])
    assert not network.store(ME).has(entry.sha256)


async def test_where_nobody_has_it_each_is_named_with_why(network: Network) -> None:
    manifest = network.publish("a", content(0.5))
    network.store("empty")
    network.lost.add("a")
    fetcher = network.fetcher()
    with pytest.raises(TransferFailed) as caught:
        await fetcher.fetch(manifest, [NodeId("a")], [])
    assert "<a>: there is no usable link to the node" in str(caught.value)
    assert "<empty>: it has none of the files" in str(caught.value)
    assert not fetcher.is_busy


async def test_progress_counts_what_is_here_and_what_came(network: Network) -> None:
    manifest = network.publish("a", content(4))
    network.stop_after = 2
    with pytest.raises(TransferFailed):
        await network.fetcher().fetch(manifest, [NodeId("a")], [])
    network.stop_after = None
    fetcher = network.fetcher()
    task = asyncio.ensure_future(fetcher.fetch(manifest, [NodeId("a")], []))
    seen = []
    while not task.done():
        seen += [each.received_bytes // CHUNK_BYTES for each in fetcher.progress()]
        await asyncio.sleep(0)
    await task
    assert seen == sorted(seen)
    assert seen[-1] == 4
    assert 2 in seen
    assert fetcher.progress() == ()


async def test_a_full_disk_ends_the_fetch_and_says_so(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = network.publish("a", content(2))
    full = SimpleNamespace(total=10**12, free=CHUNK_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(TransferFailed, match="a model file needs"):
        await network.fetcher().fetch(manifest, [NodeId("a")], [])


async def test_a_damaged_file_is_fetched_again_before_it_is_used(network: Network) -> None:
    data = content(3.5)
    manifest = network.publish("a", data)
    network.publish(ME, data)
    path = network.store(ME).path(manifest.files[0].sha256)
    damaged = bytearray(data)
    damaged[CHUNK_BYTES + 5] ^= 1
    path.write_bytes(damaged)
    await network.fetcher().fetch(manifest, [NodeId("a")], [])
    assert path.read_bytes() == data
    assert [offset for _, offset, _ in network.sent] == [CHUNK_BYTES], "only what is damaged"


async def test_a_holder_whose_disk_damaged_a_file_says_so_and_another_one_sends_it(
    network: Network,
) -> None:
    data = content(2.5)
    manifest = network.publish("a", data)
    network.publish("b", data)
    network.store("a").path(manifest.files[0].sha256).write_bytes(bytes(len(data)))
    await network.fetcher().fetch(manifest, [NodeId("a"), NodeId("b")], [])
    assert network.store(ME).path(manifest.files[0].sha256).read_bytes() == data
    assert not network.store("a").has(manifest.files[0].sha256)


async def test_a_wrong_chunk_is_logged_with_who_sent_it_and_of_what(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(2)
    manifest = network.publish("a", data)
    network.publish("b", data)
    network.store(ME).kept_chunks(manifest.files[0])
    fetcher = network.fetcher()
    real = network.fetch_part

    async def wrong(node: NodeId, sha256: bytes, offset: int, length: int) -> bytes:
        sent = await real(node, sha256, offset, length)
        return bytes(len(sent)) if node == "a" else sent

    network.fetch_part = wrong  # type: ignore[method-assign]
    await fetcher.fetch(manifest, [NodeId("a"), NodeId("b")], [])
    assert "<a> sent a wrong chunk of f0 of version 1 of m" in caplog.text
