"""Fetching a version's files from all nodes that have them, or are getting them.

`meshnode.models.artifacts.transfer` decides which chunk is asked of whom; this carries it out. Each source is
watched: it says what it has, and again when it has more. A chunk is verified and written before it
counts, and may be passed on from then on. Chunks that lie here in other files are copied, not fetched.

A file is fetched once at a time, also when several versions share it. Long files of which only the
SHA-256 is known, as old versions published them, come from one node after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from meshnode.advertisement import FetchProgress
from meshnode.errors import InvalidRequest, MeshError, TransferFailed
from meshnode.limits import FILES_WAIT_S, MAX_FILE_SOURCES, MAX_FILES_ASKED
from meshnode.models.artifacts.chunks import (
    HASH_BYTES,
    check_list,
    chunk_count,
    chunk_length,
    is_chunked,
)
from meshnode.models.artifacts.transfer import Ask, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from meshnode.models.artifacts.chunks import Chunks
    from meshnode.models.artifacts.partial import PartialBlob
    from meshnode.models.artifacts.store import BlobStore
    from meshnode.models.artifacts.transfer import Cancel
    from meshnode.models.manifest import FileEntry, Manifest
    from meshnode.net.peers import PeerClient
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

_TICK_S: Final = 0.25
_PACE_S: Final = 0.1  # between questions to one source: what is new within it comes at once
_ABSENT_S: Final = 2.0  # until a source that has nothing is asked again
_COMPLETE_S: Final = (
    5.0  # until one that has all is asked again: after failures it counts anew then
)
_LIST_TRIES: Final = 5  # rounds over all sources for a list of chunks, with growing pauses
_RATE_SAMPLES: Final = 8  # of received bytes, one a second or so: what a rate is worked out from


class Fetcher:
    """All fetches of one node."""

    def __init__(
        self,
        store: BlobStore,
        peers: PeerClient,
        me: NodeId,
        linked: Callable[[], Iterable[NodeId]],
        name_of: Callable[[NodeId], str],
    ) -> None:
        """Fetch into `store`.

        Args:
            store: Where files are kept.
            peers: Asks other nodes.
            me: This node.
            linked: Peers that may be asked besides the named ones.
            name_of: A node's name, for messages.
        """
        self._store = store
        self._peers = peers
        self._me = me
        self._linked = linked
        self._name_of = name_of
        # Weak: a lock lives as long as somebody fetches the file or waits for it.
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._running: dict[int, _Fetch] = {}

    def __repr__(self) -> str:
        return f"<Fetcher: {len(self._running)} fetches>"

    @property
    def is_busy(self) -> bool:
        """Whether anything is being fetched."""
        return bool(self._running)

    @property
    def manifests(self) -> list[Manifest]:
        """The versions that are being fetched."""
        return [fetch.manifest for fetch in self._running.values()]

    def progress(self) -> tuple[FetchProgress, ...]:
        """Say how far each fetch is."""
        return tuple(fetch.progress() for fetch in self._running.values())

    async def fetch(
        self, manifest: Manifest, holders: Sequence[NodeId], companions: Sequence[NodeId]
    ) -> None:
        """Have all files of a version here, complete and verified.

        Args:
            manifest: The version.
            holders: Nodes that have its files, best first.
            companions: Nodes that fetch it too, or have it.

        Raises:
            TransferFailed: if it could not be fetched; the message names each source and why. What has
                arrived is kept.
            ConfigError: if the data folder cannot be written.
        """
        entries = {entry.sha256: entry for entry in manifest.files}
        async with contextlib.AsyncExitStack() as stack:
            held = []
            for sha256 in sorted(
                entries
            ):  # in one order, so that no two fetches wait for each other
                held.append(lock := self._locks.setdefault(sha256, asyncio.Lock()))
                await stack.enter_async_context(lock)
            missing = await asyncio.to_thread(self._missing, [*entries.values()])
            if missing:
                fetch = _Fetch(self._store, self._peers, self._me, manifest, missing, self._name_of)
                self._running[id(fetch)] = fetch
                try:
                    await self._run(fetch, missing, holders, companions)
                finally:
                    del self._running[id(fetch)]

    def _missing(self, entries: list[FileEntry]) -> list[FileEntry]:
        return [entry for entry in entries if not self._store.is_sound(entry.sha256)]

    async def _run(
        self,
        fetch: _Fetch,
        missing: list[FileEntry],
        holders: Sequence[NodeId],
        companions: Sequence[NodeId],
    ) -> None:
        def sources() -> dict[NodeId, bool]:
            """Return whom to ask, each with whether it fetches too; the best first."""
            found = dict.fromkeys(holders, False)
            for node in companions:
                found.setdefault(node, True)
            for node in self._linked():
                found.setdefault(node, False)
            found.pop(self._me, None)
            return dict([*found.items()][: max(MAX_FILE_SOURCES, len(holders))])

        try:
            for entry in missing:
                if not is_chunked(entry):
                    await self._fetch_whole(entry, [*sources()])
            await fetch.run(sources)
        except _NoneHasIt as error:
            told = "; ".join(f"{self._name_of(node)}: {why}" for node, why in error.reasons.items())
            raise TransferFailed(
                f"no node could send the model's files ({error.why}): {told or 'none is linked'}"
            ) from None

    async def _fetch_whole(self, entry: FileEntry, sources: list[NodeId]) -> None:
        reasons: dict[NodeId, str] = {}
        for node in sources:
            try:
                writer = await asyncio.to_thread(
                    self._store.open_writer, entry.sha256, entry.size_bytes
                )
                with writer:
                    await self._peers.fetch_blob(node, entry.sha256, writer)
                    await asyncio.to_thread(writer.finish)
            except MeshError as error:
                reasons[node] = str(error)
                continue
            return
        raise _NoneHasIt("each was asked for it in turn", reasons)


class _NoneHasIt(Exception):
    """No source could send the files: why, and what each said."""

    def __init__(self, why: str, reasons: dict[NodeId, str]) -> None:
        super().__init__(why)
        self.why = why
        self.reasons = reasons


class _Fetch:
    """The fetch of one version's missing files.

    Attributes:
        manifest: The version.
    """

    def __init__(
        self,
        store: BlobStore,
        peers: PeerClient,
        me: NodeId,
        manifest: Manifest,
        missing: Sequence[FileEntry],
        name_of: Callable[[NodeId], str],
    ) -> None:
        self._name_of = name_of
        self._store = store
        self._peers = peers
        self._me = me
        self.manifest = manifest
        self._entries = [entry for entry in missing if is_chunked(entry)]
        self._first: list[int] = []  # of each file: the number of its first piece
        sizes: list[int] = []
        for entry in self._entries:
            self._first.append(len(sizes))
            sizes += [chunk_length(entry, index) for index in range(chunk_count(entry))]
        self._sizes = sizes
        self._file_of = [
            index for index, entry in enumerate(self._entries) for _ in range(chunk_count(entry))
        ]
        self._partials: list[PartialBlob] = []
        self._transfer: Transfer | None = None
        self._here_bytes = manifest.size_bytes - sum(entry.size_bytes for entry in missing)
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._broken: BaseException | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES)

    def progress(self) -> FetchProgress:
        """Say how far it is, and how fast since the last few times that this was asked."""
        received = self._here_bytes
        if self._transfer is not None:
            received += self._transfer.received_bytes
        now = asyncio.get_running_loop().time()
        self._samples.append((now, received))
        began, before = self._samples[0]
        bytes_s = int((received - before) / (now - began)) if now > began else 0
        manifest = self.manifest
        return FetchProgress(
            manifest.model, manifest.version, received, manifest.size_bytes, max(0, bytes_s)
        )

    async def run(self, sources: Callable[[], dict[NodeId, bool]]) -> None:
        """Fetch until all is here.

        Raises:
            _NoneHasIt: if that cannot be.
            TransferFailed: if the disk is full, or a file is not what its chunks are said to be.
            ConfigError: if the data folder cannot be written.
        """
        if not self._entries:
            return
        with contextlib.ExitStack() as stack:
            for entry in self._entries:
                chunks = await self._chunks_of(entry, sources)
                partial = await asyncio.to_thread(self._store.open_partial, entry, chunks)
                self._partials.append(stack.enter_context(partial))
                await asyncio.to_thread(self._store.reuse, partial)
            now = asyncio.get_running_loop().time()
            missing = [
                piece
                for piece, file in enumerate(self._file_of)
                if piece - self._first[file] not in self._partials[file].have
            ]
            self._here_bytes += sum(self._sizes) - sum(self._sizes[piece] for piece in missing)
            self._transfer = Transfer(self._me, self._sizes, missing, now)
            try:
                await self._swarm(self._transfer, sources)
            finally:
                await self._stop()
            for partial in self._partials:
                await asyncio.to_thread(partial.finish)

    async def _chunks_of(
        self, entry: FileEntry, sources: Callable[[], dict[NodeId, bool]]
    ) -> Chunks:
        """Return a file's chunks: kept here, or from whoever sends the list that was published."""
        kept = await asyncio.to_thread(self._store.kept_chunks, entry)
        if kept is not None:
            return kept
        reasons: dict[NodeId, str] = {}
        for attempt in range(_LIST_TRIES):
            for node in sources():
                try:
                    hashes = await self._peers.fetch_chunk_list(
                        node, entry.sha256, chunk_count(entry) * HASH_BYTES
                    )
                    return check_list(entry, hashes)
                except MeshError as error:
                    reasons[node] = str(error)
            await asyncio.sleep(_TICK_S * 2.0**attempt)
        raise _NoneHasIt("nobody knows its chunks", reasons)

    async def _swarm(self, transfer: Transfer, sources: Callable[[], dict[NodeId, bool]]) -> None:
        loop = asyncio.get_running_loop()
        while not transfer.is_done:
            for node, is_fetching in sources().items():
                if ("watch", node) not in self._tasks:
                    transfer.joined(node, is_fetching=is_fetching)
                    self._start(("watch", node), self._watch(transfer, node))
            self._carry_out(transfer.tick(loop.time()))
            why = transfer.why_hopeless(loop.time())
            if why is not None:
                raise _NoneHasIt(why, transfer.reasons)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._changed.wait()
            if self._broken is not None:
                raise self._broken

    async def _watch(self, transfer: Transfer, node: NodeId) -> None:
        """Learn what a source has, again and again."""
        names = [entry.sha256 for entry in self._entries]
        loop = asyncio.get_running_loop()
        known, pause_s = -1, 2 * _TICK_S
        while True:
            asked_at = loop.time()
            try:
                known, states = await self._ask_files(node, names, known)
            except InvalidRequest:  # an old version, which has whole files or none
                self._tell(transfer.heard, node, self._bits([None] * len(names)), (True, False))
                return
            except MeshError as error:
                known = -1
                self._carry_out(transfer.failed(node, None, str(error), loop.time()))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 8.0)
                continue
            pause_s = 2 * _TICK_S
            is_complete = all(state is None for state in states)
            is_fetching = any(state for state in states)
            bits = self._bits(states)
            if not bits and not is_fetching:
                self._carry_out(transfer.left(node, "it has none of the files", loop.time()))
                await asyncio.sleep(_ABSENT_S)
                continue
            self._tell(transfer.heard, node, bits, (is_complete, is_fetching))
            pace_s = _COMPLETE_S if is_complete else _PACE_S
            await asyncio.sleep(max(0.0, asked_at + pace_s - loop.time()))

    async def _ask_files(
        self, node: NodeId, names: list[bytes], known: int
    ) -> tuple[int, list[bytes | None]]:
        """Ask a source for all files: in one question that may wait for news, or in several."""
        wait_s = FILES_WAIT_S if len(names) <= MAX_FILES_ASKED else 0.0
        total = 0
        states: list[bytes | None] = []
        for start in range(0, len(names), MAX_FILES_ASKED):
            part = names[start : start + MAX_FILES_ASKED]
            count, found = await self._peers.ask_files(node, part, known, wait_s)
            total += count
            states += found
        return total, states

    def _bits(self, states: Sequence[bytes | None]) -> int:
        """Return as bits the pieces that a source has."""
        bits = 0
        for entry, first, state in zip(self._entries, self._first, states, strict=True):
            whole = (1 << chunk_count(entry)) - 1
            bits |= (whole if state is None else int.from_bytes(state, "little") & whole) << first
        return bits

    def _tell(
        self,
        heard: Callable[..., list[Ask | Cancel]],
        node: NodeId,
        bits: int,
        state: tuple[bool, bool],
    ) -> None:
        now = asyncio.get_running_loop().time()
        self._carry_out(heard(node, bits, is_complete=state[0], is_fetching=state[1], now=now))

    def _carry_out(self, effects: Iterable[Ask | Cancel]) -> None:
        assert self._transfer is not None
        for effect in effects:
            key = (effect.node, effect.piece)
            if isinstance(effect, Ask):
                self._start(key, self._get(self._transfer, effect))
            elif (task := self._tasks.get(key)) is not None:
                task.cancel()
        self._changed.set()

    async def _get(self, transfer: Transfer, ask: Ask) -> None:
        loop = asyncio.get_running_loop()
        file = self._file_of[ask.piece]
        entry, partial = self._entries[file], self._partials[file]
        index = ask.piece - self._first[file]
        length = partial.chunks.length(index)
        try:
            data = (
                await self._peers.fetch_part(
                    ask.node, entry.sha256, partial.chunks.offset(index), length
                )
                if length
                else b""
            )
        except MeshError as error:
            self._carry_out(transfer.failed(ask.node, ask.piece, str(error), loop.time()))
            return
        if await asyncio.to_thread(partial.write, index, data):
            self._carry_out(transfer.arrived(ask.node, ask.piece, loop.time()))
        else:
            reason = f"it sent a wrong chunk of {entry.path!r}"
            log.warning(
                "%s sent a wrong chunk of %s of version %d of %s and is asked for no more of it",
                self._name_of(ask.node),
                entry.path,
                self.manifest.version,
                self.manifest.model,
            )
            self._carry_out(transfer.corrupt(ask.node, ask.piece, reason, loop.time()))

    def _start(self, key: object, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: object, task: asyncio.Task[None]) -> None:
        is_watch = isinstance(key, tuple) and key[0] == "watch"
        if not is_watch and self._tasks.get(key) is task:  # whom it watched it does not watch anew
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = self._broken or error
        self._changed.set()

    async def _stop(self) -> None:
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
